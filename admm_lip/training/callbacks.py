"""What somebody may do while a run goes on: look at it after rounds and epochs, and end it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..shown import Row as Row
from .constraint import Constraint


@dataclass(frozen=True, eq=False)
class Moment:
    """Where a run stands.

    Attributes:
        model: as it is trained; look, do not change.
        row: the last row of the history; empty before the first round is over.
        step: optimizer steps done.
        epoch: epochs done.
        constraint: that the run keeps, for its state; ``None`` where nothing is enforced.
    """

    model: nn.Module
    row: Row
    step: int
    epoch: float
    constraint: Constraint | None


class Callback:
    """Hooks to override; what one keeps itself is in no checkpoint.

    A round is one of ADMM, or an epoch where nothing is enforced.

    Example:
        >>> class Enough(Callback):
        ...     def stop(self, moment):
        ...         return moment.row["loss"] < 0.1
    """

    def on_round(self, moment: Moment) -> None:
        """After every round."""

    def on_epoch(self, moment: Moment) -> None:
        """After every epoch, which may end inside a round."""

    def stop(self, moment: Moment) -> bool:
        """After every round: whether to end the run here."""
        return False
