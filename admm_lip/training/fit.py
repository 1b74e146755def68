"""Training with any method other than ADMM, on the same stream of batches.

The nominal method of this loop is what "the same loop without a constraint" means wherever costs
are compared.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..methods.base import Method
from ..networks.chain import output_width
from .batches import Batches, as_batches, check_labels
from .loop import Row, epoch_seed
from .loss_step import NonFiniteLoss
from .losses import PlainLoss, resolve_loss
from .optimize import make_optimizer, schedule_factor, set_learning_rate


@dataclass(frozen=True)
class FitConfig:
    """Settings of :func:`fit`, named as in ``TrainConfig``.

    Args:
        epochs: passes over the data.
        batch_size: samples per step.
        seed: of the batch order and dropout.
        loss: a name in ``losses.LOSSES`` or ``"auto"``.
        eps: radius the margin loss trains for.
        temperature: of the margin loss, as a share of ``lip``.
        lip: the Lipschitz bound that the margin loss supposes.
        optimizer: a name in ``optimize.OPTIMIZERS``.
        lr: its step size.
        schedule: a name in ``optimize.SCHEDULES``.
    """

    epochs: int = 15
    batch_size: int = 256
    seed: int = 0
    loss: str = "auto"
    eps: float = 0.5
    temperature: float = 0.25
    lip: float = 1.0
    optimizer: str = "adam"
    lr: float = 1e-2
    schedule: str = "hold_then_decay"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise ValueError(
                    f"{name}: expected a whole number >= 1, got {getattr(self, name)!r}"
                )
        for name in ("lr", "temperature", "lip"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name}: expected a finite number > 0, got {getattr(self, name)!r}"
                )


@dataclass(frozen=True, eq=False)
class FitResult:
    """A finished model in plain layers, the method's own bound, one row per epoch, seconds."""

    model: nn.Module
    claimed_lip: float | None
    history: tuple[Row, ...]
    seconds: float


def fit(
    model: nn.Module,
    data: Any,
    method: Method,
    config: FitConfig,
    loss: Any = None,
    *,
    progress: bool = True,
) -> FitResult:
    """Train a copy of ``model`` by ``method``.

    Args:
        model: any module the method accepts; it is copied.
        data: a DataLoader, a Dataset, or a pair of tensors.
        method: see ``methods``.
        config: settings.
        loss: overrides ``config.loss``: a name or ``loss(outputs, targets)``.
        progress: show a bar.

    Raises:
        ValueError, TypeError: bad data or settings, by name.
        NonFiniteLoss: with the epoch and step.
    """
    batches = as_batches(data, config.batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        trained = method.prepare(copy.deepcopy(model))
        plain = _plain_loss(batches, model, config, loss)
        begun = time.perf_counter()
        history = _epochs(trained, batches, method, config, plain, progress)
        seconds = time.perf_counter() - begun
    trained.eval()
    finished = method.finish(trained)
    return FitResult(finished, method.lipschitz(finished), tuple(history), seconds)


def _plain_loss(batches: Batches, model: nn.Module, config: FitConfig, loss: Any) -> PlainLoss:
    _, targets = next(iter(batches.epoch(0, 0)))
    if not targets.is_floating_point():
        width = output_width(model)
        if width is not None:
            check_labels(getattr(batches, "targets", targets), width)
    chosen = config.loss if loss is None else loss
    bounded = resolve_loss(chosen, targets, config.eps, config.temperature)
    return lambda outputs, targets: bounded(outputs, targets, config.lip)


def _epochs(
    model: nn.Module,
    batches: Batches,
    method: Method,
    config: FitConfig,
    loss: PlainLoss,
    progress: bool,
) -> list[Row]:
    optimizer = make_optimizer(config.optimizer, model.parameters(), config.lr)
    device = next(model.parameters()).device
    total, step, history = config.epochs * len(batches), 0, []
    begun = time.perf_counter()
    for epoch in tqdm(range(config.epochs), desc=method.name, unit="epoch", disable=not progress):
        model.train()
        values: list[Tensor] = []
        seed = epoch_seed(config.seed, epoch)
        stream = zip(batches.epoch(seed, 0), batches.rows(seed, 0), strict=False)
        for (inputs, targets), rows in stream:
            share = step / total
            factor = schedule_factor(config.schedule, share)
            set_learning_rate(optimizer, config.lr * factor)
            optimizer.zero_grad()
            x, y = inputs.to(device), targets.to(device)
            method.begin_batch(model, rows)
            value = method.objective(model, x, y, loss, share)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            method.after_step(model)
            values.append(value.detach())
            step += 1
        mean = float(torch.stack(values).mean())
        if not math.isfinite(mean):
            raise NonFiniteLoss(
                f"epoch {epoch + 1}: expected a finite loss, got {mean}; lower lr, or check the "
                "data's scale"
            )
        row: Row = {"epoch": epoch + 1, "loss": mean, "seconds": time.perf_counter() - begun}
        history.append(row | method.report(model))
    return history
