"""Every trouble of a solve meets one decision, which the solution can tell; and where time went."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch

from admm_lip.solvers import (
    CertifyProblem,
    CertifySolution,
    SolverConfig,
    Status,
    solve_certify,
    unit_slopes,
)
from admm_lip.solvers.native.interior import centring, interior_point
from admm_lip.solvers.native.lmi import costs
from admm_lip.solvers.native.lmi.checkpoints import Action, Checkpoint, Stage, Trouble
from admm_lip.solvers.native.lmi.progress import Progress
from admm_lip.solvers.phases import phase, stopwatch

# Under a limit, a small network too is solved by the form that has checkpoints.
NATIVE = SolverConfig("native", fallback=(), max_iterations=1000)


def network(*sizes: int) -> CertifyProblem:
    generator = torch.Generator().manual_seed(0)
    weights = tuple(
        torch.randn(m, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
        for n, m in pairwise(sizes)
    )
    return CertifyProblem(weights, unit_slopes(weights))


NET = network(6, 8, 8, 3)


def told(found: CertifySolution) -> list[str]:
    """The decisions but for shorter steps, which are all in a day's work."""
    return [line for line in found.decisions if Action.SHORTEN.value not in line]


def test_a_solve_that_goes_as_planned_decides_nothing() -> None:
    assert told(solve_certify(NET, NATIVE)) == []


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("trouble", Trouble)
def test_every_trouble_has_a_decision_in_words(stage: Stage, trouble: Trouble) -> None:
    found = Checkpoint.at(stage, trouble)
    assert (found.action is Action.SHORTEN) == (trouble is Trouble.OUTSIDE)
    assert str(found) == f"{stage.value}: {trouble.value}; {found.action.value}"


def answering(answers: Sequence[Any]) -> Any:
    """A function that gives these answers, then calls what it was put in the place of."""
    real, left = centring.newton_step, list(answers)
    return lambda *arguments: left.pop(0) if left else real(*arguments)


@pytest.mark.parametrize("trouble", [Trouble.NO_FACTOR, Trouble.ROUNDING])
def test_where_centring_breaks_down_the_rest_goes_on_without_the_matrix(
    monkeypatch: pytest.MonkeyPatch, trouble: Trouble
) -> None:
    usual = solve_certify(NET, NATIVE)
    monkeypatch.setattr(interior_point, "first_pair", lambda *_: Trouble.NO_FACTOR)
    monkeypatch.setattr(centring, "newton_step", answering([trouble]))
    found = solve_certify(NET, NATIVE)
    assert str(Checkpoint(Stage.COLD, trouble, Action.WITHOUT_MATRIX)) in found.decisions
    assert usual.lip <= found.lip <= 1.05 * usual.lip
    assert found.lower_lip <= usual.lip * (1.0 + 1e-9)


def test_where_centring_is_too_slow_a_more_cautious_start_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = solve_certify(NET, NATIVE)
    real, begun = centring.centre, []

    def first_too_slow(op: Any, y: torch.Tensor, run: Progress) -> Any:
        begun.append(y)
        return Trouble.SLOW if len(begun) == 1 else real(op, y, run)

    monkeypatch.setattr(interior_point, "first_pair", lambda *_: Trouble.NO_FACTOR)
    monkeypatch.setattr(interior_point, "centre", first_too_slow)
    found = solve_certify(NET, NATIVE)
    assert len(begun) == 2 and float(begun[0][0]) < float(begun[1][0])
    assert told(found) == [str(Checkpoint(Stage.COLD, Trouble.SLOW, Action.OTHER_START))]
    assert found.status is Status.OPTIMAL and found.lip == pytest.approx(usual.lip, rel=1e-6)


def test_where_steps_from_an_infeasible_pair_stop_early_they_begin_at_the_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual, real, begun = solve_certify(NET, NATIVE), interior_point.follow, []

    def first_stops(op: Any, pair: Any, *rest: Any) -> Any:
        begun.append(pair)
        return pair if len(begun) == 1 else real(op, pair, *rest)

    monkeypatch.setattr(interior_point, "follow", first_stops)
    found = solve_certify(NET, NATIVE)
    assert len(begun) == 2 and "0 centring" in usual.message != found.message
    assert found.status is Status.OPTIMAL and found.lip == pytest.approx(usual.lip, rel=1e-6)


def test_centring_that_does_not_come_nearer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    op = interior_point.operator_of(NET, torch.zeros(16).double())
    start = interior_point.best_start(NET)
    assert start is not None
    y = 2.0 * torch.cat([torch.tensor([start.lip_sq]).double(), torch.cat(start.multiplier)])
    monkeypatch.setattr(centring, "newton_step", lambda *_: step)
    step = centring.NewtonStep(0.0 * y, 1.7, 1.0, y, y)  # type: ignore[arg-type]
    monkeypatch.setattr(centring, "_damped", lambda op, y, factor, *_: (y, factor))
    run = Progress(SolverConfig())
    assert centring.centre(op, y, run) is Trouble.SLOW
    assert run.centring < 30


def test_limits_warm_starts_and_size_are_told() -> None:
    limited = solve_certify(NET, SolverConfig("native", fallback=(), max_iterations=5))
    assert limited.status is Status.LIMIT
    assert any("a limit was reached" in line for line in limited.decisions)
    useless = tuple(torch.full((8,), math.nan).double() for _ in range(2))
    found = solve_certify(NET, NATIVE, useless)
    assert told(found) == [str(Checkpoint.at(Stage.WARM, Trouble.USELESS))]


def test_a_network_too_large_for_the_matrix_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "DENSE_LIMIT", 5)
    found = solve_certify(NET, NATIVE)
    assert str(Checkpoint.at(Stage.COLD, Trouble.TOO_LARGE)) in found.decisions
    assert "would cost too much" in found.summary()


def test_steps_are_shortened_down_to_the_least_and_counted() -> None:
    run, tried = Progress(SolverConfig()), []

    def attempt(length: float) -> str | None:
        tried.append(length)
        return "there" if length < 0.3 else None

    assert run.shortened(Stage.DENSE, 1.0, 0.5, 0.1, attempt) == "there"
    assert tried == [1.0, 0.5, 0.25]
    assert run.shortened(Stage.DENSE, 1.0, 0.5, 0.5, attempt) is Trouble.SHORT
    assert run.decisions() == (
        "primal-dual steps: a step left the feasible set; took a shorter step (3 times)",
    )


def test_phases_add_up_and_count_for_themselves() -> None:
    @phase("inner")
    def inner() -> None:
        time.sleep(0.02)

    @phase("outer")
    def outer() -> None:
        inner()
        raise KeyError

    begun = time.perf_counter()
    with stopwatch() as seconds:
        with pytest.raises(KeyError):
            outer()
        with stopwatch() as nested:
            inner()
    whole = time.perf_counter() - begun
    assert seconds["inner"] >= 0.02
    assert seconds["outer"] <= whole - 0.04
    assert set(nested) == {"inner", "other"}
    assert sum(seconds.values()) <= whole
    inner()
    assert set(seconds) == {"inner", "outer", "other"}


def test_a_solution_says_where_its_time_went() -> None:
    begun = time.perf_counter()
    found = solve_certify(NET, NATIVE)
    whole = time.perf_counter() - begun
    assert found.seconds <= sum(found.phases.values()) <= whole
    assert {"set-up", "closed forms", "factorisation", "products", "step length"} <= set(
        found.phases
    )
    lines = found.summary().splitlines()
    assert "solved to the requested accuracy" in lines[0]
    assert sum("%" in line for line in lines) == len(found.phases)
