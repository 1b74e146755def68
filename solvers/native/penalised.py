"""The penalised projection: the bound is chosen too.

    min_{p, s}  mu s + 1/2 sum m (p - v)^2    s.t.  ||B_s(p)||_2 <= 1,      s = L^2

(the problem's rho is divided out).  For fixed s this is the projection of ``splitting.py``, whose
optimal value h(s) is convex.  With its dual Z = penalty Y and X inside the ball,

    s h'(s) = -tau,      tau = 1/2 <Z, X> over the rows of the input.

For plain, free input weights ``tau = 1/2 <V_0 - W_0, W_0>``; with the dual it holds for any
metric, ties or held entries.  So the optimum solves mu s = tau(s):

1. project at the current s, warm-started and only as accurately as s deserves;
2. stop where the joint gap of (p, s) is small (``joint_gap``);
3. move log s by a secant step on log(tau / (mu s)), nearly linear in it, inside its bracket.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from ..lmi import implied_bound
from ..problem import ProjectProblem
from .coupling import Coupling, couple
from .splitting import (
    TINY,
    Outcome,
    Rule,
    State,
    WarmBall,
    accepts,
    first_state,
    spectral_norm,
    split,
)

SEARCH_STEPS = 100
# Inner accuracy starts here and falls tenfold per step of the search, down to tol / 4.
FIRST_TOL = 1e-2
LONGEST_STEP = 2.0


class Trial(NamedTuple):
    """One step of the search: ``log s`` and ``log(tau / (mu s))`` there."""

    log_s: float
    excess: float


def search(
    problem: ProjectProblem, mu: float, rule: Rule, warm: WarmBall | None
) -> tuple[Outcome, Coupling, float]:
    """Steps 1-3 of the module; ``mu`` is already divided by the problem's rho.

    Args:
        warm: restart data of a problem nearby, or ``None``.

    Returns:
        The last outcome (its ``gap`` is the joint one), the coupling and the ``s`` it belongs to.
    """
    lip_sq = warm.lip_sq if warm else _first_lip_sq(problem)
    coupling = couple(problem, lip_sq)
    state = (warm.state(coupling) if warm else None) or first_state(coupling)
    centre = coupling.centre()
    low, high = -math.inf, math.inf
    last: Trial | None = None
    spent = 0
    for step in range(SEARCH_STEPS):
        inner = replace(
            rule,
            tol=max(rule.tol / 4.0, FIRST_TOL * 0.1**step),
            max_iterations=rule.max_iterations - spent,
            besides=mu * lip_sq,
        )
        outcome = split(coupling, state, inner, centre)
        spent += outcome.iterations
        share = input_share(coupling, outcome.state)
        gap = joint_gap(coupling, outcome, mu * lip_sq, share)
        outcome = replace(outcome, gap=gap, iterations=spent)
        outcome = replace(
            outcome, converged=accepts(coupling, outcome, replace(inner, tol=rule.tol))
        )
        over = spent >= rule.max_iterations or rule.expired
        if outcome.converged or outcome.impossible or over:
            break
        trial = Trial(math.log(lip_sq), math.log(max(share, TINY) / (mu * lip_sq)))
        low, high = (trial.log_s, high) if trial.excess > 0 else (low, trial.log_s)
        log_s = _next(trial, last, (low, high), _curvature(coupling, outcome) / max(share, TINY))
        factor = math.exp(0.5 * (log_s - trial.log_s))
        last, lip_sq = trial, math.exp(log_s)
        coupling = coupling.rescaled(1.0 / factor)
        moved = _moved(outcome.state, coupling.inputs, factor)
        state = first_state(coupling) if coupling.uniform else moved
    return outcome, coupling, lip_sq


def input_share(coupling: Coupling, state: State) -> float:
    """tau: half the trace, over the input, of the square root of Z Z'."""
    rows = slice(0, coupling.inputs)
    return 0.5 * state.penalty * float((state.excess[rows] * state.inside[rows]).sum())


def joint_gap(coupling: Coupling, outcome: Outcome, cost: float, share: float) -> float:
    """Gap of (values, s) in the joint problem; ``cost`` is mu s.

    The LMI's multiplier made of Z has trace ``share`` on the input block, in units where s is 1.
    Its input rows times k multiply that trace by k^2; with ``k^2 share <= cost`` the Lagrangian
    does not fall with s, and its value at s = 0 bounds the optimum from below.
    """
    state = outcome.state
    dual = state.penalty * state.excess
    nuclear = state.penalty * outcome.nuclear
    if share > 0.0:
        dual[: coupling.inputs] *= math.sqrt(min(cost / share, 4.0))
    lower = coupling.dual_value(dual, nuclear - share)
    return cost + outcome.distance - lower


def _first_lip_sq(problem: ProjectProblem) -> float:
    """The L^2 the anchor itself needs, or where T proves none, what its first weight needs."""
    unit = couple(problem, 1.0)
    anchor = unit.weights(unit.anchor)
    lip = implied_bound(anchor, problem.slopes, problem.multiplier)
    if 0.0 < lip < math.inf:
        return lip**2
    own = spectral_norm(unit.spread(unit.anchor)[: unit.inputs])
    return own**2 if own > 0 else 1.0


def _curvature(coupling: Coupling, outcome: Outcome) -> float:
    """``1/2 sum m W_0^2``: by how much tau falls per unit of log s, to first order."""
    rows = coupling.inputs if outcome.values[0].shape == coupling.shape else None
    first = outcome.values[0][:rows]
    return 0.5 * float((coupling.metric[0][:rows] * first.square()).sum())


def _next(now: Trial, last: Trial | None, bracket: tuple[float, float], steepness: float) -> float:
    """Secant step, or one with the predicted slope ``-(1 + steepness)``; kept in the bracket."""
    slope = -(1.0 + min(steepness, 1e6))
    if last is not None and now.log_s != last.log_s:
        seen = (now.excess - last.excess) / (now.log_s - last.log_s)
        slope = seen if seen < -0.25 else slope
    step = min(max(-now.excess / slope, -LONGEST_STEP), LONGEST_STEP)
    target, (low, high) = now.log_s + step, bracket
    if low < target < high:
        return target
    return 0.5 * (low + high) if math.isfinite(high - low) else target


def _moved(state: State, inputs: int, factor: float) -> State:
    """The state at another s: the same weights and the same multiplier of the LMI."""
    inside, excess = state.inside.clone(), state.excess.clone()
    inside[:inputs] /= factor
    excess[:inputs] *= factor
    return State(inside, excess, state.penalty)
