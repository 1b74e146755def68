"""What somebody may do while a run goes on: look at it after rounds and epochs, and end it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


class LogTo(Callback):
    """Hands every number of every round to a logger, under its name in the history.

    Args:
        logger: what has ``add_scalar(name, value, step)``, such as TensorBoard's
            ``SummaryWriter``, or a function that takes the same three.
        prefix: put in front of the names, such as ``"train/"``.

    Raises:
        TypeError: for a logger that is neither.

    Example:
        >>> import torch
        >>> from admm_lip import LogTo, TrainConfig, train
        >>> x = torch.rand(64, 4); y = (x[:, 0] > 0.5).long()
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> seen = {}
        >>> def log(name, value, step):
        ...     seen.setdefault(name, []).append((step, value))
        >>> result = train(net, (x, y), TrainConfig(bound=2.0, epochs=2), progress=False,
        ...                callbacks=[LogTo(log, prefix="train/")])
        >>> [value for _, value in seen["train/lip"]] == [row["lip"] for row in result.history]
        True
    """

    def __init__(self, logger: Any, prefix: str = "") -> None:
        log = getattr(logger, "add_scalar", logger)
        if not callable(log):
            raise TypeError(
                "logger: expected a function of name, value and step, or an object with "
                f"add_scalar, got {type(logger).__name__}"
            )
        self.log: Callable[[str, float, int], Any] = log
        self.prefix = prefix

    def on_round(self, moment: Moment) -> None:
        """Log the last row; words in it are left out."""
        for name, value in moment.row.items():
            if isinstance(value, int | float) and name != "step":
                self.log(f"{self.prefix}{name}", float(value), moment.step)
