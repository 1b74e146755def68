"""The exact check against known constants, and as the oracle of the floating-point one."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from admm_lip import Certificate, certify, verify
from admm_lip.certificates import exact
from admm_lip.certificates.exact import exact_check, is_definite, is_semidefinite
from admm_lip.certificates.exact_network import Rational, exact_chain
from admm_lip.errors import CertificateError
from admm_lip.networks.chain import read_network
from admm_lip.networks.network import LayerSpec, Network
from admm_lip.networks.sorting_torch import MaxMin


def network_of(*matrices: Any, kind: str = "relu", **options: float) -> Network:
    layers, arrays = [], {}
    for k, matrix in enumerate(matrices):
        if k:
            layers.append(LayerSpec(kind, f"phi{k}", options))
        layers.append(LayerSpec("linear", f"w{k}", {}))
        arrays[f"w{k}.weight"] = np.array(matrix, dtype=np.float64)
    return Network(tuple(layers), arrays)


def proves(network: Network, certificate: Any, **changes: Any) -> bool:
    """Whether the exact check accepts; it may refuse for the bound only."""
    try:
        exact_check(network, dataclasses.replace(certificate, **changes))
    except CertificateError as error:
        assert "does not hold exactly" in str(error)
        return False
    return True


def accepted(network: Network, certificate: Any) -> bool:
    try:
        verify(certificate, network)
    except CertificateError:
        return False
    return True


class TestKnownConstants:
    def test_the_hat_has_slope_one_exactly(self) -> None:
        """relu(x) - relu(x - 1) with T = I: the form is singular at 1, and exactly there."""
        hat = network_of([[1], [1]], [[1, -1]])
        certificate = dataclasses.replace(certify(hat), multiplier=((1.0, 1.0),), lip=1.0)
        assert proves(hat, certificate)
        assert not proves(hat, certificate, lip=math.nextafter(1.0, 0.0))

    @pytest.mark.parametrize("matrix", [[[3, 4]], [[3], [4]]])
    def test_a_single_map_has_its_norm_exactly(self, matrix: Any) -> None:
        network = network_of(matrix)
        certificate = certify(network)
        assert proves(network, certificate, lip=5.0)
        assert not proves(network, certificate, lip=math.nextafter(5.0, 0.0))

    def test_a_leaky_layer_of_one_neuron(self) -> None:
        """Slopes [1, 2]: the determinant (4 + 4 t)(2 t - 1) - 9 t^2 at L = 2 is -(t - 2)^2."""
        network = network_of([[1]], [[1]], kind="leaky_relu", negative_slope=2.0)
        certificate = dataclasses.replace(certify(network), lip=2.0)
        assert proves(network, certificate, multiplier=((2.0,),))
        assert not proves(network, certificate, multiplier=((2.0,),), lip=math.nextafter(2.0, 0))
        assert not proves(network, certificate, multiplier=((math.nextafter(2.0, 3.0),),))

    def test_a_constant_network(self) -> None:
        network = network_of([[1, 0], [0, 0]], [[0, 5]])
        certificate = certify(network)
        assert certificate.lip == 0.0
        exact_check(network, certificate)
        other = network_of([[1, 0], [0, 0]], [[1, 5]])
        claim = dataclasses.replace(certify(other), lip=0.0)
        with pytest.raises(CertificateError, match="lip: 0 is not proven"):
            exact_check(other, claim)


KINDS = {
    "relu": nn.ReLU(),
    "leaky": nn.LeakyReLU(0.3),
    "steep": nn.LeakyReLU(1.7),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "sigmoid": nn.Sigmoid(),
    "elu": nn.ELU(0.5),
}


@pytest.mark.parametrize("widths", [(3, 5, 2), (9, 4, 4, 3), (2, 6, 5, 4, 1), (5, 1, 3)], ids=str)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_verify_accepts_holds_exactly_and_the_edge_is_where_it_should_be(
    kind: str, widths: tuple[int, ...]
) -> None:
    torch.manual_seed(sum(widths))
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(widths):
        layers += [nn.Linear(n, m), KINDS[kind]]
    network = read_network(nn.Sequential(*layers[:-1]))
    certificate = certify(network)
    verify(certificate, network)
    assert proves(network, certificate)
    assert not proves(network, certificate, lip=certificate.lip * (1.0 - 1e-6))
    for factor in 1.0 - np.logspace(-14, -7, 15):
        lower = dataclasses.replace(certificate, lip=certificate.lip * float(factor))
        assert proves(network, lower) or not accepted(network, lower)


@given(
    seed=st.integers(0, 2**32 - 1),
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    scales=st.lists(st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6]), min_size=4, max_size=4),
    kind=st.sampled_from(["relu", "leaky", "gelu"]),
    dead=st.booleans(),
)
def test_verify_is_never_wrong(
    seed: int, widths: list[int], scales: list[float], kind: str, dead: bool
) -> None:
    """Random networks and multipliers, good and bad: verify's word against the exact one."""
    rng = np.random.default_rng(seed)
    matrices = [
        rng.normal(size=(m, n)) * s for n, m, s in zip(widths, widths[1:], scales, strict=False)
    ]
    if dead and len(matrices) > 1:
        matrices[0][0] = 0.0
        matrices[0][-1] = matrices[0][len(matrices[0]) // 2]
    name, options = {
        "relu": ("relu", {}),
        "leaky": ("leaky_relu", {"negative_slope": 0.25}),
        "gelu": ("gelu", {"approximate": "none"}),
    }[kind]
    layers, arrays = [], {}
    for k, matrix in enumerate(matrices):
        if k:
            layers.append(LayerSpec(name, f"phi{k}", options))
        layers.append(LayerSpec("linear", f"w{k}", {}))
        arrays[f"w{k}.weight"] = matrix
    network = Network(tuple(layers), arrays)
    certificate = certify(network)
    assert certificate.lip == 0.0 or proves(network, certificate)
    if certificate.lip == 0.0:
        return
    for _ in range(3):
        t = tuple(
            tuple(value * float(1 + rng.normal() * 1e-9) for value in layer)
            for layer in certificate.multiplier
        )
        lip = certificate.lip * (1 + float(rng.normal()) * 1e-9)
        changed = dataclasses.replace(certificate, multiplier=t, lip=lip)
        assert proves(network, changed) or not accepted(network, changed)


def test_convolutions_and_pools_are_exact() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
        nn.LeakyReLU(0.2),
        nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
        nn.Conv2d(4, 2, 2, dilation=2, bias=False),
        nn.Tanh(),
        nn.AvgPool2d(1, divisor_override=3),
        nn.Flatten(),
        nn.Linear(2, 2),
    )
    network = read_network(model, (2, 6, 6))
    weights, activations = exact_chain(network)
    chain = network.chain()
    assert activations == [*chain.activations]
    for exact_weight, weight, error in zip(weights, chain.weights, chain.errors, strict=True):
        rows, columns = weight.shape
        gap = sum(
            (Fraction(exact_weight.over[i, j], exact_weight.under) - Fraction(float(weight[i, j])))
            ** 2
            for i in range(rows)
            for j in range(columns)
        )
        assert gap <= Fraction(error) ** 2  # what Chain.errors promises
    exact_check(network, certify(network))


class TestForms:
    @given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 12), rank=st.integers(1, 12))
    def test_a_gram_matrix_is_semidefinite_and_less_is_not(
        self, seed: int, size: int, rank: int
    ) -> None:
        rng = np.random.default_rng(seed)
        factor = rng.integers(-9, 10, size=(size, rank)).astype(object)
        form = factor.dot(factor.T) * 2**80
        identity = np.array(np.eye(size, dtype=int), dtype=object)
        regular = bool(np.linalg.matrix_rank(factor.astype(float)) == size)
        assert is_semidefinite(form)
        assert is_semidefinite(form + identity)
        assert is_definite(form + identity * 2**20)
        assert is_definite(form) == regular
        if not regular:  # one part in 2^80 below singular
            assert not is_semidefinite(form - identity)
            assert not is_definite(form - identity)

    def test_a_zero_pivot_with_a_column_is_indefinite(self) -> None:
        form = np.array([[1, 1, 0], [1, 1, 2], [0, 2, 9]], dtype=object)
        assert not is_semidefinite(form)
        assert is_semidefinite(np.array([[1, 1, 1], [1, 1, 1], [1, 1, 2]], dtype=object))

    @given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6))
    def test_floats_are_taken_exactly(self, values: list[float]) -> None:
        rational = Rational.of(np.array(values))
        assert [Fraction(int(v), rational.under) for v in rational.over] == [
            Fraction(v) for v in values
        ]


@pytest.mark.parametrize("kind", ["relu", "leaky", "gelu"])
def test_a_larger_network_is_proven_in_fixed_point(kind: str) -> None:
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Linear(50, 20), KINDS[kind], nn.Linear(20, 24), KINDS[kind], nn.Linear(24, 5)
    )
    network = read_network(model)
    certificate = certify(network)
    weights, activations = exact_chain(network)
    (claim,) = exact._claims(certificate, tuple(weights))
    form = exact._form(claim, activations)
    assert form is not None
    assert len(form) > exact._DECIDED
    assert is_definite(form)
    assert proves(network, certificate)
    assert not proves(network, certificate, lip=certificate.lip * (1.0 - 1e-6))


SCALE = (8.0, 0.3, 2.5)


@pytest.mark.parametrize("kind", ["relu", "gelu", "steep"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("scale", [None, SCALE], ids=["model", "raw"])
@pytest.mark.parametrize("claim", ["global", "pairwise", "per_output"])
@pytest.mark.parametrize("widths", [(3, 5, 3), (3, 2, 4, 2), (3, 2)], ids=str)
def test_every_kind_norm_and_unit_holds_exactly_and_no_lower(
    kind: str, norm: Any, scale: Any, claim: Any, widths: tuple[int, ...]
) -> None:
    torch.manual_seed(sum(widths))
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(widths):
        layers += [nn.Linear(n, m), KINDS[kind]]
    network = read_network(nn.Sequential(*layers[:-1]))
    options = {} if claim == "global" else {"progress": False}
    certificate = certify(network, kind=claim, norm=norm, input_scale=scale, **options)
    verify(certificate, network)
    exact_check(network, certificate)
    with pytest.raises(CertificateError, match=r"does not hold exactly|sum exceeds lip\^2"):
        exact_check(network, lowered(certificate, 1.0 - 1e-6))


def lowered(certificate: Any, factor: float) -> Any:
    """The last bound of a certificate times ``factor``."""
    if certificate.kind == "global":
        return dataclasses.replace(certificate, lip=certificate.lip * factor)
    last = certificate.bounds[-1]
    last = dataclasses.replace(last, lip=last.lip * factor)
    return dataclasses.replace(certificate, bounds=(*certificate.bounds[:-1], last))


def test_directions_are_those_of_the_kind() -> None:
    network = network_of(np.eye(3), np.ones((3, 3)))
    pairs = certify(network, kind="pairwise", progress=False)
    with pytest.raises(CertificateError, match=r"bounds\[0\]\.direction: expected f_0 - f_1"):
        dataclasses.replace(pairs, bounds=pairs.bounds[::-1])
    of_two = dataclasses.replace(pairs.bounds[0], direction=(1.0, -1.0))
    with pytest.raises(CertificateError, match="bounds: expected directions of 3 outputs, got 2"):
        exact_check(network, dataclasses.replace(pairs, bounds=(of_two,)))


def test_an_input_that_the_bound_leaves_free_must_not_reach_the_network() -> None:
    """linf on ``x_1``: all the weight on one input proves the slope 1; moved away it does not."""
    network = network_of([[1.0, 0.0]], [[1.0]])
    proof = dataclasses.replace(
        certify(network, norm="linf"), lip=1.0, multiplier=((0.5, 0.0), (1.0,))
    )
    exact_check(network, proof)
    with pytest.raises(CertificateError, match="does not hold exactly"):
        exact_check(network, dataclasses.replace(proof, multiplier=((0.0, 0.5), (1.0,))))
    with pytest.raises(CertificateError, match="twice its sum exceeds lip"):
        exact_check(network, dataclasses.replace(proof, multiplier=((0.5, 0.1), (1.0,))))


class TestRefusals:
    @pytest.fixture
    def case(self) -> tuple[Network, Any]:
        network = network_of(np.eye(2), np.ones((1, 2)))
        return network, certify(network)

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"digest": "0" * 64}, "digest: the certificate is of another network"),
            ({"norm": "linf"}, r"multiplier: expected \[2, 2\] entries per layer, got \[2\]"),
            ({"norm": "l1"}, "norm: expected one of l2, linf, got 'l1'"),
            (
                {"units": "raw input"},
                "units: expected Units or None, got",
            ),
            ({"kind": "local"}, "kind: expected one of global, got 'local'"),
            ({"multiplier": ((1.0,),)}, r"multiplier: expected \[2\] entries per layer, got \[1\]"),
            ({"multiplier": ()}, r"multiplier: expected \[2\] entries per layer, got \[\]"),
            ({"slopes": ()}, r"slopes: expected \[\('relu', 0.0, 1.0\)\], got \[\]"),
            ({"multiplier": ((0.0, 0.0),)}, "is not proven: the matrix inequality does not hold"),
        ],
    )
    def test_a_wrong_field_is_named(
        self, case: tuple[Network, Any], changes: dict[str, Any], match: str
    ) -> None:
        network, certificate = case
        exact_check(network, certificate)
        with pytest.raises(CertificateError, match=match):
            exact_check(network, dataclasses.replace(certificate, **changes))

    def test_too_large(self, case: tuple[Network, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exact, "_LARGEST", 1)
        with pytest.raises(CertificateError, match="is for at most 1 neurons, got 2; use verify"):
            exact_check(*case)


def image_network(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 2, 3, padding=1), activation, nn.Conv2d(2, 2, 2, stride=2), activation)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 2)).double()


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.GELU(), nn.LeakyReLU(-0.5), MaxMin()], ids=str
)
def test_multipliers_per_channel_are_those_of_every_pixel(activation: nn.Module) -> None:
    model = image_network(activation)
    network = read_network(model, (1, 4, 4))
    for kind in ("global", "per_output"):
        found = certify(network, kind=kind, structure="torus")  # type: ignore[call-overload]
        assert found.switch == 1
        exact_check(network, found)
    whole = certify(network, structure="torus")
    assert isinstance(whole, Certificate)
    assert not proves(network, whole, lip=0.5 * whole.lip, lower_lip=0.0, sampled_lower=0.0)
    other = whole.slopes[0]._replace(activation="tanh")
    for slopes in ((other, whole.slopes[1]), (whole.slopes[0], other)):
        with pytest.raises(CertificateError, match="slopes: expected"):
            exact_check(network, dataclasses.replace(whole, slopes=slopes))


def test_what_is_not_known_per_neuron_is_refused() -> None:
    network = read_network(image_network(nn.LeakyReLU(0.2)), (1, 4, 4))
    with pytest.raises(CertificateError, match="were widened to hold 0"):
        exact_check(network, certify(network, structure="torus"))
    found = certify(network, structure="torus")
    with pytest.raises(CertificateError, match="switch"):
        dataclasses.replace(found, switch=9)
