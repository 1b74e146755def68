"""From a problem to a measured solution: reduce, run the chain of backends, lift, measure.

Every backend gets the same reduced problem, so they compare fairly, and none is trusted: the bound
of a certification is recomputed from its multiplier, a projection's feasibility from its weights.
An answer that proves nothing counts as a failure, and the next backend of the chain is asked.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch

from .backend import Backend
from .config import SolverConfig
from .deadline import Deadline
from .devices import with_room
from .errors import SolveFailed, SolverUnavailable
from .lmi import ball_tiles
from .memory import keep_freed_memory
from .native.ball.splitting import WarmBall
from .phases import stopwatch
from .problem import CertifyProblem, Multiplier, ProjectProblem, Structure, Weights
from .projection_reduction import reduce_project
from .proving import proving
from .reduction import reduce_certify
from .registry import chain
from .side_by_side import stackable, stacked
from .solution import CertifyClaim, CertifySolution, ProjectClaim, ProjectSolution, Status
from .threads import as_many_threads_as_pay

# Share of the time limit that a second backend needs to be asked at all: building its problem may
# take longer than solving it.
_LEAST_SHARE = 0.5

_log = logging.getLogger("admm_lip")
_said: set[str] = set()

_Claim = TypeVar("_Claim", CertifyClaim, ProjectClaim)
_Solution = TypeVar("_Solution", CertifySolution, ProjectSolution)


@dataclass(frozen=True, eq=False)
class Warm:
    """Restart data of a projection: whose it is, and what that backend wants back."""

    backend: str
    data: Any


# What a projection may hand from one solve to the next: plain data, safe to store and restore.
RESTART_TYPES = (Warm, WarmBall)


@dataclass(frozen=True, eq=False)
class _Task(Generic[_Claim, _Solution]):
    """One solve as the chain sees it.

    Attributes:
        problem: what was asked.
        ask: the claim of a backend under a config, whose time limit is what is left.
        measure: ``(backend, claim, seconds)`` to a solution, or the reason why it is worth nothing.
        score: what a better solution has less of.
    """

    problem: CertifyProblem | ProjectProblem
    ask: Callable[[Backend, SolverConfig], _Claim]
    measure: Callable[[str, _Claim, float], _Solution | str]
    score: Callable[[_Solution], float]


def solve_certify(
    problem: CertifyProblem,
    config: SolverConfig | None = None,
    warm: Multiplier | None = None,
) -> CertifySolution:
    """The multiplier with the least implied bound that a backend finds, and that bound, measured.

    Args:
        problem: weights and slopes.
        config: the backend and its limits; default ``SolverConfig()``.
        warm: a multiplier near the solution, shapes as in the result; a backend may ignore it.

    Raises:
        UnknownBackend: ``config`` names a backend that does not exist.
        SolverUnavailable: the named backend cannot run here and there is no fallback.
        SolveFailed: no backend of the chain proved anything.

    Example:
        >>> import torch
        >>> from admm_lip.solvers import CertifyProblem, solve_certify, unit_slopes
        >>> hat = (torch.tensor([[1.0], [1.0]]).double(), torch.tensor([[1.0, -1.0]]).double())
        >>> round(solve_certify(CertifyProblem(hat, unit_slopes(hat))).lip, 5)
        1.0
    """
    config = config or SolverConfig()
    with stopwatch() as phases, as_many_threads_as_pay(problem.widths[1:-1]):
        solution = with_room(lambda p, w: _certify(p, config, w), problem, warm, config.device)
    return replace(solution, phases=phases)


def _certify(
    problem: CertifyProblem, config: SolverConfig, warm: Multiplier | None
) -> CertifySolution:
    if stackable(problem, config):
        (found,) = stacked([problem], config.tol, warm)
        if found is not None:
            return found
    keep_freed_memory()
    deadline = Deadline(config.time_limit)
    reduced = reduce_certify(problem)
    start = None if warm is None else reduced.restrict(warm)
    scale = math.exp(min(reduced.log_scale, 709.0))  # beyond that nothing finite is proven

    def ask(backend: Backend, limited: SolverConfig) -> CertifyClaim:
        return backend.certify(reduced.problem, limited, start)

    def measure(name: str, claim: CertifyClaim, seconds: float) -> CertifySolution | str:
        if claim.multiplier is None:
            return "no multiplier came back"
        multiplier, lip = proving(problem, reduced.lift(claim.multiplier))
        if not math.isfinite(lip):
            return "the multiplier that came back proves no bound"
        return CertifySolution(
            status=claim.status,
            backend=name,
            multiplier=multiplier,
            lip=lip,
            lower_lip=scale * math.sqrt(max(claim.lower_lip_sq, 0.0)),
            claimed_lip=scale * _root(claim.lip_sq),
            iterations=claim.iterations,
            seconds=seconds,
            message=claim.message,
            decisions=claim.decisions,
        )

    task = _Task(problem, ask, measure, lambda s: s.lip)
    return _run(task, config, deadline, sum(reduced.problem.widths[:-1]))


def solve_project(
    problem: ProjectProblem, config: SolverConfig | None = None, warm: Any = None
) -> ProjectSolution:
    """The nearest weights under the LMI that a backend finds, made feasible, and measured.

    Args:
        problem: anchor, slopes, multiplier, and ``bound`` or ``mu``.
        config: the backend and its limits; default ``SolverConfig()``.
        warm: ``warm`` of an earlier solution; used by the backend that it came from.

    Raises:
        UnknownBackend: ``config`` names a backend that does not exist.
        SolverUnavailable: the named backend cannot run here and there is no fallback.
        SolveFailed: no backend of the chain came back with weights that are feasible.

    Example:
        >>> import torch
        >>> from admm_lip.solvers import ProjectProblem, solve_project
        >>> anchor = (torch.diag(torch.tensor([3.0, 0.5]).double()),)
        >>> solve_project(ProjectProblem(anchor, (), (), bound=2.0)).weights[0].diag().tolist()
        [2.0, 0.5]
    """
    config = config or SolverConfig()
    with stopwatch() as phases:
        solution = with_room(lambda p, w: _project(p, config, w), problem, warm, config.device)
    return replace(solution, phases=phases)


def _project(problem: ProjectProblem, config: SolverConfig, warm: Any) -> ProjectSolution:
    keep_freed_memory()
    deadline = Deadline(config.time_limit)
    reduced = reduce_project(problem)

    def ask(backend: Backend, limited: SolverConfig) -> ProjectClaim:
        own = isinstance(warm, Warm) and warm.backend == backend.name
        return backend.project(reduced.problem, limited, warm.data if own else None)

    def measure(name: str, claim: ProjectClaim, seconds: float) -> ProjectSolution | str:
        if claim.weights is None:
            return "no weights came back"
        # The reduction is an isometry, so norm, distance and objective may be measured before it
        # is undone, where the matrices are small.
        measured = _measure_projection(reduced.problem, claim, name, seconds)
        if isinstance(measured, str):
            return measured
        return replace(measured, weights=reduced.lift(measured.weights))

    task = _Task(problem, ask, measure, lambda s: s.objective)
    return _run(task, config, deadline, sum(reduced.problem.widths))


def _root(square: float) -> float:
    """Square root that lets NaN through and takes rounding below zero for zero."""
    return math.sqrt(max(square, 0.0)) if square == square else square


def _measure_projection(
    problem: ProjectProblem, claim: ProjectClaim, name: str, seconds: float
) -> ProjectSolution | str:
    """A claim's weights made feasible and measured, or the reason why that cannot be done."""
    assert claim.weights is not None
    lip_sq = problem.bound**2 if problem.bound is not None else claim.lip_sq
    if not (math.isfinite(lip_sq) and lip_sq > 0.0):
        return f"the L^2 that came back is {lip_sq!r}"
    if not all(bool(torch.isfinite(w).all()) for w in claim.weights):
        return "the weights that came back are not finite"
    weights, norm = make_feasible(problem, _held_exactly(problem, claim.weights), lip_sq)
    if norm > 1.0:
        return f"the weights that came back are infeasible, ball norm {norm:.9g}, beyond repair"
    moved = apart = _distance_sq(problem.anchor, weights, ())
    if problem.structure:
        moved = _distance_sq(problem.anchor, weights, problem.structure)
    return ProjectSolution(
        status=claim.status,
        backend=name,
        weights=weights,
        lip_sq=lip_sq,
        distance=math.sqrt(apart),
        ball_norm=norm,
        objective=(problem.mu or 0.0) * lip_sq + 0.5 * problem.rho * moved,
        iterations=claim.iterations,
        seconds=seconds,
        message=claim.message,
        warm=Warm(name, claim.warm),
    )


def _distance_sq(a: Weights, b: Weights, structure: Sequence[Structure]) -> float:
    """``sum_k ||A_k - B_k||_F^2``, each entry weighted by its metric."""
    total = 0.0
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        metric = structure[k].metric if structure else None
        if metric is None:
            total += float(torch.dist(x, y)) ** 2
        else:
            total += float((metric * (x - y).square()).sum())
    return total


def ball_norm(
    problem: ProjectProblem, weights: Weights, lip_sq: float, up_to_one: bool = False
) -> float:
    """``||B(W)||_2`` for the problem's multiplier: at most 1 where ``M(lip_sq, W, T) >= 0``.

    With ``up_to_one`` it may be 1 where it is less (``Ball.norm_up_to_one``).
    """
    if not problem.multiplier:
        return float(torch.linalg.matrix_norm(weights[0], 2)) / math.sqrt(lip_sq)
    n_in, n_out = problem.widths[0], problem.widths[-1]
    ball = ball_tiles(problem.slopes, problem.multiplier, lip_sq, n_in, n_out)
    return ball.norm_up_to_one(weights) if up_to_one else ball.norm(weights)


def make_feasible(
    problem: ProjectProblem, weights: Weights, lip_sq: float
) -> tuple[Weights, float]:
    """Shrink the free entries until ``||B(W)|| <= 1``; the weights and their measured norm.

    B is linear in W, so with H the weights whose free entries are zero, ``h = ||B(H)|| < 1`` and
    ``n = ||B(W)|| > 1``, the point ``H + theta (W - H)`` is feasible for ``theta = (1-h)/(n-h)``.
    Without held entries H is zero and theta is 1/n.  Where ``h >= 1`` the norm returned exceeds 1.
    """
    norm = ball_norm(problem, weights, lip_sq, up_to_one=True)
    if norm <= 1.0:
        return weights, norm
    kept = _held_part(problem, weights)
    floor = ball_norm(problem, kept, lip_sq)
    if floor >= 1.0:
        return weights, norm
    # The measured norm carries rounding of its own, so the target is a few units below 1.
    theta = (1.0 - 1e-14 * len(weights) - floor) / (norm - floor)
    for _ in range(4):
        shrunk = tuple(h + theta * (w - h) for h, w in zip(kept, weights, strict=True))
        norm = ball_norm(problem, shrunk, lip_sq)
        if norm <= 1.0:
            break
        theta *= 1.0 - 1e-13
    return shrunk, norm


def _held_exactly(problem: ProjectProblem, weights: Weights) -> Weights:
    """The weights with what is held at its anchor to the bit: some backends only come near it."""
    if not problem.structure:
        return weights
    rows = zip(weights, problem.anchor, problem.structure, strict=True)
    return tuple(w if s.held is None else torch.where(s.held, v, w) for w, v, s in rows)


def _held_part(problem: ProjectProblem, weights: Weights) -> Weights:
    """The weights with every entry zero that is not held at its anchor."""
    if not problem.structure:
        return tuple(torch.zeros_like(w) for w in weights)
    return tuple(
        torch.zeros_like(w) if s.held is None else torch.where(s.held, w, 0.0)
        for w, s in zip(weights, problem.structure, strict=True)
    )


def _run(
    task: _Task[_Claim, _Solution], config: SolverConfig, deadline: Deadline, order: int
) -> _Solution:
    """Ask the backends of the chain in turn; the first answer that measures well is returned.

    An answer cut off by the limit is kept while the rest of the chain tries to better it, in what
    is left of the time and if that is enough to begin.
    """
    backends = chain(config.name, config.fallback, order)
    attempts: list[str] = []
    kept: list[_Solution] = []
    for backend in backends:
        if attempts and deadline.seconds_left < _LEAST_SHARE * (config.time_limit or 0.0):
            attempts.append(f"{backend.name}: not asked, the time limit leaves too little")
            continue
        limited = replace(config, time_limit=deadline.limit())
        outcome = _attempt(task, backend, limited, alone=len(backends) == 1)
        if isinstance(outcome, str):
            attempts.append(f"{backend.name}: {outcome}")
            continue
        kept.append(outcome)
        if outcome.status is not Status.LIMIT or config.time_limit is None:
            break
        attempts.append(f"{backend.name}: {outcome.status.value}")
    if not kept:
        raise SolveFailed(
            f"solver {config.name!r}: no backend came to a usable answer; {'; '.join(attempts)}; "
            "to report it, send the file of admm_lip.solvers.save_problem(error.problem, path)",
            task.problem,
        )
    best = min(kept, key=task.score)
    if best.backend != backends[0].name:
        _say(f"solver {config.name!r}: used {best.backend!r} instead; " + "; ".join(attempts))
    return best


def _say(line: str) -> None:
    """Log a line as a warning the first time only: a training run falls back in every round."""
    _log.log(logging.DEBUG if line in _said else logging.WARNING, line)
    _said.add(line)


def _attempt(
    task: _Task[_Claim, _Solution], backend: Backend, config: SolverConfig, alone: bool
) -> _Solution | str:
    """One backend's measured solution, or why there is none.

    Raises:
        SolverUnavailable: when the backend cannot run here and is the only one (``alone``).
    """
    found = backend.availability()
    if not found.usable:
        if alone:
            raise SolverUnavailable(f"solver {backend.name!r} is unavailable: {found.reason}")
        return f"unavailable ({found.reason})"
    begin = time.perf_counter()
    try:
        claim = task.ask(backend, config)
    except SolverUnavailable as error:
        if alone:
            raise
        return f"unavailable ({error})"
    if not claim.status.usable:
        return f"{claim.status.name.lower()} ({claim.message or claim.status.value})"
    outcome = task.measure(backend.name, claim, time.perf_counter() - begin)
    return f"{outcome} ({claim.message})" if isinstance(outcome, str) and claim.message else outcome
