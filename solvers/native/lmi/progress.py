"""The bookkeeping of one solve: limits, counts, checkpoints and the best multiplier seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ...config import SolverConfig
from ...deadline import Deadline
from .checkpoints import Action, Checkpoint, Stage, Trouble

Found = TypeVar("Found")


class Progress(Deadline):
    """Counts iterations against the limits and keeps the best feasible point.

    Args:
        config: its ``time_limit`` and ``max_iterations`` bind the whole solve.

    Attributes:
        iterations: steps taken so far, centring ones included.
        centring: how many of them were centring steps.
        limited: whether a limit ended the solve.
        best: the feasible ``y = (rho, t)`` of least rho, ``None`` before the first.
        checkpoints: how often each decision was taken, in the order of their first time.
    """

    def __init__(self, config: SolverConfig) -> None:
        super().__init__(config.time_limit)
        self._most = config.max_iterations
        self.iterations = 0
        self.centring = 0
        self.best: Tensor | None = None
        self.limited = False
        self.checkpoints: Counter[Checkpoint] = Counter()

    def may_go_on(self, **ahead: int) -> bool:
        """Whether both limits leave room for another step, and for so much work of each kind."""
        full = self._most is not None and self.iterations >= self._most
        self.limited = full or not self.has_time(**ahead)
        return not self.limited

    def checkpoint(self, stage: Stage, trouble: Trouble) -> Action:
        """What to do about ``trouble``, noted."""
        found = Checkpoint.at(stage, trouble)
        self.checkpoints[found] += 1
        return found.action

    def decisions(self) -> tuple[str, ...]:
        """The checkpoints in words."""
        return tuple(
            f"{where} ({count} times)" if count > 1 else str(where)
            for where, count in self.checkpoints.items()
        )

    def shortened(
        self,
        stage: Stage,
        length: float,
        shrink: float,
        least: float,
        attempt: Callable[[float], Found | None],
    ) -> Found | Trouble:
        """The first attempt that succeeds, at lengths shrunk down to ``least``."""
        while length > least:
            found = attempt(length)
            if found is not None:
                return found
            if self.checkpoint(stage, Trouble.OUTSIDE) is not Action.SHORTEN:
                break
            length *= shrink
        return Trouble.SHORT

    def count(self, y: Tensor) -> None:
        """One step is done and ended at ``y``, whose ``S(y)`` has a Cholesky factor."""
        self.iterations += 1
        self.keep(y)

    def keep(self, y: Tensor) -> None:
        """Remember ``y`` where it is finite and better than what is known."""
        if not bool(torch.isfinite(y).all()) or not bool((y[1:] > 0).all()):
            return
        if self.best is None or float(y[0]) < float(self.best[0]):
            self.best = y.to(torch.float64)  # single precision may have found it
