"""The penalised projection: the bound is chosen too.

    min_{p, s}  mu s + 1/2 sum m (p - v)^2    s.t.  ||B_s(p)||_2 <= 1,      s = L^2

(the problem's rho is divided out).  For fixed s this is the projection of ``splitting.py``, whose
optimal value h(s) is convex.  With its dual Z = penalty Y and X inside the ball,

    s h'(s) = -tau,      tau = 1/2 <Z, X> over the rows of the input.

For plain, free input weights ``tau = 1/2 <V_0 - W_0, W_0>``; with the dual it holds for any
metric, ties or held entries.  So the optimum solves mu s = tau(s):

1. project at the current s, warm-started and only as accurately as s deserves;
2. stop where the joint gap of (p, s) is small (``joint_gap``);
3. move log s by a secant step on log(tau / (mu s)), nearly linear in it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from ...lmi import implied_bound
from ...problem import ProjectProblem
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
# The inner gap is allowed this share of the last joint gap, at first this share of the objective.
INNER, FIRST_TOL = 0.1, 3e-3
LONGEST_STEP = 5.0
# Held entries that no s up to this multiple of the first one admits count as infeasible.
RAISED = 1e12


class Trial(NamedTuple):
    """One step of the search: ``log s`` and ``log(tau / (mu s))`` there."""

    log_s: float
    excess: float


def search(
    problem: ProjectProblem, mu: float, rule: Rule, warm: WarmBall | None
) -> tuple[Outcome, Coupling, float]:
    """Steps 1-3 of the module, with mu the weight on s where the distance has weight 1.

    Returns the last outcome (its ``gap`` is the joint one), its coupling and its ``s``.
    """
    lip_sq = warm.lip_sq if warm else _first_lip_sq(problem, mu)
    highest, coupling = RAISED * lip_sq, couple(problem, lip_sq)
    good = state = (warm.state(coupling) if warm else None) or first_state(coupling)
    centre, last = coupling.centre(), None
    least, spent, tol = -math.inf, 0, max(FIRST_TOL, rule.tol)
    for _ in range(SEARCH_STEPS):
        cost = mu * lip_sq
        outer = replace(rule, max_iterations=rule.max_iterations - spent, besides=cost)
        outcome = split(coupling, state, replace(outer, tol=tol), centre)
        spent += outcome.iterations
        share = input_share(coupling, outcome.state)
        gap = joint_gap(coupling, outcome, cost, share)
        empty = outcome.impossible and lip_sq > highest
        outcome = replace(outcome, gap=gap, iterations=spent, impossible=empty, converged=False)
        if accepts(coupling, outcome, outer):
            return replace(outcome, converged=True), coupling, lip_sq
        if spent >= rule.max_iterations or rule.expired or lip_sq > highest:
            break
        trial = Trial(math.log(lip_sq), math.log(max(share, TINY) / cost))
        if outcome.norm > 1.0:  # s is too small for the held entries
            least = trial.log_s
            step = 0.5 * (last.log_s - least) if last else LONGEST_STEP
        else:
            tol = max(min(INNER * gap / (cost + outcome.distance), 0.5 * tol), 0.25 * rule.tol)
            descent = _descent(share, cost, _input_size(coupling, outcome))
            step = _step(trial, last, descent, least)
            last, good = trial, outcome.state
        lip_sq = math.exp(trial.log_s + step)
        coupling = coupling.rescaled(math.exp(-0.5 * step))
        state = first_state(coupling)
        if last and not coupling.uniform:  # an infeasible trial leaves nothing to go on from
            state = _moved(good, coupling.inputs, math.sqrt(lip_sq / math.exp(last.log_s)))
    return outcome, coupling, lip_sq


def input_share(coupling: Coupling, state: State) -> float:
    """tau: half the trace, over the input, of the square root of Z Z'."""
    rows = slice(0, coupling.inputs)
    return 0.5 * state.penalty * float((state.excess[rows] * state.inside[rows]).sum())


def joint_gap(coupling: Coupling, outcome: Outcome, cost: float, share: float) -> float:
    """Gap of (values, s) in the joint problem; ``cost`` is mu s.

    The LMI's multiplier made of Z has trace ``share`` on the input block, in units where s is 1.
    Its input rows times k multiply that trace by k^2; with ``k^2 share <= cost`` the Lagrangian
    does not fall with s, and its value at s = 0 bounds the optimum from below.  The largest such k
    is best near the optimum; k = 1, where it is allowed, far from it.
    """
    state = outcome.state
    nuclear = state.penalty * outcome.nuclear
    most = math.sqrt(cost / share) if share > 0.0 else 1.0
    lower = -math.inf
    for k in {most, min(most, 1.0)}:
        dual = state.penalty * state.excess
        dual[: coupling.inputs] *= k
        lower = max(lower, coupling.dual_value(dual, nuclear - share))
    return cost + outcome.distance - lower


def _first_lip_sq(problem: ProjectProblem, mu: float) -> float:
    """One step of the search below the L^2 the anchor needs; where T proves none, its own norm."""
    unit = couple(problem, 1.0)
    anchor = unit.weights(unit.anchor)
    lip = implied_bound(anchor, problem.slopes, problem.multiplier)
    if 0.0 < lip < math.inf:
        cost = mu * lip**2
        return lip**2 * math.exp(_descent(0.0, cost, 0.5 * float(anchor[0].square().sum())))
    own = spectral_norm(unit.spread(unit.anchor)[: unit.inputs])
    return own**2 if own > 0 else 1.0


def _input_size(coupling: Coupling, outcome: Outcome) -> float:
    """``1/2 sum m W_0^2``."""
    rows = coupling.inputs if outcome.values[0].shape == coupling.shape else None
    first = outcome.values[0][:rows]
    return 0.5 * float((coupling.metric[0][:rows] * first.square()).sum())


def _descent(share: float, cost: float, size: float) -> float:
    """Step in log s to the best objective with ``W_0 / sqrt(s)`` and all other weights kept.

    They stay feasible, so the objective there is no better than the optimum for that s: the step
    never makes the penalised objective worse.
    """
    return 2.0 * math.log((share + size) / (cost + size)) if share + size > 0 else -LONGEST_STEP


def _step(now: Trial, last: Trial | None, descent: float, least: float) -> float:
    """Secant step on the log ratio, or the descent step where the ratio is still tiny.

    ``least`` is the largest log s known to be infeasible: at most half the way down to it.
    """
    step = descent
    if last is not None and now.excess > -1.0 and now.log_s != last.log_s:
        slope = (now.excess - last.excess) / (now.log_s - last.log_s)
        # tau falls at least like the square root of 1/s against mu s, up to inexact projections.
        step = -now.excess / slope if slope < -0.25 else descent
    step = min(max(step, -LONGEST_STEP), LONGEST_STEP)
    return step if now.log_s + step > least else 0.5 * (least - now.log_s)


def _moved(state: State, inputs: int, factor: float) -> State:
    """The state at ``factor`` times the L: the same weights and the same multiplier of the LMI."""
    inside, excess = state.inside.clone(), state.excess.clone()
    inside[:inputs] /= factor
    excess[:inputs] *= factor
    return State(inside, excess, state.penalty)
