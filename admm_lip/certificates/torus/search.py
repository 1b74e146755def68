"""Multipliers of a torus chain and its head by an interior point method, and what none can beat.

With t the multipliers and ``s = 1 / L^2`` the matrix inequality F(t, s) >= 0 is affine, and s is to
be as large as it can.  For a weight kappa that grows, Newton's method minimises

    - kappa log s - log det F(t, s),

whose minimiser is within ``dimension / kappa`` of the least ``L^2``, relatively (``barrier.py`` has
the derivatives).  From there the tangent of the path of minimisers leads on, as far as the
inequality holds with something to spare: near its boundary Newton's method crawls.

Without a head every frequency has an inequality of its own and few of them bind: those of a coarse
grid are solved, then with them those that fail, until the bound holds at all.

The lower bound is weak duality.  For every covariance Z of the network's signals with
``E v_i (z_i - v_i) >= 0`` for all i, no multiplier proves less than ``E |y|^2 / E |x|^2``.
At every iterate ``Z = F^-1`` is one but for what the gradient says is missing.  A second one, white
noise through ``v = z / 2``, has ``E v_i (z_i - v_i) = E z_i^2 / 4 > 0``, and as much of it is added
as all of them need.  Both figures of Z follow from the gradient: ``tr Z F`` is the dimension of F.
Signals of some frequencies alone are signals: what few frequencies say is a lower bound too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ...networks.layers import Array
from ...solvers.deadline import Deadline
from ..claim_matrices import Matrices
from .problem import Derivatives, Passing, Problem
from .steps import TorusChain

_ITERATIONS = 150
# Where a step of Newton's method gains less than this, the point counts as a minimiser.
_CENTRED, _POLISHED = 0.3, 1e-3
# Kappa is multiplied by at most this along the tangent, by at least this where it leads nowhere.
_FASTEST, _SLOWEST = 16.0, 2.0
# A step must not come nearer the boundary than this: so many times as long, it is still inside.
_SPARE = 1.5
_HALVINGS = 40
# Of the first s, relatively to what its multipliers prove.
_FIRST = 0.1
# Rounding of the lower bound, far above that of sums of thousands of terms.
_ROUNDING = 1e-9
# Points per side of the first grid, frequencies added at a time, and how often.
_COARSE, _MORE, _ROUNDS = 6, 12, 8


@dataclass(frozen=True, eq=False)
class Found:
    """The best multipliers, torus first, with ``L^2`` and what none can go below."""

    multiplier: list[Array]
    squared: float
    lower: float

    def gap(self) -> float:
        """Of ``L^2``, relatively."""
        return self.squared / self.lower - 1.0 if self.lower > 0.0 else math.inf


def search(
    chain: TorusChain, head: Matrices | None, deadline: Deadline, tol: float = 1e-4
) -> Found:
    """Multipliers per channel of the chain's activations, and per neuron of the head's.

    Args:
        chain: what stands on the torus.
        head: what follows.
        deadline: when to stop.
        tol: relative gap of ``L^2`` that is enough.
    """
    whole = Problem(chain, head)
    safe = whole.start(alike=True)
    best = _at(whole, safe, Found(safe, math.inf, 0.0))
    if best.squared == 0.0:
        return best
    frequencies = None if head is not None else whole.coarse(_COARSE)
    for _ in range(_ROUNDS):
        problem = whole if frequencies is None else whole.only(frequencies)
        found = _solved(problem, deadline, tol / 2.0)
        best = replace(best, lower=max(best.lower, found.lower))
        if frequencies is None:
            return found if found.squared < best.squared else best
        best = _towards(whole, best, safe, found.multiplier)
        failing = whole.failing(found.multiplier, found.squared, _MORE)
        new = np.union1d(frequencies, failing)
        if best.gap() <= tol or len(new) == len(frequencies) or not deadline.has_time():
            break
        frequencies = new
    return best


def _at(problem: Problem, t: list[Array], best: Found) -> Found:
    """The better of these multipliers and the best so far."""
    passing = problem.forward(t)
    squared = math.inf if passing is None else problem.squared(passing)
    return best if squared >= best.squared else replace(best, multiplier=t, squared=squared)


def _towards(whole: Problem, best: Found, safe: list[Array], t: list[Array]) -> Found:
    """From multipliers that hold at all frequencies towards those that hold at some.

    With s in place of the first factor the set is convex: what lies between is scaled by s too.
    """
    for share in (1.0, 1.0 - 1e-6, 1.0 - 1e-5, 1.0 - 1e-4, 1.0 - 1e-3, 0.99, 0.97, 0.9, 0.7, 0.4):
        between = [share * a + (1.0 - share) * b for a, b in zip(t, safe, strict=True)]
        found = _at(whole, between, best)
        if found is not best:
            return found
    return best


def _solved(problem: Problem, deadline: Deadline, tol: float) -> Found:
    """The interior point method at the frequencies of a problem."""
    path = _Path(problem, tol)
    for _ in range(_ITERATIONS):
        if not (path.advance() and deadline.has_time()):
            break
    return path.best


class _Path:
    """Where the method is."""

    def __init__(self, problem: Problem, tol: float) -> None:
        self.problem, self.tol = problem, tol
        self.white = np.concatenate(problem.white())
        self.t = problem.start(alike=False)
        passing = problem.forward(self.t)
        assert passing is not None
        self.passing = passing
        squared = problem.squared(passing)
        self.s, self.kappa = _FIRST / squared, 0.0
        self.best = Found(self.t, squared, 0.0)

    def advance(self) -> bool:
        """One step; whether there is more to do."""
        problem, squared = self.problem, self.problem.squared(self.passing)
        found = problem.derivatives(self.passing, self.s)
        lower = lower_bound(problem, 0.5 * np.concatenate(self.t) * self.white, found, self.s)
        if squared < self.best.squared:
            self.best = Found(self.t, squared, self.best.lower)
        self.best = replace(self.best, lower=max(self.best.lower, lower))
        self.kappa = self.kappa or found.power
        newton = _Newton(found, self.kappa)
        if self.best.gap() <= self.tol or not newton.decrement >= 1e-12:
            return False
        if newton.decrement < _CENTRED and self.kappa < 2.0 * problem.dimension / self.tol:
            if self._ahead(newton):
                return True
            self.kappa *= _SLOWEST
            newton = _Newton(found, self.kappa)
        return self._down(newton)

    def _ahead(self, newton: _Newton) -> bool:
        """Along the tangent of the path, to a larger kappa."""
        faster = _FASTEST
        while faster > 1.15:
            step = newton.ahead(faster)
            if self._inside(_SPARE * step) is not None and self._move(self._inside(step)):
                self.kappa *= faster
                return True
            faster = math.sqrt(faster)
        return False

    def _down(self, newton: _Newton) -> bool:
        """Down the function by the direction, halved as long as that is better."""
        if newton.decrement < _POLISHED:
            return self._move(self._inside(newton.direction))
        least, chosen, length = self._value(self.s, self.passing), None, 1.0
        for _ in range(_HALVINGS):
            step = length * newton.direction
            point = self._inside(step)
            if point is not None and (chosen or self._inside(_SPARE * step) is not None):
                value = self._value(point[1], point[2])
                if value >= least and chosen is not None:
                    break
                if value < least:
                    least, chosen = value, point
            length *= 0.5
        return self._move(chosen)

    def _value(self, s: float, passing: Passing) -> float:
        return -self.kappa * math.log(s) - self.problem.log_det(passing, s)

    def _inside(self, step: Array) -> tuple[list[Array], float, Passing] | None:
        """The point at a relative change; ``None`` where the inequality does not hold."""
        change = 1.0 + step
        if not (change > 0.0).all():
            return None
        by = self.problem.split(change[:-1])
        t, s = (
            [own * more for own, more in zip(self.t, by, strict=True)],
            self.s * float(change[-1]),
        )
        passing = self.problem.forward(t)
        if passing is None or not math.isfinite(self.problem.log_det(passing, s)):
            return None
        return t, s, passing

    def _move(self, point: tuple[list[Array], float, Passing] | None) -> bool:
        if point is not None:
            self.t, self.s, self.passing = point
        return point is not None


class _Newton:
    """The system of Newton's method at a point."""

    def __init__(self, found: Derivatives, kappa: float) -> None:
        slope = -np.append(found.gradient, kappa - found.power)
        hessian, target = found.hessian.copy(), np.zeros_like(slope)
        hessian[-1, -1] += kappa
        target[-1] = kappa
        sides = np.stack([-slope, target], axis=1)
        self.direction, self.tangent = np.linalg.solve(hessian, sides).T
        self.decrement = -float(self.direction @ slope)

    def ahead(self, faster: float) -> Array:
        """To the minimiser for a kappa that is so many times as large, along the tangent."""
        return np.asarray(self.direction + (1.0 - 1.0 / faster) * self.tangent)


def lower_bound(problem: Problem, white: Array, found: Derivatives, s: float) -> float:
    """What no multipliers can go below in ``L^2``, from the derivatives at a point."""
    missing = np.maximum(found.gradient, 0.0)
    share = float((missing / white).max(initial=0.0))
    inputs = problem.dimension - found.gradient.sum() + found.power + share * problem.inputs
    return float((1.0 - _ROUNDING) * found.power / s / inputs)
