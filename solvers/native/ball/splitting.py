"""Operator splitting for the nearest values inside the unit spectral ball.

    min_p  1/2 sum m (p - v)^2    s.t.  ||B(p)||_2 <= 1

With C = B(p) and a second copy X of it, Y the scaled dual, one iteration is

1. C = B of the values nearest to the anchor and to X - Y          (``Coupling.averager``)
2. A = relax C + (1 - relax) X + Y                                  (over-relaxation)
3. A = combination of the last A's whose change cancels best        (``Anderson.propose``);
   not in the first few iterations, which is all that most warm starts take
4. X = A with its singular values clipped at 1,  Y = A - X          (``clip_excess``)
5. now and then move the penalty so that the two residuals keep their best ratio (``_retuned``).

The stopping rule does not trust the residuals.  They only say when it is worth measuring the gap
between a feasible point (C, drawn towards the centre of the ball until its norm is 1) and the
value of the dual ``penalty * Y``, which is a lower bound on the optimum.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...phases import phase
from .anderson import Anderson
from .coupling import Coupling, Values

RELAX = 1.6
TINY = 1e-300
# First share of the tolerance that the relative residual must meet before the gap is measured.
SCREEN = 0.6
# Residuals below this are rounding: a gap that is still too wide will not close.
FINEST = 1e-14
# Iterations before steps are combined: a combination costs a quarter of one.
PLAIN = 6
# After so many iterations the gap is also measured whenever the penalty is looked at.
PATIENCE = 20
# Relative dual residual over relative primal residual, where convergence was found fastest (a scan
# over trained and random networks, multipliers spread over up to nine decades: 5 to 40).
BEST_RATIO, DRIFT, PACE = 12.0, 4.0, 10.0


class State(NamedTuple):
    """Where a splitting stands: X inside the ball, the scaled dual Y, its penalty."""

    inside: Tensor
    excess: Tensor
    penalty: float


@dataclass(frozen=True, eq=False)
class WarmBall:
    """Restart data: X and the scaled dual in B's coordinates, the penalty, and ``L^2``.

    B is scaled by the multiplier and the bound, so this fits any problem of the same shape nearby,
    at another anchor, multiplier, bound or mu; one of another shape ignores it.
    """

    inside: Tensor
    excess: Tensor
    penalty: float
    lip_sq: float

    def state(self, coupling: Coupling) -> State | None:
        """Where a splitting of ``coupling`` would go on; ``None`` where the shape is another."""
        if self.inside.shape != coupling.shape:
            return None
        device = coupling.anchor[0].device
        return State(self.inside.to(device), self.excess.to(device), self.penalty)


@dataclass(frozen=True)
class Rule:
    """When to stop: relative gap, iterations, and a time on the ``perf_counter`` clock.

    ``besides`` is the part of the objective that is not the distance: the gap is relative to both.
    """

    tol: float
    max_iterations: int
    deadline: float
    besides: float = 0.0

    @property
    def expired(self) -> bool:
        """Whether the time is up."""
        return time.perf_counter() > self.deadline


@dataclass(frozen=True, eq=False)
class Outcome:
    """Where a splitting ended.

    Attributes:
        values: inside the ball whenever ``norm <= 1``.
        norm: measured spectral norm of ``B(values)``.
        distance: ``1/2 sum m (values - v)^2``.
        gap: ``distance`` less a lower bound on the optimum.
        nuclear: nuclear norm of the state's excess.
        converged: whether the gap met the rule.
        impossible: whether the held values were proven to leave no point inside the ball.
    """

    state: State
    values: Values
    norm: float
    distance: float
    gap: float
    nuclear: float
    converged: bool = False
    impossible: bool = False
    iterations: int = 0


def gram(matrix: Tensor) -> Tensor:
    """The smaller of A'A and AA'."""
    return matrix.T @ matrix if matrix.shape[1] <= matrix.shape[0] else matrix @ matrix.T


def spectral_norm(matrix: Tensor) -> float:
    """``||A||_2`` from the smaller Gram matrix."""
    return math.sqrt(max(float(torch.linalg.eigvalsh(gram(matrix))[-1]), 0.0))


def is_inside(matrix: Tensor) -> bool:
    """Whether ``||A||_2 < 1``, by one Cholesky factorisation of I - A'A."""
    slack = gram(matrix).neg_()
    slack.diagonal().add_(1.0)
    return int(torch.linalg.cholesky_ex(slack)[1]) == 0


@phase("singular values")
def clip_excess(matrix: Tensor) -> tuple[Tensor, float]:
    """What clipping takes away: ``A - clip(A) = U (S - 1)_+ V'``, and its nuclear norm.

    From the eigenvectors of the smaller Gram matrix; only singular values above 1 take part.
    """
    tall = matrix.shape[1] <= matrix.shape[0]
    squares, vectors = torch.linalg.eigh(gram(matrix))
    above = squares.shape[0] - int(torch.searchsorted(squares, 1.0, right=True))
    if above == 0:
        return torch.zeros_like(matrix), 0.0
    singular = squares[-above:].sqrt()
    part = vectors[:, -above:]
    keep = 1.0 - 1.0 / singular
    excess = ((matrix @ part) * keep) @ part.T if tall else (part * keep) @ (part.T @ matrix)
    return excess, float(singular.sum()) - above


def first_state(coupling: Coupling) -> State:
    """A cold start: X = B(anchor) clipped, Y the excess.

    The penalty is the ratio of the two squared norms, ``sum m v^2 / ||B(v)||^2``: the metric as B
    sees it.  Where that metric is uniform and B has no zero tile this start is the solution.
    """
    c = coupling.spread(coupling.anchor)
    excess, _ = clip_excess(c)
    seen = float(c.square().sum())
    return State(c - excess, excess, 2.0 * coupling.size() / seen if seen > 0 else 1.0)


def restore(coupling: Coupling, values: Values, centre: Values) -> tuple[Values, float]:
    """The point of the segment from ``values`` to ``centre`` that is just inside the ball.

    With the norms n of the one and c < 1 of the other, ``(1 - c) / (n - c)`` of the way from the
    centre is inside by convexity.  Returns the point and (a bound on) the norm of its B.
    """
    norm = spectral_norm(coupling.spread(values))
    if norm <= 1.0:
        return values, norm
    inner = spectral_norm(coupling.spread(centre)) if coupling.held is not None else 0.0
    if inner >= 1.0:
        return values, norm
    # The last bits: the norm is itself computed.
    share = (1.0 - inner) / (norm - inner) * (1.0 - 1e-14 * coupling.shape[0])
    moved = tuple(c + share * (p - c) for p, c in zip(values, centre, strict=True))
    return moved, inner + share * (norm - inner)


@phase("measuring")
def measure(coupling: Coupling, state: State, nuclear: float, centre: Values) -> Outcome:
    """The feasible point of a state, and its gap to the dual's lower bound."""
    values = coupling.nearest(state.penalty, state.inside - state.excess)
    values, norm = restore(coupling, values, centre)
    distance = coupling.distance(values)
    lower = coupling.dual_value(state.penalty * state.excess, state.penalty * nuclear)
    return Outcome(state, values, norm, distance, distance - lower, nuclear)


def enough(coupling: Coupling, outcome: Outcome, rule: Rule) -> float:
    """The gap that proves the objective, or the values, to ``rule.tol`` relatively.

    By strong convexity ``1/2 sum m (p - p*)^2 <= gap``.
    """
    objective = rule.besides + outcome.distance
    return max(rule.tol * objective, (rule.tol**2 + 2e-15) * coupling.size())


def accepts(coupling: Coupling, outcome: Outcome, rule: Rule) -> bool:
    """Whether the outcome is feasible and its gap is small enough."""
    return outcome.norm <= 1.0 and outcome.gap <= enough(coupling, outcome, rule)


def proves_empty(coupling: Coupling, excess: Tensor, nuclear: float) -> bool:
    """Whether ``excess`` proves that no values with the held ones kept lie inside the ball.

    Inside, ``<excess, B(p)> <= nuclear``.  The held values' share of the left side is known, and
    the free ones' is at least ``-sum |gather(excess)| reach``.
    """
    if coupling.held is None:
        return False
    least = 0.0
    parts = zip(
        coupling.gather(excess), coupling.held, coupling.anchor, coupling.reach(), strict=True
    )
    for g, h, v, reach in parts:
        least += float(torch.where(h, g * v, -g.abs() * reach).sum())
    return least > nuclear * (1.0 + 1e-9)


def split(coupling: Coupling, start: State, rule: Rule, centre: Values) -> Outcome:
    """Run the splitting from ``start`` (the module's steps) until ``rule`` stops it."""
    state, nuclear, count = start, math.inf, 0
    average, memory = coupling.averager(state.penalty), Anderson(state.inside)
    screen, retune = max(SCREEN * rule.tol, FINEST), 3
    while count < rule.max_iterations and not rule.expired:
        count += 1
        state, nuclear, primal, dual = _step(state, average, memory if count > PLAIN else None)
        if max(primal, dual / BEST_RATIO) <= screen or (count == retune and count > PATIENCE):
            outcome = measure(coupling, state, nuclear, centre)
            if accepts(coupling, outcome, rule):
                return replace(outcome, converged=True, iterations=count)
            # The gap falls about as fast as the residual.
            shortfall = enough(coupling, outcome, rule) / max(outcome.gap, TINY)
            screen = min(screen, primal * min(max(shortfall, 0.05), 0.8))
            if screen < FINEST:
                break
        if count == retune:
            if proves_empty(coupling, state.excess, nuclear):
                break
            # Ever rarer, so that the penalty settles and the splitting converges.
            retune += 3 + count // 2
            factor = _retuned(primal, dual)
            if factor != 1.0:
                state = State(state.inside, state.excess / factor, state.penalty * factor)
                average, nuclear = coupling.averager(state.penalty), nuclear / factor
                memory.forget()
    if count == 0:  # no time at all: the start's own excess is the dual
        nuclear = float(torch.linalg.svdvals(state.excess).sum())
    outcome = measure(coupling, state, nuclear, centre)
    done, empty = accepts(coupling, outcome, rule), proves_empty(coupling, state.excess, nuclear)
    return replace(outcome, iterations=count, converged=done, impossible=empty)


def _step(
    state: State, average: Callable[[Tensor], Tensor], memory: Anderson | None
) -> tuple[State, float, float, float]:
    """Steps 1-4: the next state, its excess's nuclear norm, and both relative residuals."""
    before, excess, penalty = state
    c = average(before - excess)
    image = torch.add(excess, c, alpha=RELAX).add_(before, alpha=1.0 - RELAX)
    point = image if memory is None else memory.propose(before + excess, image)
    excess, nuclear = clip_excess(point)
    inside = point - excess
    primal = float(torch.dist(c, inside)) / max(float(inside.norm()), TINY)
    # Where nothing is clipped the dual is zero, and exact.
    dual = float(torch.dist(inside, before)) / float(excess.norm()) if nuclear else 0.0
    return State(inside, excess, penalty), nuclear, primal, dual


def _retuned(primal: float, dual: float) -> float:
    """Factor for the penalty: the ratio of the residuals grows about linearly with it."""
    if dual == 0.0 or max(primal, dual) < FINEST:
        return 1.0
    ratio = dual / max(primal, TINY)
    if BEST_RATIO / DRIFT <= ratio <= BEST_RATIO * DRIFT:
        return 1.0
    return min(max(BEST_RATIO / ratio, 1.0 / PACE), PACE)
