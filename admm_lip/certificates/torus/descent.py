"""Multipliers of large networks by their logarithms and first derivatives alone.

A step of Newton's method (``path.py``) costs ten to fifty times what first derivatives cost where
channels and frequencies are many.  Minimised is, by J. Nocedal's method (Updating quasi-Newton
matrices with limited storage, Mathematics of Computation 35, 1980),

    log M_p(P) - mu / n log det A,       M_p(P) = (tr P^p)^(1/p) >= lambda_max(P) = L^2,

for a mu that falls: A is the matrix inequality without the output, n its order and P the covariance
at the output.  In logarithms the layers' scales, which are most of what is to be found, are near to
variables of a quadratic function.  What comes out is close to the best multipliers, and where
Newton's method begins; how close, only its lower bound says.  NumPy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...networks.layers import Array
from ...solvers.deadline import Deadline
from .gradient import gradients
from .problem import Passing, Problem

# Weights of the barrier: the first one, from one to the next, and in units of the gap asked for.
_FIRST, _FASTER, _LAST = 0.1, 0.4, 0.25
# Steps at one weight, pairs that are kept, and the largest change of a logarithm at a time.
_STEPS, _PAIRS, _LONGEST = 12, 30, 0.7
# Of the start, which is on the boundary.
_INSIDE = 0.9
# A step is as long as it gains this share of what the slope says; how it is shortened, how often.
_ENOUGH, _SHORTER, _SHORTENINGS = 1e-4, 0.4, 12
# p is at least this, and 1 / mu.
_LEAST_POWER = 6.0


@dataclass(frozen=True, eq=False)
class Point:
    """Multipliers that hold, by their logarithms: the function, its derivatives, and ``L^2``."""

    x: Array
    value: float
    slope: Array
    squared: float


class Descent:
    """Where the method is.

    Args:
        problem: of all frequencies.
        tol: relative gap of ``L^2`` that is enough.
        near: multipliers that hold, to begin at.
    """

    def __init__(self, problem: Problem, tol: float, near: list[Array] | None = None) -> None:
        self.problem, self.tol, self.mu = problem, tol, _FIRST
        self.pairs: list[tuple[Array, Array]] = []
        begun = problem.start(alike=False) if near is None else near
        found = self._at(np.log(_INSIDE * np.concatenate(begun)))
        assert found is not None
        self.point = self.best = found

    @property
    def multiplier(self) -> list[Array]:
        """The best one so far."""
        return self.problem.split(np.exp(self.best.x))

    def solve(self, deadline: Deadline) -> None:
        """Steps until nothing much is gained, or time is over."""
        last = _LAST * self.tol
        while deadline.has_time(first_order=1):
            before, ending = self.best.squared, self.mu <= last
            if not self._stage(deadline) and ending:
                return
            if ending and self.best.squared > before * (1.0 - self.tol / 4.0):
                return
            self.mu = max(_FASTER * self.mu, last)
            again = self._at(self.point.x)
            assert again is not None
            self.point, self.pairs = again, []

    def _stage(self, deadline: Deadline) -> bool:
        """Steps at one weight of the barrier; whether all of them went down."""
        for _ in range(_STEPS):
            if not deadline.has_time(first_order=1):
                break
            if not deadline.timed("first_order", self._step):
                return False
        return True

    def _step(self) -> bool:
        point, step = self.point, self._direction()
        step *= min(1.0, _LONGEST / float(np.abs(step).max()))
        rise, length = float(step @ point.slope), 1.0
        for _ in range(_SHORTENINGS):
            found = self._at(point.x + length * step)
            if found is not None and found.value <= point.value + _ENOUGH * length * rise:
                self.pairs.append((length * step, found.slope - point.slope))
                self.pairs = [(s, y) for s, y in self.pairs if s @ y > 0.0][-_PAIRS:]
                self.point = found
                if found.squared < self.best.squared:
                    self.best = found
                return True
            length *= _SHORTER
        return False

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
        mean, weighing, squared = power_mean(
            self.problem, passing, max(_LEAST_POWER, 1.0 / self.mu)
        )
        by = gradients(self.problem, passing, weighing)
        share = self.mu / self.problem.dimension
        value = mean - share * passing.log_det
        if not math.isfinite(value):
            return None
        return Point(x, value, -by.power - share * by.slack, squared)


def power_mean(problem: Problem, passing: Passing, power: float) -> tuple[float, list[Any], float]:
    """``log M_p`` of P at the output, its derivatives by P, and the largest eigenvalue."""
    ends = [(w, *np.linalg.eigh(p)) for w, p in problem.at_end(passing)]
    top = max(float(values.max()) for _, values, _ in ends)
    total, weighing = 0.0, list[Any]()
    for weights, values, _ in ends:
        total += float(weights @ (np.maximum(values / top, 0.0) ** power).sum(axis=1))
    for _, values, vectors in ends:
        entries = np.maximum(values / top, 0.0) ** (power - 1.0) / (total * top)
        weighing.append((vectors * entries[:, None, :]) @ vectors.conj().swapaxes(1, 2))
    return math.log(top) + math.log(total) / power, weighing, top
