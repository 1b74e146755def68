"""Multipliers of large networks by their logarithms and first derivatives alone.

A step of Newton's method (``path.py``) costs ten to fifty times what first derivatives cost where
channels and frequencies are many.  Minimised is, by J. Nocedal's method (Updating quasi-Newton
matrices with limited storage, Mathematics of Computation 35, 1980),

    log M_p(P) - mu / n log det A,       M_p(P) = (tr P^p)^(1/p) >= lambda_max(P) = L^2,

for a mu that falls: A is the matrix inequality without the output, n its order and P the covariance
at the output.  In logarithms the layers' scales, which are most of what is to be found, are near to
variables of a quadratic function.

With G the derivative of ``log M_p`` by P, and Y the rows that the output reads, the derivatives by
the multipliers are ``-2 Re Z_{v_i u_i}`` of ``Z = A^-1 Y' G Y A^-1 + mu / n A^-1``, both of which
are covariances of the network's signals.  Where the derivatives are near 0 their lower bound
(``lower_bound.py``) is within about mu of ``L^2``, and of the sums of what the last steps left that
is so long before.  So a mu stays until the lower bound is near: multipliers that a smaller one
drives to the boundary too early say nothing.  NumPy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ...networks.layers import Array
from ...solvers.deadline import Deadline
from .gradient import gradients
from .lower_bound import Signals, best_sum
from .path import Found
from .problem import Passing, Problem

# Weights of the barrier: the first one, the last one in units of the gap that is asked for, and
# from one to the next.
_FIRST, _LAST, _FASTER = 0.1, 0.6, 0.3
# Steps at a weight, and at the last one.
_STEPS, _MOST = 20, 2000
# Pairs that are kept, and the largest change of a logarithm at a time.
_PAIRS, _LONGEST = 400, 0.25
# The lower bound is sought again after so many steps, from those of the last so many.
_EVERY, _KEPT = 10, 80
# Of the start, which is on the boundary.
_INSIDE = 0.9
# A step is as long as it gains this share of what the slope says; how it is shortened, how often.
_ENOUGH, _SHORTER, _SHORTENINGS = 1e-4, 0.4, 12
# p is at least this, and 1 / mu.
_LEAST_POWER = 6.0


@dataclass(frozen=True, eq=False)
class Point:
    """Multipliers that hold, by their logarithms: the function, its derivatives, and ``L^2``.

    ``signals`` are those of G and those of ``A^-1``.
    """

    x: Array
    value: float
    slope: Array
    squared: float
    signals: tuple[Signals, Signals]


class Descent:
    """Where the method is.

    Args:
        problem: of all frequencies.
        tol: relative gap of ``L^2`` that is enough.
        near: multipliers that hold, to begin at.
    """

    def __init__(self, problem: Problem, tol: float, near: list[Array] | None = None) -> None:
        self.problem, self.tol, self.last = problem, tol, _LAST * tol
        self.mu = _FIRST if near is None else self.last
        self.loudest = np.concatenate(problem.loudest())
        self.pairs: list[tuple[Array, Array]] = []
        self.signals: list[Signals] = []
        start = problem.start(alike=False) if near is None else near
        begun = self._at(np.log(_INSIDE * np.concatenate(start)))
        assert begun is not None
        self.found = Found(start, math.inf, 0.0)
        self._stand(begun)

    def solve(self, deadline: Deadline) -> Found:
        """Steps until the gap is small enough, nothing more is gained, or time is over."""
        while self._stage(deadline) and self.mu > self.last:
            self.mu = max(_FASTER * self.mu, self.last)
            again = self._at(self.point.x)
            assert again is not None
            self._stand(again)
            self.pairs = []
        return self.found

    def _stage(self, deadline: Deadline) -> bool:
        """Steps at one weight of the barrier; whether the gap is too large and there is time."""
        steps = _STEPS if self.mu > self.last else _MOST
        for done in range(1, steps + 1):
            has_time = deadline.has_time(first_order=1)
            if not has_time or not deadline.timed("first_order", self._step):
                break
            if done % _EVERY == 0 and self._is_done():
                return False
        return not self._is_done() and deadline.has_time(first_order=1)

    def _is_done(self) -> bool:
        """Whether the gap is small enough, with the lower bound of what the last points left."""
        lower = best_sum(self.signals, self.loudest)
        self.found = replace(self.found, lower=max(self.found.lower, lower))
        return self.found.gap() <= self.tol

    def _step(self) -> bool:
        point, step = self.point, self._direction()
        step *= min(1.0, _LONGEST / float(np.abs(step).max()))
        rise, length = float(step @ point.slope), 1.0
        for _ in range(_SHORTENINGS):
            found = self._at(point.x + length * step)
            if found is not None and found.value <= point.value + _ENOUGH * length * rise:
                self.pairs.append((length * step, found.slope - point.slope))
                self.pairs = [(s, y) for s, y in self.pairs if s @ y > 0.0][-_PAIRS:]
                self._stand(found)
                return True
            length *= _SHORTER
        return False

    def _stand(self, point: Point) -> None:
        """At a point; what it proves is kept where it is the best."""
        self.point = point
        self.signals = [*self.signals, *point.signals][-2 * _KEPT :]
        if point.squared < self.found.squared:
            t = self.problem.split(np.exp(point.x))
            self.found = replace(self.found, multiplier=t, squared=point.squared)

    def _direction(self) -> Array:
        """Minus the slope times the inverse second derivatives, as far as pairs of steps tell."""
        q, shares = self.point.slope.copy(), list[float]()
        if not self.pairs:
            return -q * (_LONGEST / float(np.abs(q).max()))
        for s, y in reversed(self.pairs):
            shares.append(float(s @ q) / float(s @ y))
            q -= shares[-1] * y
        s, y = self.pairs[-1]
        q *= float(s @ y) / float(y @ y)
        for (s, y), share in zip(self.pairs, reversed(shares), strict=True):
            q += s * (share - float(y @ q) / float(s @ y))
        return -q

    def _at(self, x: Array) -> Point | None:
        """The point of some logarithms; ``None`` where the inequality does not hold."""
        passing = self.problem.forward(self.problem.split(np.exp(x)))
        if passing is None:
            return None
        power = max(_LEAST_POWER, 1.0 / self.mu)
        end = power_mean(self.problem, passing, power)
        by = gradients(self.problem, passing, end.weighing)
        share = self.mu / self.problem.dimension
        value, slope = end.log - share * passing.log_det, -by.power - share * by.slack
        if not math.isfinite(value):
            return None
        t, order = np.exp(x), self.problem.dimension
        signals = (
            Signals(by.power / t, end.loudness, 1.0 - by.power.sum()),
            Signals(by.slack / t, 0.0, order - by.slack.sum()),
        )
        return Point(x, value, slope, end.squared, signals)


class Mean(NamedTuple):
    """``log M_p`` of P at the output.

    Attributes:
        log: itself.
        weighing: N of its derivatives ``G = N N^H`` by P, part by part.
        squared: the largest eigenvalue.
        loudness: ``<P, G P>``.
    """

    log: float
    weighing: list[Any]
    squared: float
    loudness: float


def power_mean(problem: Problem, passing: Passing, power: float) -> Mean:
    """The mean over all frequencies."""
    ends = [(w, *np.linalg.eigh(p)) for w, p in problem.at_end(passing)]
    top = max(float(values.max()) for _, values, _ in ends)
    shares = [(w, np.maximum(values / top, 0.0), vectors) for w, values, vectors in ends]
    total, next_one = (
        sum(float(w @ (own**p).sum(axis=1)) for w, own, _ in shares) for p in (power, power + 1.0)
    )
    weighing = [
        vectors * np.sqrt(own ** (power - 1.0) / (total * top))[:, None, :]
        for _, own, vectors in shares
    ]
    return Mean(math.log(top) + math.log(total) / power, weighing, top, top * next_one / total)
