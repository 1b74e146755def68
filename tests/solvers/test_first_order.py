"""Descent on the implied bound, and the claims made for networks that are too large for more."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from oracles import mixed_net, positive_net, random_net

from admm_lip.solvers import deadline as deadline_module
from admm_lip.solvers.config import SolverConfig
from admm_lip.solvers.lmi import implied_bound
from admm_lip.solvers.native.interior import interior_point
from admm_lip.solvers.native.large import first_order, without_schur
from admm_lip.solvers.native.large.first_order import Value, descend, evaluate
from admm_lip.solvers.native.lmi import costs
from admm_lip.solvers.native.lmi.block_cholesky import band_of, factorize, inverse, inverse_band
from admm_lip.solvers.native.lmi.closed_forms import (
    Start,
    best_start,
    norm_of_gram,
    searched_starts,
    theta_start,
)
from admm_lip.solvers.native.lmi.lmi_operator import LmiOperator
from admm_lip.solvers.native.lmi.progress import Progress
from admm_lip.solvers.problem import CertifyProblem, Multiplier, Slopes, unit_slopes
from admm_lip.solvers.reduction import reduce_certify
from admm_lip.solvers.solution import Status


def mixed(widths: tuple[int, ...], seed: int) -> CertifyProblem:
    net = mixed_net(widths, seed)
    slopes = tuple(Slopes(torch.as_tensor(a), torch.as_tensor(b)) for a, b in net.ranges)
    problem = CertifyProblem(tuple(torch.as_tensor(w) for w in net.weights), slopes)
    return reduce_certify(problem).problem


def plain(widths: tuple[int, ...], seed: int = 0, positive: bool = False) -> CertifyProblem:
    net = positive_net(widths, seed) if positive else random_net(widths, seed)
    weights = tuple(torch.as_tensor(w) for w in net.weights)
    return reduce_certify(CertifyProblem(weights, unit_slopes(weights))).problem


def started(problem: CertifyProblem) -> Multiplier:
    start = best_start(problem)
    assert start is not None
    return start.multiplier


@pytest.mark.parametrize("seed", range(3))
def test_the_derivative_is_that_of_the_implied_bound(seed: int) -> None:
    problem = mixed((4, 6, 5, 3), seed)
    multiplier = tuple(1.3 * t for t in started(problem))
    found = evaluate(problem, multiplier)
    assert found is not None
    bound = implied_bound(problem.weights, problem.slopes, multiplier)
    assert found.lip_sq == pytest.approx(bound**2, rel=1e-10)
    generator = torch.Generator().manual_seed(seed)
    way = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in multiplier]
    ends = []
    for sign in (1e-6, -1e-6):
        moved = tuple(t * torch.exp(sign * d) for t, d in zip(multiplier, way, strict=True))
        ends.append(2.0 * math.log(implied_bound(problem.weights, problem.slopes, moved)))
    slope = (ends[0] - ends[1]) / 2e-6
    assert float(found.gradient @ torch.cat(way)) == pytest.approx(slope, rel=1e-5)


def test_descent_comes_close_on_a_shallow_network_and_never_goes_up() -> None:
    problem = plain((30, 20, 20, 5))
    start = started(problem)
    multiplier = descend(problem, start, Progress(SolverConfig()))
    lip = implied_bound(problem.weights, problem.slopes, multiplier)
    best = interior_point.certify(problem, SolverConfig()).lip_sq ** 0.5
    assert best * (1 - 1e-6) <= lip <= best * (1 + 1e-3)
    stopped = descend(problem, start, Progress(SolverConfig(max_iterations=1)))
    lip = implied_bound(problem.weights, problem.slopes, stopped)
    assert lip <= implied_bound(problem.weights, problem.slopes, start) * (1 + 1e-12)


@pytest.mark.parametrize("positive", [False, True])
def test_beyond_the_dense_limit_both_bounds_still_hold(
    monkeypatch: pytest.MonkeyPatch, positive: bool
) -> None:
    problem = plain((12,) * 9, 1, positive)
    exact = interior_point.certify(problem, SolverConfig())
    monkeypatch.setattr(costs, "DENSE_LIMIT", 50)
    claim = interior_point.certify(problem, SolverConfig())
    assert claim.multiplier is not None
    measured = implied_bound(problem.weights, problem.slopes, claim.multiplier)
    assert claim.lip_sq == pytest.approx(measured**2, rel=1e-12)
    assert claim.lip_sq >= exact.lower_lip_sq
    assert 0.0 < claim.lower_lip_sq <= exact.lip_sq
    assert claim.lip_sq <= exact.lip_sq * (1 + 1e-6)
    assert claim.status is Status.OPTIMAL
    monkeypatch.setattr(costs, "PAIR_WORK", 0.0)  # as for layers too wide for the iteration
    wide = interior_point.certify(problem, SolverConfig())
    assert 0.0 < wide.lower_lip_sq <= exact.lip_sq * (1 + 1e-9)
    assert exact.lower_lip_sq <= wide.lip_sq < 1.1 * exact.lip_sq
    assert wide.status is Status.INACCURATE
    limited = interior_point.certify(problem, SolverConfig(max_iterations=3))
    assert limited.status is Status.LIMIT
    assert limited.iterations == 3


def test_the_band_of_the_inverse_is_the_inverse_s_band() -> None:
    problem = mixed((4, 6, 5, 3), 1)
    op = LmiOperator(problem, torch.zeros(11).double())
    start = torch.cat(started(problem))
    y = torch.cat([torch.tensor([2.0]).double(), 2.0 * start])
    factor = factorize(op.slack(y))
    assert factor is not None
    band, dense = inverse_band(factor), band_of(inverse(factor), op.sizes)
    for mine, theirs in zip(band.diagonal + band.lower, dense.diagonal + dense.lower, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e-14, 1.0, 1e100])
def test_the_norm_of_a_large_gram_matrix_is_met_from_above(scale: float) -> None:
    root = torch.randn(400, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = float(torch.linalg.matrix_norm(root, 2)) ** 2
    norm = norm_of_gram(scale * (root @ root.T)) / scale
    assert exact * (1 - 1e-9) <= norm <= exact * 1.1


def test_the_norm_of_a_zero_gram_matrix_is_zero() -> None:
    assert norm_of_gram(torch.zeros(400, 400, dtype=torch.float64)) == 0.0


def test_a_descent_that_ends_in_rounding_leaves_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = plain((6, 8, 7, 3))
    lost = tuple(0.1 * t for t in started(problem))
    assert implied_bound(problem.weights, problem.slopes, lost) == float("inf")
    monkeypatch.setattr(costs, "DENSE_LIMIT", 1)
    monkeypatch.setattr(without_schur, "descend", lambda *_: lost)
    monkeypatch.setattr(costs, "PAIR_WORK", 0.0)
    claim = interior_point.certify(problem, SolverConfig())
    best = min(s.lip_sq for s in without_schur.large_starts(problem, Progress(SolverConfig())))
    assert claim.multiplier is not None
    assert claim.lip_sq == pytest.approx(best, rel=1e-6)
    proven = implied_bound(problem.weights, problem.slopes, claim.multiplier)
    assert proven**2 == pytest.approx(claim.lip_sq, rel=1e-12)


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> str:
        self.now += seconds
        return "done"


def test_work_that_would_not_fit_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(deadline_module, "perf_counter", clock)
    run = Progress(SolverConfig(time_limit=20.0))
    assert run.has_time(passes=100)  # nothing is known of them yet
    assert run.timed("passes", lambda: clock.spend(4.0)) == "done"
    assert run.timed("passes", lambda: clock.spend(1.0)) == "done"
    assert run.has_time(passes=3) and not run.has_time(passes=4)  # the longest counts: 4 s
    run.timed("pairs", lambda: clock.spend(8.0))
    assert run.may_go_on(passes=1) and not run.limited
    assert not run.may_go_on(passes=1, pairs=1) and run.limited
    assert not Progress(SolverConfig(max_iterations=1)).limited


def test_the_descent_leaves_time_for_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(deadline_module, "perf_counter", clock)

    def slow(problem: CertifyProblem, multiplier: Multiplier) -> Value | None:
        clock.spend(1.0)
        return evaluate(problem, multiplier)

    monkeypatch.setattr(first_order, "evaluate", slow)
    problem, run = plain((6, 8, 7, 3)), Progress(SolverConfig(time_limit=10.5))
    descend(problem, started(problem), run, reserve=3)
    assert run.iterations == 8 and run.limited and clock.now <= 10.5 - 2.0
    assert Progress(SolverConfig(time_limit=10.5)).may_go_on()
    capped = Progress(SolverConfig())
    descend(problem, started(problem), capped, most=4)
    assert capped.iterations == 4 and not capped.limited


def test_a_large_network_is_reported_within_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(deadline_module, "perf_counter", clock)

    def slow(problem: CertifyProblem, theta: float) -> Start | None:
        clock.spend(5.0)
        return theta_start(problem, theta)

    monkeypatch.setattr(without_schur, "theta_start", slow)
    monkeypatch.setattr(costs, "DENSE_LIMIT", 50)
    monkeypatch.setattr(costs, "PAIR_WORK", 0.0)
    problem = plain((12,) * 9, 1)
    claim = interior_point.certify(problem, SolverConfig(time_limit=30.0))
    assert clock.now <= 30.0 - 4 * 5.0  # passes are kept back for what follows the starts
    assert claim.status is Status.LIMIT and claim.iterations == 0
    assert claim.multiplier is not None
    measured = implied_bound(problem.weights, problem.slopes, claim.multiplier)
    assert claim.lip_sq == pytest.approx(measured**2, rel=1e-12) and measured < float("inf")


@pytest.mark.parametrize(("deep", "positive"), [((20,) * 21, False), ((20,) * 11, True)])
def test_the_search_in_theta_is_no_worse_than_the_fixed_ones(
    deep: tuple[int, ...], positive: bool
) -> None:
    problem = plain(deep, 2, positive)
    found = searched_starts(partial(theta_start, problem))
    assert len(found) >= 3
    fixed = best_of(problem)
    assert found[0].lip_sq <= fixed * 1.05
    assert implied_bound(problem.weights, problem.slopes, found[0].multiplier) < float("inf")


def best_of(problem: CertifyProblem) -> float:
    return min(s.lip_sq for t in (1.05, 1.2, 1.4) if (s := theta_start(problem, t)) is not None)
