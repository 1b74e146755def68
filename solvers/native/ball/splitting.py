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
between a feasible point (the values that X shows, drawn towards the centre of the ball until their
norm is 1) and the value of the dual ``penalty * Y``, which is a lower bound on the optimum.
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
from ...spectrum import eigenpairs_above, gram, is_below, top_within
from .anderson import Anderson
from .coupling import Coupling, Values

RELAX = 1.6
TINY = 1e-300
# First share of the tolerance that the relative residual must meet before the gap is measured.
SCREEN = 1.2
# Residuals below this are rounding: a gap that is still too wide will not close.
FINEST = 1e-14
# Iterations before steps are combined: a combination costs a quarter of one.
PLAIN = 6
# From this tolerance, and this order of B on, they are in single precision.
SINGLE, SINGLE_FROM = 1e-4, 48
# After so many iterations the gap is also measured whenever the penalty is looked at.
PATIENCE = 20
# Relative dual residual over relative primal residual, where convergence was found fastest (a scan
# over trained and random networks, multipliers spread over up to nine decades: 5 to 40).
BEST_RATIO, DRIFT, PACE = 12.0, 4.0, 10.0


class State(NamedTuple):
    """Where a splitting stands: X inside the ball, the scaled dual Y, its penalty.

    ``basis`` holds the leading singular vectors of A, on its smaller side (``spectrum.Leading``).
    """

    inside: Tensor
    excess: Tensor
    penalty: float
    basis: Tensor | None = None

    def to(self, dtype: torch.dtype) -> State:
        """The same in another precision."""
        basis = None if self.basis is None else self.basis.to(dtype)
        return State(self.inside.to(dtype), self.excess.to(dtype), self.penalty, basis)


@dataclass(frozen=True, eq=False)
class WarmBall:
    """Restart data: X, the scaled dual and the leading vectors in B's coordinates, and ``L^2``.

    B is scaled by the multiplier and the bound, so this fits any problem of the same shape nearby,
    at another anchor, multiplier, bound or mu; one of another shape ignores it.
    """

    inside: Tensor
    excess: Tensor
    penalty: float
    lip_sq: float
    basis: Tensor | None = None

    def state(self, coupling: Coupling) -> State | None:
        """Where a splitting of ``coupling`` would go on; ``None`` where the shape is another."""
        if self.inside.shape != coupling.shape:
            return None
        device = coupling.anchor[0].device
        basis = None if self.basis is None else self.basis.to(device)
        return State(self.inside.to(device), self.excess.to(device), self.penalty, basis)


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


class Excess(NamedTuple):
    """What clipping takes away, its singular values, and the basis for a matrix nearby."""

    matrix: Tensor
    values: Tensor
    basis: Tensor | None


def spectral_norm(matrix: Tensor, basis: Tensor | None = None) -> float:
    """``||A||_2`` from the smaller Gram matrix, or what a basis of it shows that it is within."""
    return math.sqrt(max(top_within(gram(matrix), basis), 0.0))


def is_inside(matrix: Tensor, basis: Tensor | None = None) -> bool:
    """Whether ``||A||_2 < 1``; a basis of a matrix nearby may show at once that it is not."""
    if basis is not None:
        top = basis[:, -1]
        image = matrix @ top if len(top) == matrix.shape[1] else top @ matrix
        if float(image.norm()) > float(top.norm()):
            return False
    return is_below(gram(matrix), 1.0)


@phase("singular values")
def clip_excess(matrix: Tensor, basis: Tensor | None = None) -> Excess:
    """What clipping takes away: ``A - clip(A) = U (S - 1)_+ V'``.

    From the eigenvectors of the smaller Gram matrix; only singular values above 1 take part.
    """
    tall = matrix.shape[1] <= matrix.shape[0]
    squares, part, basis = eigenpairs_above(gram(matrix), 1.0, basis)
    if len(squares) == 0:
        return Excess(torch.zeros_like(matrix), squares, basis)
    singular = squares.sqrt()
    keep = 1.0 - 1.0 / singular
    excess = ((matrix @ part) * keep) @ part.T if tall else (part * keep) @ (part.T @ matrix)
    return Excess(excess, singular - 1.0, basis)


def first_state(coupling: Coupling) -> State:
    """A cold start: X = B(anchor) clipped, Y the excess.

    The penalty is the ratio of the two squared norms, ``sum m v^2 / ||B(v)||^2``: the metric as B
    sees it.  Where that metric is uniform and B has no zero tile this start is the solution.
    """
    c = coupling.spread(coupling.anchor)
    excess, _, basis = clip_excess(c)
    seen = float(c.square().sum())
    return State(c - excess, excess, 2.0 * coupling.size() / seen if seen > 0 else 1.0, basis)


def restore(
    coupling: Coupling, values: Values, centre: Values, state: State
) -> tuple[Values, float]:
    """The point of the segment from ``values`` to ``centre`` that is just inside the ball.

    With the norms n of the one and c < 1 of the other, ``(1 - c) / (n - c)`` of the way from the
    centre is inside by convexity.  Returns the point and (a bound on) the norm of its B.
    """
    norm = spectral_norm(coupling.spread(values).to(state.inside), state.basis)
    if norm <= 1.0:
        return values, norm
    inner = spectral_norm(coupling.spread(centre)) if coupling.held is not None else 0.0
    if inner >= 1.0:
        return values, norm
    # The last bits: the norm is itself computed, in the precision of the state.
    last = 1e-14 * coupling.shape[0] if state.inside.dtype == values[0].dtype else 1e-6
    share = (1.0 - inner) / (norm - inner) * (1.0 - last)
    moved = tuple(c + share * (p - c) for p, c in zip(values, centre, strict=True))
    return moved, inner + share * (norm - inner)


@phase("measuring")
def measure(coupling: Coupling, state: State, nuclear: float, centre: Values) -> Outcome:
    """The feasible point of a state, and its gap to the dual's lower bound."""
    rough, state = state, state.to(coupling.anchor[0].dtype)
    values = coupling.shown(state.penalty, state.inside, state.excess)
    values, norm = restore(coupling, values, centre, rough)
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
    full, rough = coupling.anchor[0].dtype, _rough(coupling, rule)
    state, nuclear, count = start.to(rough), math.inf, 0
    average, memory = coupling.averager(state.penalty, rough), Anderson(start.inside)
    screen, retune = max(SCREEN * rule.tol, FINEST), 3
    while count < rule.max_iterations and not rule.expired:
        count += 1
        if count == PLAIN + 1 and rough != full:
            state, average = state.to(full), coupling.averager(state.penalty)
        state, nuclear, primal, dual = _step(state, average, memory if count > PLAIN else None)
        if max(primal, dual / BEST_RATIO) <= screen or (count == retune and count > PATIENCE):
            outcome = measure(coupling, state, nuclear, centre)
            if accepts(coupling, outcome, rule):
                return replace(outcome, converged=True, iterations=count)
            # The gap falls about as fast as the residual.
            shortfall = enough(coupling, outcome, rule) / max(outcome.gap, TINY)
            screen = min(screen, primal * min(max(shortfall, 0.05), 0.8))
            if count > PLAIN:  # in case it misses something
                state = state._replace(basis=None)
            if screen < FINEST:
                break
        if count == retune:
            if proves_empty(coupling, state.excess, nuclear):
                break
            # Ever rarer, so that the penalty settles and the splitting converges.
            retune += 3 + count // 2
            factor = _retuned(primal, dual)
            if factor != 1.0:
                state = state._replace(excess=state.excess / factor, penalty=state.penalty * factor)
                average = coupling.averager(state.penalty, state.inside.dtype)
                nuclear /= factor
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
    before, excess, penalty, basis = state
    c = average(before - excess)
    image = torch.add(excess, c, alpha=RELAX).add_(before, alpha=1.0 - RELAX)
    point = image if memory is None else memory.propose(before + excess, image)
    excess, over, basis = clip_excess(point, basis)
    inside = point - excess
    primal = float(torch.dist(c, inside)) / max(float(inside.norm()), TINY)
    # Where nothing is clipped the dual is zero, and exact.
    nuclear = float(over.sum())
    dual = float(torch.dist(inside, before)) / float(over.norm()) if nuclear else 0.0
    return State(inside, excess, penalty, basis), nuclear, primal, dual


def _rough(coupling: Coupling, rule: Rule) -> torch.dtype:
    """The precision of the first iterations, which is all that most warm starts take."""
    pays = rule.tol >= SINGLE and min(coupling.shape) >= SINGLE_FROM
    return torch.float32 if pays else coupling.anchor[0].dtype


def _retuned(primal: float, dual: float) -> float:
    """Factor for the penalty: the ratio of the residuals grows about linearly with it."""
    if dual == 0.0 or max(primal, dual) < FINEST:
        return 1.0
    ratio = dual / max(primal, TINY)
    if BEST_RATIO / DRIFT <= ratio <= BEST_RATIO * DRIFT:
        return 1.0
    return min(max(BEST_RATIO / ratio, 1.0 / PACE), PACE)
