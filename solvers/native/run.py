"""The bookkeeping of one solve: limits, counts and the best multiplier seen."""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from ..config import SolverConfig


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
        self.iterations = 0
        self.centring = 0
        self.best: Tensor | None = None
        self.limited = False

    def may_go_on(self, share: float = 1.0) -> bool:
        """Whether both limits, or this share of the time, leave room for another step."""
        full = self._most is not None and self.iterations >= self._most
        late = perf_counter() >= self._start + share * self._seconds
        self.limited = full or late
        return not self.limited

    def late(self) -> bool:
        """Whether the time is up, whatever the iterations."""
        return perf_counter() >= self._start + self._seconds

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
