"""Certificates of networks that sort: exact constants, exact arithmetic and a second solver."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from admm_lip import Certificate, CertificateError, certified_radii, certify, verify
from admm_lip.certificates.document import chain_slopes
from admm_lip.certificates.exact import exact_check
from admm_lip.certificates.proof import unproven
from admm_lip.networks.chain import read_network
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.networks.network import LayerSpec, Network
from admm_lip.networks.sorting_torch import GroupSort2, HalfAbs, MaxMin
from admm_lip.solvers import CertifyProblem, Slopes, solve_certify
from admm_lip.solvers.lmi import implied_bound

Array = np.ndarray[Any, Any]
EXACT_WINE = 2.788306161


def sorted_network(weights: Sequence[Array], kinds: Sequence[str] | str = "max_min") -> Network:
    """Linear layers of these weights with the activations between."""
    hidden = len(weights) - 1
    names = [kinds] * hidden if isinstance(kinds, str) else list(kinds)
    specs = [LayerSpec("linear", "w0", {})]
    for k, kind in enumerate(names):
        specs += [LayerSpec(kind, f"act{k}", {}), LayerSpec("linear", f"w{k + 1}", {})]
    return Network(tuple(specs), {f"w{k}.weight": w for k, w in enumerate(weights)})


def random_weights(widths: Sequence[int], seed: int, scale: float = 1.0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [scale * rng.standard_normal((b, a)) for a, b in itertools.pairwise(widths)]


def orderings_constant(weights: Sequence[Array]) -> float:
    """Largest norm over all orders of all pairs, reachable or not: the constant is at most this."""
    swaps = [np.eye(2), np.array([[0.0, 1.0], [1.0, 0.0]])]
    pairs = [len(w) // 2 for w in weights[:-1]]
    largest = 0.0
    for choice in itertools.product(swaps, repeat=sum(pairs)):
        blocks, jacobian = iter(choice), weights[0]
        for w, count in zip(weights[1:], pairs, strict=True):
            permutation = np.zeros((2 * count, 2 * count))
            for k in range(count):
                permutation[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = next(blocks)
            jacobian = w @ permutation @ jacobian
        largest = max(largest, float(np.linalg.norm(jacobian, 2)))
    return largest


def per_pair_bound(network: Network) -> float:
    """LipSDP with ``lambda I + gamma 11'`` for every pair: all slopes known as [-1, 1] only."""
    chain = network.chain()
    slopes = tuple(
        Slopes(-torch.ones(len(s.alpha)).double(), torch.ones(len(s.alpha)).double())
        for s in chain.slopes
    )
    return solve_certify(CertifyProblem(tuple(map(torch.from_numpy, chain.weights)), slopes)).lip


def joint_bound(weights: Sequence[Array]) -> float:
    """The same with any symmetric matrix on the sums of a layer, by cvxpy from the definition."""
    cp = pytest.importorskip("cvxpy")
    level = cp.Variable()
    form: Any = weights[-1].T @ weights[-1]
    constraints = []
    for w in reversed(weights[:-1]):
        n = len(w)
        even, odd = np.eye(n)[0::2], np.eye(n)[1::2]
        total, difference = even + odd, even - odd
        joint = cp.Variable((n // 2, n // 2), symmetric=True)
        single = cp.Variable(n // 2, nonneg=True)
        held = total.T @ joint @ total + difference.T @ cp.diag(single) @ difference
        constraints.append(held - form >> 0)
        form = w.T @ held @ w
    constraints.append(level * np.eye(weights[0].shape[1]) - form >> 0)
    problem = cp.Problem(cp.Minimize(level), constraints)
    problem.solve(solver=cp.CLARABEL)
    return float(problem.value) ** 0.5


@pytest.fixture
def wine(shared_data: Path) -> list[Array]:
    with np.load(shared_data / "networks" / "wine_11x12x12x1_GroupSort_g6.npz") as stored:
        return [stored[name] for name in ("W0", "b0", "W1", "b1", "W2", "b2")]


@pytest.mark.parametrize("kind", ["max_min", "group_sort2"])
def test_the_shared_network_between_its_constant_and_the_product(
    wine: list[Array], kind: str
) -> None:
    network = sorted_network(wine[0::2], kind)
    arrays = {**network.arrays, **{f"w{k}.bias": b for k, b in enumerate(wine[1::2])}}
    network = Network(network.layers, arrays)
    certificate = certify(network)
    assert EXACT_WINE <= certificate.lip < per_pair_bound(network) < certificate.norm_product
    assert certificate.lip < 1.0092 * EXACT_WINE
    assert certificate.sampled_lower <= EXACT_WINE * (1.0 + 1e-9)
    verify(certificate, network)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("widths", [(2, 2, 1), (3, 4, 2), (2, 4, 4, 1), (3, 2, 4, 2, 2)])
def test_tiny_networks_between_sampling_and_the_product(widths: tuple[int, ...], seed: int) -> None:
    weights = random_weights(widths, seed)
    certificate = certify(sorted_network(weights))
    assert certificate.sampled_lower <= certificate.lip
    assert certificate.lip <= certificate.norm_product * (1.0 + 1e-9)
    if len(widths) == 3:  # one layer without biases reaches every order of its pairs
        reached = orderings_constant(weights) if np.linalg.matrix_rank(weights[0]) > 2 else 0.0
        assert certificate.lip >= reached * (1.0 - 1e-12)


def test_two_numbers_sorted() -> None:
    for row, lip in (([1.0, 1.0], 2**0.5), ([1.0, -1.0], 2**0.5), ([3.0, 4.0], 5.0)):
        network = sorted_network([np.eye(2), np.array([row])])
        assert certify(network).lip == pytest.approx(lip, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_sums_of_pairs_pass_as_in_a_linear_network(seed: int) -> None:
    """Layers that read sums only make a linear network, whose constant is known."""
    halves = [w.astype(np.float32) for w in random_weights((3, 4, 4, 4, 2), seed)]
    both = np.kron(np.eye(2), np.ones((1, 2)))
    weights = [halves[0], *(w[:, :2] @ both for w in halves[1:])]
    jacobian = weights[0]
    for w in weights[1:]:
        jacobian = w @ jacobian
    lip = certify(sorted_network(weights)).lip
    assert lip == pytest.approx(float(np.linalg.norm(jacobian, 2)), rel=1e-5)
    assert per_pair_bound(sorted_network(weights)) > 1.05 * lip


@pytest.mark.parametrize("widths", [(3, 4, 2), (4, 6, 6, 3), (2, 4, 4, 4, 1)])
def test_the_bound_is_the_optimum_over_joint_multipliers(widths: tuple[int, ...]) -> None:
    weights = random_weights(widths, 3)
    assert certify(sorted_network(weights)).lip == pytest.approx(joint_bound(weights), rel=2e-5)


def test_a_known_slope_is_the_limit_of_a_large_multiplier() -> None:
    chain = sorted_network(random_weights((3, 6, 4, 2), 1)).chain()
    problem = CertifyProblem(
        tuple(map(torch.from_numpy, chain.weights)),
        tuple(Slopes(*map(torch.from_numpy, s)) for s in chain.slopes),
    )
    found = solve_certify(problem).multiplier
    # Away from the least multipliers, where the bound jumps to infinity.
    multiplier = tuple(t * 1.3 ** (len(found) - k) for k, t in enumerate(found))
    limit = implied_bound(problem.weights, problem.slopes, multiplier)
    known = [s.alpha == s.beta for s in problem.slopes]
    nearly = tuple(
        Slopes(torch.where(a, 1.0 - 1e-12, s.alpha), s.beta)
        for a, s in zip(known, problem.slopes, strict=True)
    )
    for factor in (1e3, 1e6):
        large = tuple(
            torch.where(a, factor * t[~a].max(), t) for a, t in zip(known, multiplier, strict=True)
        )
        bound = implied_bound(problem.weights, nearly, large)
        assert limit * (1.0 - 1e-9) <= bound <= limit * (1.0 + 100.0 / factor)


MIXED = {
    "relu first": ("relu", "max_min"),
    "relu last": ("group_sort2", "relu"),
    "tanh between": ("max_min", "tanh", "max_min"),
    "half_abs": ("half_abs", "max_min"),
    "slopes below 0": ("max_min", "gelu"),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_chains_are_certified_and_checked_exactly(name: str) -> None:
    kinds = MIXED[name]
    weights = random_weights((5, *(4 for _ in kinds), 2), 4)
    network = sorted_network(weights, "relu")
    options = {"gelu": {"approximate": "none"}}
    acts = iter(kinds)
    layers = tuple(
        LayerSpec(kind := next(acts), spec.name, options.get(kind, {}))
        if spec.kind == "relu"
        else spec
        for spec in network.layers
    )
    network = Network(layers, network.arrays)
    certificate = certify(network)
    assert certificate.sampled_lower <= certificate.lip <= certificate.norm_product * (1 + 1e-9)
    verify(certificate, network)
    exact_check(network, certificate)


@given(
    seed=st.integers(0, 10_000),
    kinds=st.lists(
        st.sampled_from(["max_min", "group_sort2", "relu", "tanh"]), min_size=1, max_size=3
    ),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    excess=st.sampled_from([-1e-3, -1e-6, -1e-9, -1e-13, 0.0, 1e-13, 1e-9, 1e-6]),
)
def test_what_is_proven_holds_in_exact_arithmetic(
    seed: int, kinds: list[str], scale: float, excess: float
) -> None:
    rng = np.random.default_rng(seed)
    widths = [int(rng.integers(1, 4)), *(2 * int(rng.integers(1, 3)) for _ in kinds), 2]
    network = sorted_network(random_weights(widths, seed, scale), [*kinds])
    chain = network.chain()
    multiplier, gain = [], 1.0
    for k in range(len(kinds) - 1, -1, -1):
        gain *= 1.5 * float(np.linalg.norm(chain.weights[k + 1], 2)) ** 2
        spread = np.exp(0.2 * rng.standard_normal(widths[k + 1]))
        multiplier.insert(0, gain * spread)
        gain *= 2.0
    weights = tuple(map(torch.from_numpy, chain.weights))
    slopes = tuple(Slopes(*map(torch.from_numpy, s)) for s in chain.slopes)
    lip = implied_bound(weights, slopes, tuple(map(torch.from_numpy, multiplier)))
    if not math.isfinite(lip):
        return
    claim = Certificate(
        lip=lip * (1.0 + excess),
        multiplier=tuple(tuple(t.tolist()) for t in multiplier),
        slopes=chain_slopes(chain),
        digest=network.digest(),
        input_shape=network.input_shape or (),
        method="given",
        requested=None,
        lower_lip=0.0,
        norm_product=0.0,
        sampled_lower=0.0,
        kind="global",
        solver="",
        solver_version="",
    )
    proven = unproven(chain, multiplier, claim.lip) is None
    if proven:
        exact_check(network, claim)
    if excess >= 1e-9:
        assert proven
    if excess <= -1e-9:
        with pytest.raises(CertificateError, match="not proven"):
            exact_check(network, claim)


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 8), MaxMin(), nn.Linear(8, 4), GroupSort2(), nn.Linear(4, 3))


def test_edited_certificates_do_not_verify(model: nn.Sequential, tmp_path: Path) -> None:
    certificate = certify(model)
    certificate.save(tmp_path / "certificate.json")
    verify(tmp_path / "certificate.json", model)
    assert Certificate.load(tmp_path / "certificate.json") == certificate
    lower = dataclasses.replace(certificate, lip=certificate.lip * (1.0 - 1e-4))
    halved = tuple(tuple(0.5 * v for v in t) for t in certificate.multiplier)
    spoiled = dataclasses.replace(certificate, multiplier=halved)
    for edited in (lower, spoiled):
        with pytest.raises(CertificateError, match="is not proven"):
            verify(edited, model)
    steeper = certificate.slopes[0]._replace(alpha=0.0)
    edited = dataclasses.replace(certificate, slopes=(steeper, *certificate.slopes[1:]))
    with pytest.raises(
        CertificateError, match=r"slopes\[0\]: expected half_abs with \[-1.0, 1.0\]"
    ):
        verify(edited, model)


def test_the_multipliers_of_sums_are_not_read(model: nn.Sequential) -> None:
    certificate = certify(model)
    other = tuple(
        (*(1.0 for _ in t[: len(t) // 2]), *t[len(t) // 2 :]) for t in certificate.multiplier
    )
    verify(dataclasses.replace(certificate, multiplier=other), model)


@pytest.mark.parametrize("scales", [(1e-6, 1e6, 1.0), (1e6, 1e6, 1e6), (1e-6, 1e-6, 1e-6)])
def test_scales_cancel(scales: tuple[float, ...]) -> None:
    weights = random_weights((4, 6, 4, 2), 6)
    plain = certify(sorted_network(weights)).lip
    scaled = [s * w for s, w in zip(scales, weights, strict=True)]
    certificate = certify(sorted_network(scaled))
    assert certificate.lip == pytest.approx(plain * math.prod(scales), rel=1e-5)
    verify(certificate, sorted_network(scaled))


def test_dead_idle_and_twin_neurons() -> None:
    weights = random_weights((4, 6, 6, 2), 7)
    weights[0][0] = 0.0
    weights[0][3] = weights[0][2]
    weights[1][:, 4:] = 0.0
    weights[2][:, :2] = 0.0
    network = sorted_network(weights)
    certificate = certify(network)
    assert certificate.sampled_lower <= certificate.lip <= certificate.norm_product
    verify(certificate, network)
    exact_check(network, certificate)


def test_a_network_that_ignores_its_input_has_constant_zero() -> None:
    weights = random_weights((3, 4, 4, 2), 8)
    weights[1][:] = 0.0
    network = sorted_network(weights)
    certificate = certify(network)
    assert certificate.lip == 0.0
    verify(certificate, network)
    exact_check(network, certificate)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pairs_of_outputs_and_other_norms(model: nn.Sequential, norm: str) -> None:
    whole = certify(model, norm=norm, input_scale=2.0)
    pairs = certify(model, kind="pairwise", norm=norm, input_scale=2.0, progress=False)
    verify(whole, model)
    verify(pairs, model)
    assert (pairs.lips <= 2**0.5 * whole.lip * (1.0 + 1e-3)).all()
    assert (pairs.lips >= [b.sampled_lower for b in pairs.bounds]).all()


def test_images(model: nn.Sequential) -> None:
    conv = nn.Sequential(
        nn.Conv2d(1, 4, 3), MaxMin(), nn.Flatten(), nn.Linear(36, 4), HalfAbs(), nn.Linear(4, 2)
    )
    certificate = certify(conv, (1, 5, 5))
    verify(certificate, conv)
    assert certificate.sampled_lower <= certificate.lip <= certificate.norm_product


def test_radii_enclose_the_logits(model: nn.Sequential) -> None:
    x = torch.randn(200, 6)
    with torch.no_grad():
        y = model(x).argmax(1)
        certificate = certify(model)
        radii = certified_radii(model, x, y, certificate=certificate)
        top = model(x).topk(2, dim=1).values
    expected = (top[:, 0] - top[:, 1]).double() / (2**0.5 * certificate.lip)
    assert torch.allclose(radii, expected, atol=1e-5)


def test_a_certificate_of_a_trained_size_takes_the_product_where_it_is_optimal() -> None:
    model = build_mlp(20, 4, ModelConfig((16, 8), "max_min"))  # orthogonal: all norms are 1
    certificate = certify(model)
    assert certificate.lip == pytest.approx(1.0, abs=1e-5)
    assert read_network(model).digest() == certificate.digest
