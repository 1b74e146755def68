"""The native multiplier solve, judged by optimality conditions and by known constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import hat_net, load_npz_net, masked_constant, mixed_net, positive_net, random_net
from torch import Tensor

from admm_lip.solvers.config import SolverConfig
from admm_lip.solvers.lmi import implied_bound
from admm_lip.solvers.native.interior import interior_point
from admm_lip.solvers.native.lmi.block_cholesky import Band
from admm_lip.solvers.native.lmi.checkpoints import Trouble
from admm_lip.solvers.native.lmi.closed_forms import best_start
from admm_lip.solvers.native.lmi.dual_repair import repaired_value
from admm_lip.solvers.native.lmi.lmi_operator import LmiOperator
from admm_lip.solvers.problem import CertifyProblem, Slopes, unit_slopes
from admm_lip.solvers.proving import proving
from admm_lip.solvers.reduction import reduce_certify
from admm_lip.solvers.registry import backend
from admm_lip.solvers.solution import CertifyClaim, Status

TIGHT = SolverConfig(tol=1e-9)
USUAL = SolverConfig()


def problem_of(weights: Sequence[Tensor], low: float = 0.0, high: float = 1.0) -> CertifyProblem:
    slopes = tuple(
        Slopes(torch.full_like(s.alpha, low), torch.full_like(s.beta, high))
        for s in unit_slopes(weights)
    )
    return CertifyProblem(tuple(weights), slopes)


def signed(widths: Sequence[int], seed: int = 0) -> list[Tensor]:
    return [torch.as_tensor(w) for w in random_net(widths, seed).weights]


def solved(problem: CertifyProblem, config: SolverConfig = USUAL) -> CertifyClaim:
    return interior_point.certify(reduce_certify(problem).problem, config)


def assert_proven(
    problem: CertifyProblem, config: SolverConfig = USUAL, gap: float | None = None
) -> float:
    """Solve, check every claim against its recomputation, and return the bound of the original."""
    reduced = reduce_certify(problem)
    claim = interior_point.certify(reduced.problem, config)
    assert claim.status is Status.OPTIMAL, claim.message
    assert claim.multiplier is not None
    measured = implied_bound(reduced.problem.weights, reduced.problem.slopes, claim.multiplier)
    assert measured**2 == pytest.approx(claim.lip_sq, rel=1e-12)
    assert (claim.lip_sq - claim.lower_lip_sq) <= (gap or config.tol) * claim.lip_sq
    assert claim.lower_lip_sq <= claim.lip_sq * (1 + 1e-9)
    # A boundary point may prove nothing once lifted: it is moved inside as for any caller.
    _, lip = proving(problem, reduced.lift(claim.multiplier))
    assert lip == pytest.approx(math.exp(reduced.log_scale) * measured, rel=1e-6)
    return lip


def test_the_hat_function_has_constant_one() -> None:
    hat = problem_of([torch.as_tensor(w) for w in hat_net().weights])
    assert assert_proven(hat, TIGHT) == pytest.approx(1.0, rel=1e-8)


@pytest.mark.parametrize("widths", [(30, 40, 20, 5), (5, 60, 1, 30, 4), (1, 1, 1), (40,) * 11])
def test_nonnegative_weights_give_the_norm_of_the_product(widths: tuple[int, ...]) -> None:
    net = positive_net(widths, 0)
    lip = assert_proven(problem_of([torch.as_tensor(w) for w in net.weights]))
    assert lip == pytest.approx(net.lip, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_never_below_a_slope_that_masks_reach(seed: int) -> None:
    net = random_net((2, 4, 3, 2), seed)
    lip = assert_proven(problem_of([torch.as_tensor(w) for w in net.weights]))
    assert lip >= masked_constant(net.weights) * (1 - 1e-9)


@pytest.mark.parametrize("widths", [(3, 5, 4, 2), (4, 9, 3), (2, 3, 3, 3, 3, 1), (2, 3, 8)])
@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-0.13, 1.13), (0.2, 1.0), (-1.5, -0.5)])
def test_agrees_with_a_general_solver(widths: tuple[int, ...], slopes: tuple[float, float]) -> None:
    problem = problem_of(signed(widths, 3), *slopes)
    reduced = reduce_certify(problem).problem
    clarabel = backend("clarabel").certify(reduced, SolverConfig(tol=1e-8), None)
    assert solved(problem, TIGHT).lip_sq == pytest.approx(clarabel.lip_sq, rel=1e-6)


def test_a_range_of_its_own_for_every_neuron() -> None:
    net = mixed_net((4, 9, 7, 3), 5)
    slopes = tuple(Slopes(torch.as_tensor(a), torch.as_tensor(b)) for a, b in net.ranges)
    problem = CertifyProblem(tuple(torch.as_tensor(w) for w in net.weights), slopes)
    reduced = reduce_certify(problem).problem
    clarabel = backend("clarabel").certify(reduced, SolverConfig(tol=1e-8), None)
    assert solved(problem, TIGHT).lip_sq == pytest.approx(clarabel.lip_sq, rel=1e-6)


def test_known_slopes_make_the_network_linear() -> None:
    weights = signed((5, 7, 6, 3))
    product = weights[2] @ weights[1] @ weights[0]
    lip = assert_proven(problem_of(weights, 1.0, 1.0))
    assert lip == pytest.approx(float(torch.linalg.matrix_norm(product, 2)), rel=1e-6)


def test_linear_dead_and_ordinary_neurons_side_by_side() -> None:
    weights = signed((6, 20, 20, 4), 2)
    alpha = torch.tensor([0.0, 0.0, 1.0, -0.2]).repeat(5).double()
    beta = torch.tensor([1.0, 0.0, 1.0, 1.1]).repeat(5).double()
    problem = CertifyProblem(tuple(weights), (Slopes(alpha, beta),) * 2)
    lip = assert_proven(problem)
    wider = (Slopes(torch.clamp(alpha, max=0.0), torch.clamp(beta, min=1.0)),) * 2
    assert lip < assert_proven(CertifyProblem(tuple(weights), wider))


@pytest.mark.parametrize(
    ("name", "lipsdp", "exact"),
    [
        ("iris_4x6x6x3_ReLU", 11.635340096, 11.634355134),
        ("abalone_9x16x16x1_ReLU", 11.225477581, 11.121602332),
        ("wine_11x12x12x1_ReLU", 1.846912715, 1.743369997),
    ],
)
def test_trained_networks(shared_data: Path, name: str, lipsdp: float, exact: float) -> None:
    weights, _ = load_npz_net(shared_data / "networks" / f"{name}.npz")
    lip = assert_proven(problem_of([torch.as_tensor(w) for w in weights]))
    assert lip == pytest.approx(lipsdp, rel=1e-5)
    assert lip >= exact


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=6),
    st.lists(st.integers(-8, 8), min_size=5, max_size=5),
    st.integers(0, 10**6),
)
def test_any_shape_and_scale(widths: list[int], exponents: list[int], seed: int) -> None:
    weights = [10.0**e * w for e, w in zip(exponents, signed(widths, seed), strict=False)]
    lip = assert_proven(problem_of(weights))
    plain = assert_proven(problem_of(signed(widths, seed)))
    scale = sum(exponents[: len(weights)])
    assert math.log10(lip) == pytest.approx(math.log10(plain) + scale, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_degenerate_rows_and_ranks(seed: int) -> None:
    weights = signed((6, 9, 9, 9, 12), seed)
    weights[0][1] = weights[0][0]
    weights[1][3], weights[1][:, 4] = 0.0, 0.0
    weights[2] = weights[2][:, :2] @ weights[2][:2]
    weights[3][:, 5] = weights[3][:, 6]
    assert_proven(problem_of(weights))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.lists(st.integers(-30, 0), min_size=8, max_size=8))
def test_dying_neurons_change_nothing(seed: int, exponents: list[int]) -> None:
    """Weight decay leaves rows of 1e-30 beside columns of 1e-4: as good as no neurons at all."""
    dead = signed((6, 20, 15, 4), seed)
    into, out = exponents[:4], exponents[4:]
    alive = [w.clone() for w in dead]
    for k in (0, 1):
        alive[k], alive[k + 1] = alive[k][4:], alive[k + 1][:, 4:]
        for i in range(4):
            dead[k][i] *= 10.0 ** min(into[i], -7)
            dead[k + 1][:, i] *= 10.0 ** min(out[i], -7)
    assert assert_proven(problem_of(dead)) == pytest.approx(
        assert_proven(problem_of(alive)), rel=1e-6
    )


def test_permuted_and_scaled_neurons_change_nothing() -> None:
    first, second, last = signed((5, 8, 7, 3), 4)
    order, scale = torch.randperm(8), torch.logspace(-5, 5, 8).double()
    moved = [scale[:, None] * first[order], second[:, order] / scale, last]
    lip = assert_proven(problem_of([first, second, last]), TIGHT)
    assert assert_proven(problem_of(moved), TIGHT) == pytest.approx(lip, rel=1e-8)


def test_a_transposed_chain_has_the_same_constant() -> None:
    weights = signed((5, 8, 7, 3), 4)
    back = [w.T.contiguous() for w in reversed(weights)]
    lip = assert_proven(problem_of(weights), TIGHT)
    assert assert_proven(problem_of(back), TIGHT) == pytest.approx(lip, rel=1e-8)


def test_an_affine_map_needs_no_multiplier() -> None:
    w = signed((5, 3))
    claim = solved(problem_of(w))
    assert claim.multiplier == ()
    assert claim.lip_sq == pytest.approx(1.0)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_an_iteration_limit_leaves_the_best_so_far(count: int) -> None:
    reduced = reduce_certify(problem_of(signed((20,) * 9))).problem
    start = best_start(reduced)
    assert start is not None
    claim = interior_point.certify(reduced, SolverConfig(max_iterations=count))
    assert claim.status is Status.LIMIT
    assert claim.iterations <= count
    assert claim.lip_sq <= start.lip_sq * (1 + 1e-9)
    assert 0.0 < claim.lower_lip_sq < claim.lip_sq


def test_a_time_limit_leaves_the_best_so_far() -> None:
    reduced = reduce_certify(problem_of(signed((20,) * 9))).problem
    claim = interior_point.certify(reduced, SolverConfig(time_limit=1e-9))
    assert claim.status is Status.LIMIT
    assert claim.multiplier is not None
    bound = implied_bound(reduced.weights, reduced.slopes, claim.multiplier)
    assert bound**2 == pytest.approx(claim.lip_sq)


def test_a_deep_chain_cut_short_still_proves_its_start() -> None:
    reduced = reduce_certify(problem_of(signed((8,) * 65))).problem
    claim = interior_point.certify(reduced, SolverConfig(max_iterations=1))
    assert claim.status is Status.LIMIT
    assert claim.multiplier is not None
    measured = implied_bound(reduced.weights, reduced.slopes, claim.multiplier)
    assert measured**2 == pytest.approx(claim.lip_sq)
    assert claim.lower_lip_sq <= claim.lip_sq < float("inf")


def test_an_unreachable_accuracy_is_said_to_be() -> None:
    claim = solved(problem_of(signed((20,) * 5)), SolverConfig(tol=1e-15))
    assert claim.status is Status.INACCURATE
    assert (claim.lip_sq - claim.lower_lip_sq) / claim.lip_sq < 1e-8


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([(0.0, 1.0), (-0.2, 1.1), (0.3, 1.0), (1.0, 1.0)]))
def test_any_repaired_band_is_a_lower_bound(seed: int, slopes: tuple[float, float]) -> None:
    problem = reduce_certify(problem_of(signed((4, 6, 5, 3), seed), *slopes)).problem
    generator = torch.Generator().manual_seed(seed)
    size = sum(problem.widths[:-1])
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    dense, at = root @ root.T, [0, *torch.tensor(problem.widths[:-1]).cumsum(0).tolist()]
    blocks = [slice(a, b) for a, b in pairwise(at)]
    band = Band(
        [dense[b, b] for b in blocks],
        [dense[b, a] for a, b in pairwise(blocks)],
    )
    lower = repaired_value(problem, band)
    assert 0.0 < lower <= interior_point.certify(problem, TIGHT).lip_sq * (1 + 1e-9)


@pytest.mark.parametrize("moved", [1e-3, 1e-2, 0.3])
def test_a_warm_start_ends_at_the_same_bound(moved: float) -> None:
    weights = signed((30, 20, 15, 5))
    before = reduce_certify(problem_of(weights))
    first = interior_point.certify(before.problem, USUAL)
    assert first.multiplier is not None
    old = before.lift(first.multiplier)
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]
    after = reduce_certify(
        problem_of(
            [w + moved * w.norm() * e / e.norm() for w, e in zip(weights, noise, strict=True)]
        )
    )
    cold = interior_point.certify(after.problem, USUAL)
    warm = interior_point.certify(after.problem, USUAL, after.restrict(old))
    assert warm.status is Status.OPTIMAL
    assert warm.lip_sq == pytest.approx(cold.lip_sq, rel=2e-6)
    loose = interior_point.certify(after.problem, SolverConfig(tol=1e-3), after.restrict(old))
    assert loose.status is Status.OPTIMAL
    if moved <= 1e-2:
        assert loose.iterations < warm.iterations < cold.iterations


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0, 1e-300, 1e300])
def test_a_useless_warm_start_does_no_harm(value: float) -> None:
    reduced = reduce_certify(problem_of(signed((6, 7, 5, 3)))).problem
    warm = tuple(torch.full((n,), value, dtype=torch.float64) for n in reduced.widths[1:-1])
    claim = interior_point.certify(reduced, USUAL, warm)
    assert claim.status is Status.OPTIMAL
    short = interior_point.certify(reduced, USUAL, warm[:1])
    assert short.status is Status.OPTIMAL


@pytest.mark.parametrize(
    ("widths", "slopes"),
    [([80] * 5, (0.0, 1.0)), ([80] * 5, (-0.3, 1.2)), ([20] * 16 + [4], (0.0, 1.0))],
)
def test_steps_in_single_precision_end_at_the_same_optimum(
    widths: list[int], slopes: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, dtypes = problem_of(signed(widths), *slopes), list[torch.dtype]()
    stepped = interior_point._stepped

    def noted(op: LmiOperator, *rest: Any) -> Any:
        dtypes.append(op.fixed.dtype)
        return stepped(op, *rest)

    monkeypatch.setattr(interior_point, "_stepped", noted)
    lip = assert_proven(problem)
    assert dtypes.count(torch.float32) > dtypes.count(torch.float64) > 0
    monkeypatch.setattr(interior_point, "_WORTH_SINGLE", math.inf)
    dtypes.clear()
    assert lip == pytest.approx(assert_proven(problem), rel=USUAL.tol)
    assert set(dtypes) == {torch.float64}


@pytest.mark.parametrize("part", ["first_pair", "refined"])
def test_where_single_precision_leads_nowhere_double_does(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = getattr(interior_point, part)

    def fails(op: LmiOperator, *rest: Any) -> Any:
        rough = part == "refined" or op.fixed.dtype == torch.float32
        return Trouble.NO_FACTOR if rough else done(op, *rest)

    problem = problem_of(signed([80] * 5))
    expected = assert_proven(problem)
    monkeypatch.setattr(interior_point, part, fails)
    assert assert_proven(problem) == pytest.approx(expected, rel=USUAL.tol)
    assert any("single precision" in line for line in solved(problem).decisions)


def test_rounding_ends_the_steps_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    # A gap that single precision never reaches.
    monkeypatch.setattr(interior_point, "ROUGH_GAP", 1e-12)
    claim = solved(problem_of(signed([80] * 5)))
    assert claim.status is Status.OPTIMAL
    assert claim.iterations < 60
