"""The interior point method for the multipliers of a torus chain and its head.

With A(t) the matrix inequality without the output and P(t) the covariance at the output, the least
``L^2`` is the least rho with ``P(t) <= rho I``.  Both ``-log det A(t)`` and
``-log det (rho I - P(t))`` are convex: A is affine, P a Schur complement.  For a weight kappa that
grows, Newton's method minimises

    kappa rho - log det (rho I - P(t)) - eta log det A(t),

whose minimiser is within ``(outputs + eta dimension) / kappa`` of the optimum.  Of the thousands of
rows of F all but a few are far from singular at the optimum; with ``eta = 1``, where the sum is
``log det F``, they hold the path of minimisers back, so eta is small.

The derivatives of both are those of ``log det F`` (``barrier.py``), at ``s = 1 / rho`` and at 0.
From a minimiser the tangent of the path leads on; once kappa is large enough for the gap that is
asked for, Newton's method alone ends it, and with a gradient near 0 the lower bound is tight.

At every iterate ``Z = F^-1 - (1 - eta) A^-1 >= 0`` is a covariance that says so
(``lower_bound.py``) but for what the gradient says is missing.  All figures of Z follow from
gradients: ``tr Z F`` is a dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ...networks.layers import Array
from ...solvers.deadline import Deadline
from .lower_bound import Signals, lower_bound
from .problem import Passing, Problem

_ITERATIONS = 150
# The weight of log det A: this, or as much as that of the outputs where that is less.
_INNER = 0.01
# Of the first rho, relatively to what its multipliers prove.
_FIRST = 2.0
# The same from multipliers that are near the best, which are pulled inside by so much.
_NEAR, _PULLED = 1.05, 0.99
# Where a step of Newton's method gains less than this, the point counts as a minimiser.
_CENTRED = 0.5
# A step that gains less is taken without a comparison; one that gains less still is rounding.
_EXACT, _NOTHING = 1e-3, 1e-14
# Kappa is multiplied by at most this along the tangent, by at least this where it leads nowhere.
_FASTEST, _SLOWEST = 30.0, 2.0
# Shares of the way to the boundary that steps ahead and steps down go at most.
_AHEAD, _DOWN = 0.8, 0.9
_HALVINGS = 20


@dataclass(frozen=True, eq=False)
class Found:
    """The best multipliers, torus first, with ``L^2`` and what none can go below."""

    multiplier: list[Array]
    squared: float
    lower: float

    def gap(self) -> float:
        """Of ``L^2``, relatively."""
        return self.squared / self.lower - 1.0 if self.lower > 0.0 else math.inf


@dataclass(frozen=True, eq=False)
class Point:
    """Multipliers and rho where the inequality holds; ``log_det`` is the weighted sum of both."""

    t: list[Array]
    rho: float
    passing: Passing
    log_det: float


@dataclass(frozen=True, eq=False)
class Slopes:
    """First and second derivatives by relative changes, of the multipliers and of rho, rho last.

    Attributes:
        gradient: of the weighted log det.
        hessian: minus the second derivatives.
        power: ``E |y|^2`` of Z.
        inputs: ``E |x|^2`` of Z.
    """

    gradient: Array
    hessian: Array
    power: float
    inputs: float


def slopes_at(problem: Problem, point: Point, eta: float) -> Slopes:
    """Of ``log det (rho I - P) + eta log det A``."""
    outputs, rest = problem.outputs(point.passing), 1.0 - eta
    found = problem.derivatives(point.passing, 1.0 / point.rho, eta)
    hessian, power = found.hessian, found.power
    hessian[-1, :-1] = hessian[:-1, -1] = -hessian[:-1, -1]
    hessian[-1, -1] += 2.0 * power + outputs
    inputs = eta * problem.dimension - found.gradient.sum() + power
    seen = power * point.rho - rest * problem.loudness(point.passing)
    return Slopes(np.append(found.gradient, power + outputs), hessian, seen, inputs)


class Path:
    """Where the method is."""

    def __init__(self, problem: Problem, tol: float, near: list[Array] | None = None) -> None:
        self.problem, self.tol = problem, tol
        self.loudest = np.concatenate(problem.loudest())
        t = problem.start(alike=False) if near is None else [_PULLED * own for own in near]
        passing = problem.forward(t)
        assert passing is not None
        outputs, squared = problem.outputs(passing), problem.squared(passing)
        self.eta = min(_INNER, outputs / problem.dimension)
        self.rows = outputs + self.eta * problem.dimension
        found = self._at(t, (_FIRST if near is None else _NEAR) * squared)
        assert found is not None
        self.point, self.kappa = found, 0.0
        self.best = Found(t, squared, 0.0)

    def solve(self, deadline: Deadline) -> Found:
        """Steps until the gap is small enough, or nothing more is gained, or time is over."""
        for _ in range(_ITERATIONS):
            if not (deadline.timed("step", self.advance) and deadline.has_time(step=1)):
                break
        return self.best

    def advance(self) -> bool:
        """One step; whether there is more to do."""
        point, problem = self.point, self.problem
        slopes = slopes_at(problem, point, self.eta)
        missing = slopes.gradient[:-1] / np.concatenate(point.t)
        lower = lower_bound(Signals(missing, slopes.power, slopes.inputs), self.loudest)
        self.best = replace(self.best, lower=max(self.best.lower, lower))
        self.kappa = self.kappa or float(slopes.gradient[-1]) / point.rho
        try:
            newton = _Newton(slopes, self.kappa * point.rho)
        except np.linalg.LinAlgError:
            return False
        if self.best.gap() <= self.tol or not newton.gain >= _NOTHING:
            return False
        if newton.gain < _CENTRED and self.kappa * point.rho < 2.0 * self.rows / self.tol:
            if self._ahead(newton):
                return True
            self.kappa *= _SLOWEST
            newton = _Newton(slopes, self.kappa * point.rho)
        return self._down(newton)

    def _ahead(self, newton: _Newton) -> bool:
        """Along the tangent of the path, to a larger kappa."""
        least, most = 1.0 - 1.0 / _SLOWEST**0.5, 1.0 - 1.0 / _FASTEST
        if self._moved(newton.direction) is None:
            return False
        way = _reach(lambda x: self._moved(newton.direction + x * newton.tangent), most / _AHEAD)
        share = min(_AHEAD * way, most)
        if share < least or not self._move(newton.direction + share * newton.tangent):
            return False
        self.kappa /= 1.0 - share
        return True

    def _down(self, newton: _Newton) -> bool:
        """Down the function by the direction, halved as long as that is too far."""
        step, value = newton.direction, self._value(self.point)
        length = min(1.0, _DOWN * _reach(lambda x: self._moved(x * step), 1.0 / _DOWN))
        for _ in range(_HALVINGS):
            found = self._moved(length * step)
            enough = value - 0.1 * length * newton.gain
            if found is not None and (newton.gain < _EXACT or self._value(found) <= enough):
                return self._move(length * step)
            length *= 0.5
        return False

    def _value(self, point: Point) -> float:
        return self.kappa * point.rho - point.log_det

    def _move(self, step: Array) -> bool:
        found = self._moved(step)
        if found is None:
            return False
        self.point, squared = found, self.problem.squared(found.passing)
        if squared < self.best.squared:
            self.best = replace(self.best, multiplier=found.t, squared=squared)
        return True

    def _moved(self, step: Array) -> Point | None:
        """The point at a relative change; ``None`` where the inequality does not hold."""
        change = 1.0 + step
        if not (change > 0.0).all():
            return None
        by = self.problem.split(change[:-1])
        t = [own * more for own, more in zip(self.point.t, by, strict=True)]
        return self._at(t, self.point.rho * float(change[-1]))

    def _at(self, t: list[Array], rho: float) -> Point | None:
        passing = self.problem.forward(t)
        if passing is None:
            return None
        outer = self.problem.log_det(passing, 1.0 / rho) - passing.log_det
        outer += self.problem.outputs(passing) * math.log(rho)
        log_det = outer + self.eta * passing.log_det
        return Point(t, rho, passing, log_det) if math.isfinite(log_det) else None


class _Newton:
    """The system of Newton's method at a point, for a kappa relative to rho."""

    def __init__(self, slopes: Slopes, kappa: float) -> None:
        target = np.zeros_like(slopes.gradient)
        target[-1] = -kappa
        sides = np.stack([slopes.gradient + target, target], axis=1)
        self.direction, self.tangent = np.linalg.solve(slopes.hessian, sides).T
        self.gain = float(self.direction @ sides[:, 0])


def _reach(inside: Callable[[float], object], most: float) -> float:
    """How far a line stays inside, at most ``most``, to some parts in a hundred from below."""
    if inside(most) is not None:
        return most
    low, high = 0.0, most
    while high - low > 0.15 * high and high > 1e-12:
        middle = 0.5 * (low + high) if low > 0.0 else high / 3.0
        low, high = (middle, high) if inside(middle) is not None else (low, middle)
    return low
