"""Bounds of pairs, outputs and functionals: against constants, against the global bound, edited."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from admm_lip import (
    Certificate,
    CertificateError,
    FunctionalCertificate,
    SolverConfig,
    certified_radii,
    certify,
    load_certificate,
    verify,
)
from admm_lip.certificates.claim_matrices import Matrices, functional
from admm_lip.certificates.document import checksum
from admm_lip.networks.chain import read_network
from admm_lip.networks.storage import save_network
from admm_lip.units import Units

TIGHT = SolverConfig(tol=1e-8)


def stacked(*weights: Any) -> nn.Sequential:
    """A bias-free ReLU network of the given matrices, float64."""
    layers: list[nn.Module] = []
    for w in weights:
        matrix = torch.as_tensor(np.array(w), dtype=torch.float64)
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=torch.float64)
        layer.weight.data = matrix
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def fresh_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))


@functools.cache
def proof() -> FunctionalCertificate:
    return certify(fresh_model(), kind="pairwise")


def test_pairs_lie_between_found_slopes_and_the_global_bound() -> None:
    model, certificate = fresh_model(), proof()
    whole = certify(model)
    assert [b.direction for b in certificate.bounds[:2]] == [(1, -1, 0, 0), (1, 0, -1, 0)]
    assert len(certificate.bounds) == 6
    points = 3.0 * torch.randn(500, 5, generator=torch.Generator().manual_seed(1))
    jacobians = torch.func.vmap(torch.func.jacrev(model))(points).detach().double()
    for bound in certificate.bounds:
        gradients = torch.einsum("o,soi->si", torch.tensor(bound.direction).double(), jacobians)
        assert float(gradients.norm(dim=1).max()) <= bound.lip
        assert bound.lip <= math.sqrt(2.0) * whole.lip * (1.0 + 1e-9)
        assert bound.sampled_lower <= bound.lower_lip <= bound.lip <= bound.norm_product
        assert bound.lip - bound.lower_lip <= 0.5e-3 * bound.lip * 1.01
    verify(certificate, model)


@pytest.mark.parametrize("kind", ["pairwise", "per_output"])
@pytest.mark.parametrize("seed", range(2))
def test_tiny_networks_against_enumeration(kind: Any, seed: int) -> None:
    net = oracles.random_net((3, 4, 4, 3), seed)
    certificate = certify(stacked(*net.weights), kind=kind, solver=TIGHT)
    for bound in certificate.bounds:
        row = np.array(bound.direction)[None] @ net.weights[-1]
        exact = oracles.masked_constant([*net.weights[:-1], row])
        assert exact * (1.0 - 1e-9) <= bound.lip <= 1.1 * exact


def test_non_negative_networks_are_exact() -> None:
    net = oracles.positive_net((6, 9, 8, 4), 0)
    product = net.weights[2] @ net.weights[1] @ net.weights[0]
    model = stacked(*net.weights)
    mixed = [[1.0, 2.0, 0.0, 0.5], [0.0, 0.0, 3.0, 1.0]]
    for norm, dual in (("l2", 2), ("linf", 1)):
        outputs = certify(model, kind="per_output", norm=norm, solver=TIGHT)
        assert outputs.lips == pytest.approx(np.linalg.norm(product, dual, axis=1), rel=1e-6)
        given = certify(model, kind="directions", directions=mixed, norm=norm, solver=TIGHT)
        expected = np.linalg.norm(np.array(mixed) @ product, dual, axis=1)
        assert given.lips == pytest.approx(expected, rel=1e-6)
        assert bool((given.lips >= expected * (1.0 - 1e-12)).all())
        verify(given, model)


def test_the_order_of_a_pair_does_not_matter() -> None:
    model = fresh_model()
    both = certify(model, kind="directions", directions=[[1, 0, -1, 0], [-1, 0, 1, 0]])
    assert both.lips[0] == pytest.approx(both.lips[1], rel=1e-4)
    matrix = proof().pair_lips()
    assert np.array_equal(matrix, matrix.T)
    assert matrix[0, 2] == pytest.approx(both.lips[0], rel=1e-3)
    assert matrix[2, 3] == proof().bounds[5].lip
    with pytest.raises(CertificateError, match="kind: expected pairwise, got dir"):
        both.pair_lips()


def test_permuted_outputs_permute_the_bounds() -> None:
    model = fresh_model()
    order = [2, 0, 3, 1]
    other = fresh_model()
    other[4].weight.data = model[4].weight.data[order]
    matrix = certify(other, kind="pairwise").pair_lips()
    assert matrix == pytest.approx(proof().pair_lips()[np.ix_(order, order)], rel=1e-3)


def test_twin_outputs_differ_by_a_constant() -> None:
    model = fresh_model()
    model[4].weight.data[2] = model[4].weight.data[0]
    model[4].weight.data[3] = 0.0
    certificate = certify(model, kind="pairwise", norm="linf", input_scale=0.3)
    assert [b.method for b in certificate.bounds].count("constant") == 1
    assert certificate.pair_lips()[0, 2] == 0.0
    verify(certificate, model)
    x = torch.randn(50, 5)
    biases = model[4].bias.data
    biases.copy_(torch.tensor([1.0, -50.0, 0.0, -50.0]))
    certificate = certify(model, kind="pairwise")
    radii = certified_radii(model, x, torch.zeros(50).long(), certificate=certificate)
    assert bool((radii > 1.0).all())
    assert not bool(certified_radii(model, x, torch.full((50,), 2), certificate=certificate).any())


def test_a_single_affine_map_and_a_single_output() -> None:
    model = stacked([[3.0, 4.0], [0.0, 1.0]])
    certificate = certify(model, kind="pairwise")
    assert certificate.lips == pytest.approx([math.sqrt(18.0)], rel=1e-9)
    verify(certificate, model)
    assert certify(model, kind="per_output", norm="linf").lips == pytest.approx(
        [7.0, 1.0], rel=1e-3
    )
    with pytest.raises(CertificateError, match="kind: expected at least two outputs for pairwise"):
        certify(stacked([[1.0, 2.0]]), kind="pairwise")
    one = certify(stacked([[1.0, 2.0]]), kind="per_output")
    assert one.lips == pytest.approx([math.sqrt(5.0)])


def test_the_row_of_a_functional_is_bounded_through_rounding() -> None:
    rng = np.random.default_rng(0)
    last = rng.standard_normal((3, 7)) * 10.0 ** rng.integers(-8, 8, (3, 1))
    matrices = Matrices((last,), (), (0.0,))
    for direction in ([1.0, -1.0, 0.0], [0.1, 0.7, -1.3], [2.0, 0.0, 0.5]):
        found = functional(matrices, np.array(direction))
        true = [
            sum((Fraction(c) * Fraction(float(w)) for c, w in zip(direction, column, strict=True)))
            for column in last.T
        ]
        off = [Fraction(float(v)) - t for v, t in zip(found.weights[0][0], true, strict=True)]
        assert sum(e * e for e in off) <= Fraction(found.errors[0]) ** 2
        assert found.errors[0] <= 1e-14 * np.abs(last).sum()
    twin = functional(Matrices((np.ones((2, 3)) / 3.0,), (), (0.0,)), np.array([1.0, -1.0]))
    assert twin.errors == (0.0,)
    assert not twin.weights[0].any()


def separated() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 5))
    x = 2.0 * torch.randn(300, 4)
    return model, x, model(x).argmax(dim=1)


def test_pairwise_radii_are_larger_and_hold_under_attack() -> None:
    model, x, y = separated()
    whole = certified_radii(model, x, y, certificate=certify(model))
    pairs = certify(model, kind="pairwise")
    radii = certified_radii(model, x, y, certificate=pairs)
    singles = certified_radii(model, x, y, certificate=certify(model, kind="per_output"))
    assert bool((radii >= whole * (1.0 - 1e-3)).all())
    assert float(radii.mean()) > 1.1 * float(whole.mean())
    assert bool((singles > 0.0).all())
    logits = model.double()(x.double()).detach()
    lips = torch.from_numpy(pairs.pair_lips())[y]
    margins = (logits.gather(1, y[:, None]) - logits) / lips
    expected = margins.scatter(1, y[:, None], math.inf).amin(dim=1)
    assert radii.numpy() == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-9)
    assert bool((radii <= expected).all())
    for _ in range(20):
        step = torch.randn_like(x).double()
        moved = x + radii[:, None] * step / step.norm(dim=1, keepdim=True)
        assert bool((model(moved).argmax(dim=1) == y).all())


def test_linf_radii_hold_at_the_corners_of_the_cube() -> None:
    model, x, y = separated()
    radii = certified_radii(model, x, y, certificate=certify(model, kind="pairwise", norm="linf"))
    assert float(radii.min()) > 0.0
    for corner in itertools.product((-1.0, 1.0), repeat=4):
        moved = x.double() + radii[:, None] * torch.tensor(corner).double()
        assert bool((model.double()(moved).argmax(dim=1) == y).all())


def test_functionals_of_no_pair_have_no_radii() -> None:
    model, x, y = separated()
    given = certify(model, kind="directions", directions=np.eye(5)[:2])
    with pytest.raises(CertificateError, match=r"kind: expected one of .* got directions"):
        certified_radii(model, x, y, certificate=given)
    with pytest.raises(CertificateError, match="input_shape: the model cannot be read"):
        certified_radii(fresh_model(), x, y, certificate=certify(model, kind="pairwise"))


def test_files_of_every_kind_read_back_and_verify(tmp_path: Path) -> None:
    model = fresh_model()
    save_network(read_network(model), tmp_path)
    for certificate in (proof(), certify(model), certify(model, kind="per_output", input_scale=2)):
        path = tmp_path / f"{certificate.kind}.json"
        certificate.save(path)
        assert load_certificate(path) == certificate
        assert type(certificate).load(path) == certificate
        verify(path, tmp_path)
    with pytest.raises(CertificateError, match=r"pairwise\.json: not a certificate of format 2"):
        Certificate.load(tmp_path / "pairwise.json")
    text = (tmp_path / "pairwise.json").read_text()
    (tmp_path / "pairwise.json").write_text(text.replace('"pairwise"', '"triple"'))
    with pytest.raises(CertificateError, match=r"kind: expected one of global, .* got 'triple'"):
        load_certificate(tmp_path / "pairwise.json")


def edited(**changes: Any) -> FunctionalCertificate:
    return dataclasses.replace(proof(), **changes)


def with_bound(k: int, **changes: Any) -> FunctionalCertificate:
    bounds = list(proof().bounds)
    bounds[k] = dataclasses.replace(bounds[k], **changes)
    return edited(bounds=tuple(bounds))


@given(
    pair=st.integers(0, 5),
    layer=st.integers(0, 1),
    neuron=st.integers(0, 5),
    log_factor=st.floats(-3.0, 3.0).filter(lambda v: abs(v) > 0.1),
)
def test_an_edited_multiplier_is_rejected(
    pair: int, layer: int, neuron: int, log_factor: float
) -> None:
    rows = [list(t) for t in proof().bounds[pair].multiplier]
    rows[layer][neuron] *= math.exp(log_factor)
    changed = with_bound(pair, multiplier=tuple(tuple(t) for t in rows))
    with pytest.raises(CertificateError, match=rf"bounds\[{pair}\]\.lip: .* is not proven"):
        verify(changed, fresh_model())


@pytest.mark.parametrize("pair", range(6))
@pytest.mark.parametrize("less", [1e-3, 0.1, 1.0])
def test_a_lowered_bound_is_rejected(pair: int, less: float) -> None:
    lowered = with_bound(pair, lip=proof().bounds[pair].lip * (1.0 - less))
    with pytest.raises(CertificateError, match=rf"bounds\[{pair}\]\.lip: .* is not proven"):
        verify(lowered, fresh_model())


def test_missing_doubled_and_swapped_pairs_are_rejected() -> None:
    model, bounds = fresh_model(), proof().bounds
    with pytest.raises(CertificateError, match="bounds: expected 6 of kind pairwise, got 5"):
        verify(edited(bounds=bounds[1:]), model)
    with pytest.raises(CertificateError, match="bounds: expected 6 of kind pairwise, got 7"):
        verify(edited(bounds=(*bounds, bounds[0])), model)
    swapped = (bounds[1], bounds[0], *bounds[2:])
    with pytest.raises(
        CertificateError, match=r"bounds\[0\].direction: expected f_0 - f_1, got f_0 - f_2"
    ):
        verify(edited(bounds=swapped), model)
    low, high = sorted((0, 1), key=lambda k: bounds[k].lip)
    relabelled = list(bounds)
    relabelled[high] = dataclasses.replace(bounds[low], direction=bounds[high].direction)
    with pytest.raises(CertificateError, match=rf"bounds\[{high}\]\.lip: .* is not proven"):
        verify(edited(bounds=tuple(relabelled)), model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "linf"}, r"bounds\[0\]\.multiplier: expected 3 layers of it .* got 2"),
        ({"norm": "l1"}, "norm: expected one of l2, linf, got 'l1'"),
        ({"kind": "per_output"}, "bounds: expected 4 of kind per_output, got 6"),
        (
            {"kind": "global"},
            "kind: expected one of pairwise, .*, got 'global'",
        ),
        ({"units": "raw input"}, "units: expected Units or None, got 'raw input'"),
        ({"units": Units(input_scale=0.5)}, r"bounds\[0\].lip: .* is not proven"),
        ({"digest": "0" * 64}, "digest: the certificate is of another network"),
        ({"slopes": ()}, "slopes: expected 2 hidden layers, got 0"),
    ],
)
def test_what_does_not_belong_is_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        verify(edited(**changes), fresh_model())


def test_directions_of_a_given_certificate_are_its_own_claim() -> None:
    # The same proofs under another label speak of the same functionals, so they still hold.
    verify(edited(kind="directions"), fresh_model())
    with pytest.raises(CertificateError, match=r"bounds\[1\]\.direction: expected one number"):
        with_bound(0, direction=(1.0, -1.0, 0.0, 0.0, 0.0))
    of_two = dataclasses.replace(proof().bounds[0], direction=(1.0, -1.0))
    with pytest.raises(CertificateError, match="bounds: expected directions of 4 outputs, got 2"):
        verify(edited(bounds=(of_two,)), fresh_model())


@given(st.integers(0, 2), st.integers(0, 17))
@settings(max_examples=20)
def test_a_changed_weight_is_rejected(layer: int, entry: int) -> None:
    model = fresh_model()
    weight = model[2 * layer].weight.data.view(-1)
    weight[entry] = torch.nextafter(weight[entry], torch.tensor(10.0))
    with pytest.raises(CertificateError, match="digest: the certificate is of another network"):
        verify(proof(), model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bounds": 3}, "bounds: expected a list, got 3"),
        ({"bounds": []}, "bounds: expected FunctionalBounds"),
        ({"bounds": [3]}, r"bounds\[0\]: expected the fields"),
        ({"units": 2.0}, "units: units: expected an object with input_shift, input_scale"),
        (
            {"units": {**Units().to_json(), "input_scale": ["a"]}},
            "input_scale: expected a n",
        ),
        (
            {"units": {**Units().to_json(), "input_scale": 0.0}},
            "input_scale: .*> 0, got 0.0",
        ),
    ],
)
def test_a_file_with_a_checksum_of_its_own_is_still_type_checked(
    change: dict[str, Any], message: str
) -> None:
    data = {**json.loads(proof().to_json()), **change}
    data.pop("checksum")
    with pytest.raises(CertificateError, match=message):
        FunctionalCertificate.from_json(json.dumps({**data, "checksum": checksum(data)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": 1.0}, r"bounds\[0\]\.direction: expected a list"),
        ({"direction": [True]}, r"bounds\[0\]\.direction\[0\]: expected a finite number"),
        ({"multiplier": [3]}, r"bounds\[0\]\.multiplier: expected a list of numbers per"),
        ({"lip": "1"}, r"bounds\[0\]\.lip: expected a finite number >= 0, got '1'"),
        ({"method": 2}, r"bounds\[0\]\.method: expected one of lipsdp, .*, got 2"),
    ],
)
def test_a_bound_of_the_wrong_type_is_named(change: dict[str, Any], message: str) -> None:
    data = json.loads(proof().to_json())
    data.pop("checksum")
    data["bounds"][0] |= change
    with pytest.raises(CertificateError, match=message):
        FunctionalCertificate.from_json(json.dumps({**data, "checksum": checksum(data)}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "triple"}, "kind: expected one of global, monotone, pairwise, .* got 'triple'"),
        ({"kind": "directions"}, "directions: goes with kind='directions', got None"),
        ({"directions": [[1.0]]}, "directions: goes with kind='directions' only, got 'global'"),
        (
            {"kind": "pairwise", "requested": 1.0},
            "requested: goes with kind='global' or 'monotone' only, got 'pairwise'",
        ),
        (
            {"kind": "directions", "directions": [[1.0, 2.0]]},
            r"directions: expected a matrix of 4 columns, .* got shape \(1, 2\)",
        ),
        (
            {"kind": "directions", "directions": [[1.0, math.nan, 0.0, 0.0]]},
            r"directions: .* got shape \(1, 4\) with others",
        ),
        ({"norm": "l1"}, "norm: expected one of l2, linf, got 'l1'"),
        (
            {"input_scale": [1.0, 2.0]},
            "units.input_scale: expected 5 entries, one per input of the network, got 2",
        ),
        ({"input_scale": 0.0}, "input_scale: expected finite numbers > 0, got 0.0"),
        ({"input_scale": math.nan}, "input_scale: expected finite numbers > 0, got nan"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        certify(fresh_model(), **arguments)


def test_convolutions_have_pairs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(8, 3))
    certificate = certify(model, (1, 4, 4), kind="pairwise")
    weights = read_network(model, (1, 4, 4)).chain().weights
    dense = nn.Sequential(*stacked(*weights))
    dense[1] = nn.GELU()
    assert certificate.lips == pytest.approx(certify(dense, kind="pairwise").lips, rel=1e-3)
    verify(certificate, model)
    with pytest.raises(CertificateError, match="input_shape: the model cannot be read"):
        verify(certificate, dense)
