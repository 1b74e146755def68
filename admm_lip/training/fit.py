"""Training with any method other than ADMM, on the same stream of batches.

The nominal method of this loop is what "the same loop without a constraint" means wherever costs
are compared.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.labels import Classes
from ..networks.overrides import unwrapped
from ..settings import COUNT, NOT_NEGATIVE, POSITIVE, SEED, Rule, check_settings
from .batches import Batches, as_batches
from .keeper import Keeper, Trainee, held
from .loop import Asked, Row, deferred_signals, epoch_seed
from .loss_step import NonFiniteLoss
from .losses import PlainLoss, checked_value, resolve_loss
from .method import Method
from .optimize import make_optimizer, schedule_factor, set_learning_rate
from .precision import master_dtype, stored_dtype
from .reading import Batch

_RULES: dict[str, Rule] = {
    **dict.fromkeys(("epochs", "batch_size"), COUNT),
    **dict.fromkeys(("lr", "temperature", "lip"), POSITIVE),
    **dict.fromkeys(("eps", "checkpoint_seconds"), NOT_NEGATIVE),
    "seed": SEED,
}


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
        checkpoint_seconds: least time between two checkpoints; large ones are written less often.
    """

    epochs: int = 15
    batch_size: int = 256
    seed: int = 0
    loss: str = "auto"
    eps: float = 0.5
    temperature: float = 0.2
    lip: float = 1.0
    optimizer: str = "adam"
    lr: float = 1e-2
    schedule: str = "hold_then_linear"
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        check_settings(self, **_RULES)


@dataclass(frozen=True, eq=False)
class FitResult:
    """What a run gives back.

    Attributes:
        model: the trained module in plain layers.
        claimed_lip: the method's own bound, if it has one.
        history: one row per whole epoch.
        seconds: of training.
        stopped: ``"finished"``, ``"interrupted"`` (by Ctrl-C) or ``"terminated"`` (by SIGTERM).
        steps: optimizer steps done.
        classes: the label of each output, in order; ``None`` for a regression.
    """

    model: nn.Module
    claimed_lip: float | None
    history: tuple[Row, ...]
    seconds: float
    stopped: str
    steps: int
    classes: Classes | None = None


def fit(
    model: nn.Module,
    data: Any,
    method: Method,
    config: FitConfig,
    loss: Any = None,
    *,
    batch: Callable[[Any], Any] | None = None,
    steps: int | None = None,
    classes: Sequence[Any] | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train a copy of ``model`` by ``method``.

    With a ``run_dir``, the first Ctrl-C stops after the step that runs, with a checkpoint to go on
    from; what follows then is bit for bit what would have followed (on the CPU; with a DataLoader,
    as far as its own workers repeat themselves).

    Args:
        model: any module the method accepts; it is copied.
        data: a DataLoader, a Dataset, or a pair of arrays, as for :func:`admm_lip.train`.
        method: see ``methods``.
        config: settings.
        loss: overrides ``config.loss``: a name or ``loss(outputs, targets)``.
        batch: from what a DataLoader yields to the pair, as for ``train``.
        steps: batches of an epoch, as for ``train``.
        classes: the labels in the order of the outputs, as for ``train``.
        run_dir: folder for checkpoints; ``None`` writes nothing.
        resume: continue from the checkpoint in ``run_dir``.
        progress: show a bar.

    Raises:
        ValueError, TypeError: bad data or settings, by name.
        CheckpointError: nothing to resume, or a checkpoint of another run.
        NonFiniteLoss: with the epoch.
    """
    with held(run_dir, resume) as folder, torch.random.fork_rng(devices=[]):
        chosen = config.loss if loss is None else loss
        model = unwrapped(model)
        stored = stored_dtype(model)
        copied = copy.deepcopy(model).to(master_dtype(stored))
        batches = as_batches(
            data, config.batch_size, copied, chosen, batch=batch, steps=steps, classes=classes
        )
        torch.manual_seed(config.seed)
        trained = method.prepare(copied)
        plain = _plain_loss(batches, config, chosen)
        optimizer = make_optimizer(config.optimizer, trained.parameters(), config.lr)
        run = _Run(trained, optimizer, batches, method, config, plain)
        keeper = Keeper(
            Trainee(trained, optimizer, method, batches, config, chosen, stored), folder
        )
        at = Progress(**keeper.restore()) if resume else Progress(0, [], [], 0.0)
        stopped = _run_steps(run, at, keeper, progress)
        if stopped == "finished":
            _save(keeper, at)
    trained.eval()
    finished = method.finish(trained).to(stored)
    return FitResult(
        finished,
        method.lipschitz(_in_master(finished, stored)),
        tuple(at.history),
        at.seconds,
        stopped,
        at.step,
        batches.reading.classes,
    )


def _in_master(model: nn.Module, stored: torch.dtype) -> nn.Module:
    """The rounded weights in the dtype that norms are computed in."""
    master = master_dtype(stored)
    return model if master == stored else copy.deepcopy(model).to(master)


@dataclass
class Progress:
    """How far a run has come: steps done, losses of the epoch begun, history, seconds."""

    step: int
    losses: list[Tensor]
    history: list[Row]
    seconds: float


def _save(keeper: Keeper, at: Progress) -> None:
    losses = [value.cpu() for value in at.losses]
    keeper.save(at.step, vars(at) | {"losses": losses})


def _plain_loss(batches: Batches, config: FitConfig, loss: Any) -> PlainLoss:
    _, targets = next(iter(batches.epoch(0, 0)))
    bounded = resolve_loss(loss, targets, config.eps, config.temperature)
    return lambda outputs, targets: bounded(outputs, targets, config.lip)


@dataclass(frozen=True, eq=False)
class _Run:
    """Everything that stays the same during a run; ``model`` and ``optimizer`` mutate."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    method: Method
    config: FitConfig
    loss: PlainLoss

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.epochs * len(self.batches)


def _run_steps(run: _Run, at: Progress, keeper: Keeper, show: bool) -> str:
    """All steps that remain, ``at`` updated; returns ``"finished"`` or how it was stopped."""
    begun = time.perf_counter() - at.seconds
    bar = tqdm(
        total=run.total_steps,
        initial=at.step,
        desc=run.method.name,
        unit="step",
        disable=not show,
        mininterval=0.5,
    )
    watch = nullcontext(Asked()) if keeper.folder is None else deferred_signals()
    with bar, watch as asked:
        for batch, rows in _stream(run, at.step):
            at.losses.append(_step(run, batch, rows, at.step / run.total_steps))
            at.step, at.seconds = at.step + 1, time.perf_counter() - begun
            if at.step % len(run.batches) == 0:
                _end_epoch(run, at)
                bar.set_postfix(_postfix(at.history[-1]), refresh=False)
            bar.update()
            if keeper.due or asked.stop is not None:
                _mean_loss(run, at)
                _save(keeper, at)
            if asked.stop is not None and at.step < run.total_steps:
                return asked.stop
    return "finished"


def _stream(run: _Run, step: int) -> Iterator[tuple[Batch, Tensor | None]]:
    """Batches and their row numbers from optimizer step ``step`` to the end of the run."""
    per_epoch = len(run.batches)
    for epoch in range(step // per_epoch, run.config.epochs):
        seed, start = epoch_seed(run.config.seed, epoch), step - epoch * per_epoch
        run.model.train()
        for pair in zip(
            run.batches.epoch(seed, start), run.batches.rows(seed, start), strict=False
        ):
            yield pair
            step += 1


def _step(run: _Run, batch: Batch, rows: Tensor | None, share: float) -> Tensor:
    """One optimizer step at ``share`` of the run; returns the batch's loss."""
    device = next(run.model.parameters()).device
    set_learning_rate(run.optimizer, run.config.lr * schedule_factor(run.config.schedule, share))
    run.optimizer.zero_grad()
    x, y = (values.to(device) for values in batch)
    run.method.begin_batch(run.model, rows)
    value = checked_value(run.method.objective(run.model, x, y, run.loss, share))
    value.backward()  # type: ignore[no-untyped-call]
    run.optimizer.step()
    run.method.after_step(run.model)
    return value.detach()


def _end_epoch(run: _Run, at: Progress) -> None:
    """Turn the losses of an epoch into a row of the history."""
    row: Row = {
        "epoch": at.step // len(run.batches),
        "loss": _mean_loss(run, at),
        "seconds": at.seconds,
    }
    at.history.append(row | run.method.report(run.model))
    at.losses.clear()


def _mean_loss(run: _Run, at: Progress) -> float:
    """Mean loss of the epoch begun; called before anything is kept of it.

    Raises:
        NonFiniteLoss: naming the epoch.
    """
    losses = [value.to(at.losses[-1].device) for value in at.losses]  # some from a checkpoint
    mean = float(torch.stack(losses).mean()) if losses else 0.0
    if not math.isfinite(mean):
        raise NonFiniteLoss(
            f"epoch {(at.step - 1) // len(run.batches) + 1}: expected a finite loss, got {mean}; "
            "lower lr, or check the data's scale"
        )
    return mean


def _postfix(row: Row) -> dict[str, str]:
    return {name: f"{value:.4g}" for name, value in row.items() if name != "seconds"}
