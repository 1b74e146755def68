"""A run: what stays the same during it, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..units import Units
from .batches import Batches
from .callbacks import Callback, Row
from .config import TrainConfig
from .constraint import Constraint
from .losses import BoundedLoss
from .method import Method
from .ranks import Ranks


@dataclass(frozen=True, eq=False)
class Run:
    """Everything that stays the same; model, optimizer, constraint and scaler move.

    Attributes:
        model: as it is trained.
        optimizer: of its parameters.
        batches: the data.
        method: whose hooks are called.
        constraint: that acts on the optimizer; ``None`` enforces nothing.
        loss: of outputs, targets and a Lipschitz constant.
        named_loss: what ``loss`` was made of, a name or a function: it tells runs apart.
        config: the settings.
        schedule: from the share of the run that is done to the share of ``config.lr``.
        stored: dtype that the weights are rounded to in the end.
        units: that the bound is meant in.
        scaler: of gradients in float16; does nothing in other precisions.
        validation: data to measure after every epoch.
        callbacks: called after rounds and epochs.
        ranks: the processes that share the batches out among them.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    method: Method
    constraint: Constraint | None
    loss: BoundedLoss
    named_loss: Any
    config: TrainConfig
    schedule: Callable[[float], float]
    stored: torch.dtype
    units: Units | None
    scaler: torch.amp.GradScaler
    validation: Batches | None = None
    callbacks: tuple[Callback, ...] = ()
    ranks: Ranks = field(default_factory=Ranks)

    @cached_property
    def epoch_steps(self) -> int:
        """Optimizer steps of an epoch."""
        return len(self.batches)

    @cached_property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.epochs * self.epoch_steps

    @property
    def lip(self) -> float:
        """The Lipschitz constant that the loss supposes now."""
        if self.constraint is None:
            return self.config.lip or 1.0
        return float(self.constraint.state.target_sq**0.5)

    @cached_property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.model.parameters()).device


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: optimizer steps done.
        losses: of the steps since the last row.
        history: one row per round; where nothing is enforced, a round is an epoch.
        seconds: so far.
        noted: columns for the next row.
    """

    step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    history: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    noted: Row = field(default_factory=dict)
