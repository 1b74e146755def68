"""The one training loop, whatever the method: batches, steps, rounds, epochs, checkpoints, signals.

A constraint acts by itself, through the optimizer; the loop asks it when its rounds are over.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ..errors import TrainingFailed
from ..progress import working
from .batches import Batches
from .callbacks import Moment, Row
from .keeper import Keeper
from .losses import checked_value
from .optimize import set_learning_rate
from .reading import Batch
from .run import Progress, Run
from .signals import STOPS, Asked, deferred_signals

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def run_steps(run: Run, at: Progress, keeper: Keeper, show: bool) -> str:
    """Run every remaining step, ``at`` updated.

    The first Ctrl-C or SIGTERM waits for the end of a round of ADMM, or of a step where nothing is
    enforced (and there acts at once where there is no folder to go on from).

    Returns:
        ``"finished"``, ``"converged"``, ``"stopped"`` (by a callback), ``"interrupted"`` or
        ``"terminated"``.

    Raises:
        TrainingFailed: when a loss is not finite or no backend can project.
    """
    if _converged(run, at):
        return "converged"
    begun = time.perf_counter() - at.seconds
    run.model.train()
    deferred = run.constraint is not None or keeper.folder is not None
    watch = deferred_signals() if deferred else nullcontext(Asked())
    name = "training" if run.constraint is not None else run.method.name
    with (
        working(
            name, run.total_steps, "steps", done=at.step, show=show and run.ranks.first
        ) as work,
        watch as asked,
    ):
        for batch, rows in _stream(run, at.step):
            _step(run, at, batch, rows)
            at.seconds = time.perf_counter() - begun
            ended = _end_step(run, at)
            work.step()
            if ended:
                work.note = _note(at.history[-1])
                if (reason := _ended_by(run, at)) is not None:
                    return reason
            if at.step < run.total_steps and (ended or run.constraint is None):
                stop = _agreed(run, asked)
                if stop is not None or keeper.due:
                    mean_loss(at)
                if stop is not None:
                    return stop
                if keeper.due:
                    keeper.save(at)
    return "finished"


def _agreed(run: Run, asked: Asked) -> str | None:
    """How any of the ranks was asked to stop."""
    ways = (None, *STOPS.values())
    return ways[run.ranks.greatest("end of a round", ways.index(asked.stop), run.device)]


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for every epoch of every run."""
    return (seed * 1_000_003 + epoch) % (2**63)


def _stream(run: Run, step: int) -> Iterator[tuple[Batch, Tensor | None]]:
    """Batches and their row numbers from optimizer step ``step`` to the end of the run."""
    per_epoch = run.epoch_steps
    for epoch in range(step // per_epoch, run.config.epochs):
        seed, start = epoch_seed(run.config.seed, epoch), step - epoch * per_epoch
        for pair in zip(
            run.batches.epoch(seed, start), run.batches.rows(seed, start), strict=False
        ):
            yield pair
            step += 1


def _step(run: Run, at: Progress, batch: Batch, rows: Tensor | None) -> None:
    """One optimizer step; the batch's loss joins ``at.losses``."""
    share, lip = at.step / run.total_steps, run.lip
    set_learning_rate(run.optimizer, run.config.lr * run.schedule(share))
    x, y = (run.ranks.part(values).to(run.device) for values in batch)
    run.method.begin_batch(run.model, None if rows is None else run.ranks.part(rows))
    seen: list[Tensor] = []

    # Some optimizers (L-BFGS) evaluate more than once; the loss reported is the first one.
    def evaluate() -> Tensor:
        run.optimizer.zero_grad()
        with _autocast(run):
            value = checked_value(
                run.method.objective(run.model, x, y, lambda f, t: run.loss(f, t, lip), share)
            )
        run.scaler.scale(value).backward()  # type: ignore[no-untyped-call]
        if run.ranks.size > 1:
            value = _summed(run, at, len(batch[0]), value.detach())
        if run.config.gradient_clip is not None:
            run.scaler.unscale_(run.optimizer)
            nn.utils.clip_grad_norm_(run.model.parameters(), run.config.gradient_clip)
        if not seen:
            at.losses.append(value.detach())
        seen.append(value.detach())
        return seen[-1]

    try:
        _move(run, evaluate)
        at.step += 1
        _close_last_round(run, at)
    except TrainingFailed:
        mean_loss(at)  # where that is the reason, it is the better one to name
        raise
    run.method.after_step(run.model)


def _summed(run: Run, at: Progress, rows: int, value: Tensor) -> Tensor:
    """Gradients and value of the whole batch; each rank has those of its rows' mean."""
    moved = [p for p in run.model.parameters() if p.requires_grad]
    for parameter in moved:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    shares = [*(p.grad for p in moved if p.grad is not None), value.to(moved[0])]
    torch._foreach_mul_(shares, run.ranks.share(rows))
    run.ranks.add(f"step {at.step + 1}", shares)
    return shares[-1]


def _move(run: Run, evaluate: Callable[[], Tensor]) -> None:
    if run.scaler.is_enabled():  # takes no closure
        evaluate()
        run.scaler.step(run.optimizer)
        run.scaler.update()
    else:
        run.optimizer.step(evaluate)  # type: ignore[arg-type]


def _close_last_round(run: Run, at: Progress) -> None:
    """The last round of a run may be a short one."""
    held = run.constraint
    if held is not None and at.step == run.total_steps and held.state.steps:
        held.close_round()


def _autocast(run: Run) -> AbstractContextManager[object]:
    dtype = AUTOCAST.get(run.config.precision)
    return nullcontext() if dtype is None else torch.autocast(run.device.type, dtype)


def _end_step(run: Run, at: Progress) -> bool:
    """Validation, the round's row and the callbacks, where they are due; whether a round ended."""
    epoch_over = at.step % run.epoch_steps == 0
    if epoch_over and run.validation is not None:
        at.noted = _validated(run, run.validation)
    done = run.constraint.state.iteration if run.constraint is not None else None
    ended = epoch_over if done is None else done > len(at.history)
    if ended:
        at.history.append(_row(run, at))
        at.losses.clear()
        at.noted = {}
    if run.callbacks and (ended or epoch_over):
        moment = _moment(run, at)
        for callback in run.callbacks:
            if ended:
                callback.on_round(moment)
            if epoch_over:
                callback.on_epoch(moment)
    return ended


def _row(run: Run, at: Progress) -> Row:
    """What a round leaves in the history."""
    held = run.constraint
    counted = {} if held is None else {"round": held.state.iteration}
    measured = {} if held is None else held.state.measured
    return {
        **counted,
        "loss": mean_loss(at),
        **measured,
        **run.method.report(run.model),
        **at.noted,
        "step": at.step,
        "epoch": at.step / run.epoch_steps,
        "seconds": at.seconds,
    }


def _validated(run: Run, batches: Batches) -> Row:
    """Mean loss, and accuracy where targets are classes, of the network as it would be shipped."""
    held, lip = run.constraint, run.lip
    loss, right, rows = 0.0, 0, 0
    with torch.no_grad(), nullcontext() if held is None else held.shipped():
        run.model.eval()
        for x, y in batches.epoch(0, 0):
            outputs, targets = run.model(x.to(run.device)), y.to(run.device)
            loss += len(y) * float(run.loss(outputs, targets, lip))
            rows += len(y)
            if not y.is_floating_point():
                right += int((outputs.argmax(1) == targets).sum())
        run.model.train()
    found = {"validation_loss": loss / rows}
    return found if y.is_floating_point() else found | {"validation_accuracy": right / rows}


def _moment(run: Run, at: Progress) -> Moment:
    row = at.history[-1] if at.history else {}
    return Moment(run.model, row, at.step, at.step / run.epoch_steps, run.constraint)


def _ended_by(run: Run, at: Progress) -> str | None:
    """Why the run ends after this round, if it does."""
    if _converged(run, at):
        return "converged"
    moment = _moment(run, at)
    asked = [callback.stop(moment) for callback in run.callbacks]
    stops = run.ranks.greatest("end of a round", int(any(asked)), run.device)
    return "stopped" if stops and at.step < run.total_steps else None


def _converged(run: Run, at: Progress) -> bool:
    row = at.history[-1] if at.history else {}
    return bool(row.get("relative_residual", math.inf) < run.config.residual_tol)


def mean_loss(at: Progress) -> float:
    """Mean loss since the last row; called before anything is kept of it.

    Raises:
        TrainingFailed: naming the round, when it is not finite.
    """
    losses = [value.to(at.losses[-1].device) for value in at.losses]  # some from a checkpoint
    mean = float(torch.stack(losses).mean()) if losses else 0.0
    if not math.isfinite(mean):
        raise TrainingFailed(
            f"round {len(at.history) + 1}: loss: expected a finite value, got {mean}; lower lr, or "
            "check the data's scale"
        )
    return mean


# Columns that say less, or that are said anyway.
_NOT_SHOWN = {"round", "ball_norm", "relative_residual", "rho", "status", "backend", "iterations"}
_NOT_SHOWN |= {"step", "epoch", "seconds"}


def _note(row: Row) -> str:
    return ", ".join(f"{name} {v:.4g}" for name, v in row.items() if name not in _NOT_SHOWN)
