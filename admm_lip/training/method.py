"""What a training method is: optional hooks around an ordinary training loop.

A method overrides what it needs and inherits nothing else: :class:`Method` itself is plain
training.
Methods are frozen dataclasses; whatever they learn lives in the model they prepare.

To add one: (1) a frozen dataclass in a file of its own in ``research/comparators``; (2) a row in
its ``METHODS``; (3) its defining property as a test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from .losses import PlainLoss


@dataclass(frozen=True)
class Method:
    """Plain training, and the hooks that other methods override."""

    name: ClassVar[str] = "nominal"
    source: ClassVar[str] = "plain empirical risk minimisation"

    def prepare(self, model: nn.Module) -> nn.Module:
        """The module to train: the given copy, or one with its layers replaced."""
        return model

    def begin_batch(self, model: nn.Module, rows: Tensor | None) -> None:
        """Called before ``objective``: which samples of the data set the batch holds.

        For methods that keep something for every sample between epochs, say where an iteration
        is to start.

        Args:
            model: what ``prepare`` returned.
            rows: int64 ``(batch,)`` on the CPU, the samples' numbers in the data set, the same in
                every epoch; ``None`` where the data come from a loader, which does not tell them.
        """

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, progress: float
    ) -> Tensor:
        """The scalar to minimise on one batch.

        Args:
            model: what ``prepare`` returned.
            inputs: one batch.
            targets: its targets.
            loss: mean loss of outputs and targets.
            progress: share of the run that is done, in [0, 1), for ramps.
        """
        return loss(model(inputs), targets)

    def after_step(self, model: nn.Module) -> None:
        """Change the model after an optimizer step (a projection, say)."""

    def report(self, model: nn.Module) -> dict[str, float]:
        """Columns to add to the history's row of an epoch, also shown beside the progress bar."""
        return {}

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """What an interrupted run needs to go on identically, beside ``model.state_dict()``.

        Stored in every checkpoint: a method that keeps more than is worth the space leaves it out,
        and says that a continued run starts it afresh.
        """
        return {}

    def restore(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Put back what :meth:`state` returned, after ``prepare`` and ``load_state_dict``."""

    def finish(self, model: nn.Module) -> nn.Module:
        """The trained module in plain layers (``Linear``, ``Conv2d``, activations)."""
        return model

    def lipschitz(self, model: nn.Module) -> float | None:
        """The method's own Lipschitz bound of the finished model; ``None`` where it has none.

        Shown beside the proven one, never trusted.
        """
        return None


def check_at_least(least: float, **settings: float) -> None:
    """Raise ``ValueError`` naming the first setting that is not a finite number >= ``least``."""
    for name, value in settings.items():
        if isinstance(value, bool) or not least <= value < math.inf:
            raise ValueError(f"{name}: expected a finite number >= {least:g}, got {value!r}")


def check_positive(**settings: float) -> None:
    """Raise ``ValueError`` naming the first setting that is not a finite number > 0."""
    for name, value in settings.items():
        if isinstance(value, bool) or not 0.0 < value < math.inf:
            raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")


def require_classes(targets: Tensor) -> None:
    """Raise ``ValueError`` unless the targets are integer class labels."""
    if targets.is_floating_point():
        raise ValueError(
            f"data: this method needs integer class labels, got targets of type {targets.dtype}; "
            "use another method for regression"
        )
