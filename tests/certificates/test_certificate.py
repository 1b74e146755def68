"""Certificates: what they hold, their file, and bounds against known constants."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip import Certificate, CertificateError, SolverConfig, certify, verify
from admm_lip.certificates.document import LayerSlopes
from admm_lip.certificates.norm_product import norm_product, product_multiplier
from admm_lip.certificates.proof import unproven
from admm_lip.errors import UnsupportedModule
from admm_lip.networks.chain import read_network

SMALL = Certificate(
    lip=1.0 / 3.0,
    multiplier=((0.1, 2.5e-17), (math.pi,)),
    slopes=(LayerSlopes("relu", 0.0, 1.0), LayerSlopes("leaky_relu", 0.1, 1.0)),
    digest="a" * 64,
    input_shape=(1, 2, 2),
    method="lipsdp",
    solver="native",
    solver_version="1",
    requested=None,
    lower_lip=0.3,
    norm_product=0.5,
    sampled_lower=0.2,
)


def stacked(*weights: Any, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A bias-free network of the given matrices, float64."""
    layers: list[nn.Module] = []
    for w in weights:
        matrix = torch.as_tensor(np.array(w), dtype=torch.float64)
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=torch.float64)
        layer.weight.data = matrix
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


def test_the_hat_function_certifies_one() -> None:
    model = stacked([[1.0], [1.0]], [[1.0, -1.0]])
    certificate = certify(model, solver=SolverConfig(tol=1e-9))
    assert 1.0 <= certificate.lip < 1.0 + 1e-7
    assert certificate.norm_product == pytest.approx(2.0)
    assert certificate.method == "lipsdp"
    assert certificate.lower_lip <= 1.0


@pytest.mark.parametrize(
    ("activation", "steepest"),
    [(nn.ReLU, 1.0), (nn.GELU, 1.1289041), (nn.SiLU, 1.0998393), (nn.Sigmoid, 0.25)],
)
def test_one_neuron_certifies_its_activations_steepest_slope(
    activation: type[nn.Module], steepest: float
) -> None:
    certificate = certify(stacked([[2.0]], [[-3.0]], activation=activation))
    assert 6.0 * steepest <= certificate.lip < 6.0 * steepest + 1e-5
    assert certificate.sampled_lower <= certificate.lip


@pytest.mark.parametrize("seed", range(3))
def test_non_negative_weights_certify_the_norm_of_the_product(seed: int) -> None:
    net = oracles.signed_net((6, 9, 8, 4), seed)
    assert net.lip is not None
    certificate = certify(stacked(*net.weights), solver=SolverConfig(tol=1e-8))
    assert net.lip * (1.0 - 1e-12) <= certificate.lip <= net.lip * (1.0 + 1e-6)
    assert certificate.norm_product > 1.01 * net.lip


@pytest.mark.parametrize("name", ["iris_4x6x6x3", "abalone_9x16x16x1", "wine_11x12x12x1"])
def test_shared_networks_hold(name: str, shared_data: Path) -> None:
    exact = {
        "iris_4x6x6x3": (11.634355134, 11.635340096),
        "abalone_9x16x16x1": (11.121602332, 11.225477581),
        "wine_11x12x12x1": (1.743369997, 1.846912715),
    }[name]
    weights, biases = oracles.load_npz_net(shared_data / "networks" / f"{name}_ReLU.npz")
    model = stacked(*weights)
    for layer, bias in zip(model[::2], biases, strict=True):
        layer.bias = nn.Parameter(torch.from_numpy(bias))
    certificate = certify(model)
    assert exact[0] <= certificate.lip
    assert certificate.lip == pytest.approx(exact[1], rel=1e-5)
    assert certificate.lower_lip == pytest.approx(exact[1], rel=1e-5)
    assert 0.85 * exact[0] <= certificate.sampled_lower <= exact[0] * (1.0 + 1e-9)
    verify(certificate, model)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    log_scale=st.integers(-6, 6),
    widths=st.lists(st.integers(1, 7), min_size=2, max_size=5),
    activation=st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU, nn.LeakyReLU, nn.Softplus, nn.SiLU]),
    damage=st.sampled_from(["none", "dead row", "zero column", "twin rows"]),
)
def test_no_certificate_is_below_a_found_jacobian(
    seed: int, log_scale: int, widths: list[int], activation: type[nn.Module], damage: str
) -> None:
    rng = np.random.default_rng(seed)
    weights = [10.0**log_scale * rng.standard_normal((b, a)) for a, b in itertools.pairwise(widths)]
    if damage == "dead row":
        weights[0][0] = 0.0
    elif damage == "zero column":
        weights[-1][:, 0] = 0.0
    elif damage == "twin rows":
        weights[0][-1] = weights[0][0]
    model = stacked(*weights, activation=activation)
    certificate = certify(model)
    verify(certificate, model)
    points = torch.randn(64, widths[0], dtype=torch.float64, generator=_generator(seed))
    jacobians = torch.func.vmap(torch.func.jacrev(model))(points / 10.0**log_scale)
    found = float(torch.linalg.matrix_norm(jacobians.detach(), 2).max())
    assert found <= certificate.lip * (1.0 + 1e-12)
    assert certificate.sampled_lower <= certificate.lip
    assert certificate.lip <= certificate.norm_product * (1.0 + 1e-6)
    assert certificate.lower_lip <= certificate.lip


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.3, 1.0), (-1.5, 1.0), (-0.2, 1.2)])
def test_the_product_of_norms_has_a_multiplier(slopes: tuple[float, float]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 7), nn.LeakyReLU(slopes[0]), nn.Linear(7, 6), nn.LeakyReLU(), nn.Linear(6, 2)
    )
    chain = read_network(model).chain()
    widened = dataclasses.replace(
        chain,
        slopes=tuple(
            type(s)(np.full_like(s.alpha, slopes[0]), np.full_like(s.beta, slopes[1]))
            for s in chain.slopes
        ),
    )
    product = norm_product(widened)
    expected = math.prod(np.linalg.norm(w, 2) for w in chain.weights)
    assert product == pytest.approx(expected * max(abs(v) for v in slopes) ** 2)
    multiplier = product_multiplier(widened)
    assert unproven(widened, multiplier, product * (1.0 + 1e-7)) is None


def test_the_product_of_norms_is_returned_where_the_multiplier_is_worse() -> None:
    # One neuron per layer: the product is exact, and nothing can beat it.
    model = stacked([[2.0]], [[3.0]], [[0.5]])
    poor = certify(model, multiplier=[np.array([1e3]), np.array([1e3])])
    assert poor.lip == pytest.approx(3.0, rel=1e-6)
    alone = certify(stacked([[1.0, 2.0], [3.0, 4.0]]))
    assert alone.method == "norm_product"
    assert alone.solver == ""
    assert alone.lip == pytest.approx(np.linalg.norm([[1.0, 2.0], [3.0, 4.0]], 2), rel=1e-9)
    assert alone.lower_lip == pytest.approx(alone.lip, rel=1e-8)


def test_a_given_multiplier_is_tried() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    fine = certify(model, solver=SolverConfig(tol=1e-9))
    coarse = certify(model, solver=SolverConfig(tol=0.5), multiplier=fine.multiplier)
    assert coarse.lip <= fine.lip * (1.0 + 1e-8)
    with pytest.raises(CertificateError, match=r"multiplier: expected shapes \[\(6,\)\]"):
        certify(model, multiplier=[np.ones(5)])


def test_a_constant_network_certifies_zero() -> None:
    model = stacked([[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0]])
    certificate = certify(model, requested=2.0)
    assert (certificate.lip, certificate.method, certificate.requested) == (0.0, "constant", 2.0)
    verify(certificate, model)


def test_convolutions_are_certified_as_their_matrix() -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )
    certificate = certify(conv, (1, 6, 6))
    chain = read_network(conv, (1, 6, 6)).chain()
    dense = certify(stacked(*chain.weights))
    assert certificate.lip == pytest.approx(dense.lip, rel=1e-6)
    assert certificate.input_shape == (1, 6, 6)
    verify(certificate, conv)


def test_unsupported_layers_are_refused_before_any_work() -> None:
    with pytest.raises(UnsupportedModule, match=r"1 \(LayerNorm\)"):
        certify(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))


def test_files_read_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    SMALL.save(path)
    assert Certificate.load(path) == SMALL
    assert json.loads(path.read_text())["lip"] == 1.0 / 3.0
    assert [p.name for p in tmp_path.iterdir()] == ["certificate.json"]
    with pytest.raises(FileNotFoundError, match="path: expected an existing folder"):
        SMALL.save(tmp_path / "missing" / "certificate.json")


@given(st.integers(0, 10_000))
def test_every_truncation_is_told(cut: int) -> None:
    text = SMALL.to_json().strip()
    with pytest.raises(CertificateError, match="truncated or not JSON"):
        Certificate.from_json(text[: cut % len(text)])


@given(st.integers(0, 10_000), st.integers(0, 9))
def test_every_edited_digit_is_told(place: int, digit: int) -> None:
    text = SMALL.to_json()
    digits = [i for i, c in enumerate(text) if c.isdigit()]
    at = digits[place % len(digits)]
    edited = text[:at] + str(digit) + text[at + 1 :]
    if json.loads(edited) == json.loads(text):
        assert Certificate.from_json(edited) == SMALL
        return
    with pytest.raises(CertificateError, match=r"checksum|truncated|not a certificate|expected"):
        Certificate.from_json(edited)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "not a text file"),
        (b"[1, 2]", "not a certificate of format 2"),
        (b'{"lip": 1.0}', "not a certificate of format 2"),
        (b'{"lip": NaN}', "holds NaN, which JSON does not have"),
        (b"", "truncated or not JSON"),
        (b"[" * 100_000, "truncated or not JSON"),
    ],
)
def test_foreign_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(CertificateError, match=message):
        Certificate.load(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="expected a certificate file, found none"):
        Certificate.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lip": math.nan}, "lip: expected a finite number >= 0, got nan"),
        ({"lip": -1.0}, "lip: expected a finite number >= 0, got -1.0"),
        ({"lip": "1"}, "lip: expected a finite number >= 0, got '1'"),
        ({"lip": 10**400}, "lip: expected a finite number"),
        ({"lip": True}, "lip: expected a finite number >= 0, got True"),
        ({"norm_product": math.inf}, "norm_product: expected a finite number"),
        ({"requested": math.nan}, "requested: expected a finite number"),
        ({"multiplier": ((1.0, math.nan),)}, r"multiplier\[0\]\[1\]: expected a finite number"),
        ({"multiplier": (3.0,)}, r"multiplier\[0\]: expected a tuple"),
        ({"slopes": (("relu", 0.0, 1.0),)}, r"slopes\[0\]: expected LayerSlopes"),
        ({"slopes": (LayerSlopes("relu", 1.0, 0.0),)}, r"slopes\[0\]\.beta: expected a finite"),
        ({"digest": 5}, "digest: expected text, got 5"),
        ({"input_shape": ()}, "input_shape: expected sizes > 0"),
        ({"format": 3}, "format: expected 2, got 3"),
    ],
)
def test_fields_of_the_wrong_kind_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slopes": [3]}, "slopes: expected"),
        ({"multiplier": [1.0]}, "multiplier: expected a list of numbers per hidden layer"),
        ({"multiplier": 3}, "multiplier: expected a list"),
        ({"lip": "a"}, "lip: expected a finite number"),
        ({"multiplier": [["a"]]}, r"multiplier\[0\]\[0\]: expected a finite number"),
    ],
)
def test_a_file_with_a_checksum_of_its_own_is_still_type_checked(
    change: dict[str, Any], message: str
) -> None:
    from admm_lip.certificates.document import checksum

    data = {**json.loads(SMALL.to_json()), **change}
    data.pop("checksum")
    with pytest.raises(CertificateError, match=message):
        Certificate.from_json(json.dumps({**data, "checksum": checksum(data)}))
