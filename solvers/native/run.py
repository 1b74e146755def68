"""The bookkeeping of one solve: limits, counts and the best multiplier seen."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from ..config import SolverConfig

Result = TypeVar("Result")


class Run:
    """Counts iterations against the limits and keeps the best feasible point.

    Args:
        config: its ``time_limit`` and ``max_iterations`` bind the whole solve.

    Attributes:
        iterations: steps taken so far, centring ones included.
        centring: how many of them were centring steps.
        limited: whether a limit ended the solve.
        best: the feasible ``y = (rho, t)`` of least rho, ``None`` before the first.
    """

    def __init__(self, config: SolverConfig) -> None:
        self._start = perf_counter()
        self._seconds = float("inf") if config.time_limit is None else config.time_limit
        self._most = config.max_iterations
        self._longest: dict[str, float] = {}
        self.iterations = 0
        self.centring = 0
        self.best: Tensor | None = None
        self.limited = False

    def may_go_on(self, **ahead: int) -> bool:
        """Whether both limits leave room for another step, and for so much work of each kind."""
        full = self._most is not None and self.iterations >= self._most
        self.limited = full or not self.has_time(**ahead)
        return not self.limited

    def timed(self, kind: str, work: Callable[[], Result]) -> Result:
        """The result of a piece of work, whose seconds later ones of its kind are judged by."""
        begun = perf_counter()
        result = work()
        self._longest[kind] = max(self._longest.get(kind, 0.0), perf_counter() - begun)
        return result

    def has_time(self, **ahead: int) -> bool:
        """Whether the time limit leaves room for so many pieces of work of each kind.

        A piece is taken to need as long as the longest of its kind so far.
        """
        needed = sum(count * self._longest.get(kind, 0.0) for kind, count in ahead.items())
        return perf_counter() + needed < self._start + self._seconds

    def count(self, y: Tensor) -> None:
        """One step is done and ended at ``y``, whose ``S(y)`` has a Cholesky factor."""
        self.iterations += 1
        self.keep(y)

    def keep(self, y: Tensor) -> None:
        """Remember ``y`` where it is finite and better than what is known."""
        if not bool(torch.isfinite(y).all()) or not bool((y[1:] > 0).all()):
            return
        if self.best is None or float(y[0]) < float(self.best[0]):
            self.best = y
