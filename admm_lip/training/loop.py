"""The one training loop: rounds of a loss step, a Lipschitz step and a dual step.

Finiteness, limits, the progress bar, checkpoints and signals live here; the updates themselves are
functions in ``loss_step``, ``lipschitz_step``, ``multiplier_step`` and ``admm``.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..solvers import SolveFailed
from ..units import Units
from .admm import RHO_RULES, AdmmState, Matrices, anchor, dual_step, relax, residuals
from .batches import Batches
from .config import TrainConfig
from .layer_norms import Activations, LayerNorms
from .lipschitz_step import lipschitz_step, next_lip_sq
from .loss_step import NonFiniteLoss, Objective, loss_step, pull_of
from .metric import PLAIN, Metric
from .multiplier_step import RoundView
from .optimize import schedule_factor
from .reading import Batch

Row = dict[str, Any]
Share = Callable[[AdmmState], AdmmState]


# Optimizer steps of a round by the kind of constraint: a clip per layer costs less than a step.
ROUND_STEPS: Mapping[type, int] = {LayerNorms: 4, tuple: 8}


class TrainingFailed(RuntimeError):
    """A round could not be finished; names the round, the reason and what is left on disk."""


def local(state: AdmmState) -> AdmmState:
    """Share the state among one process: nothing to do.

    In data-parallel training one rank projects; this is where all of them receive its state.
    """
    return state


@dataclass(frozen=True, eq=False)
class Run:
    """Everything that stays the same during a run; only ``model`` and ``optimizer`` mutate.

    ``stored`` is the dtype that the weights are rounded to in the end.
    """

    model: nn.Module
    parameters: tuple[nn.Parameter, ...]
    slopes: Activations
    batches: Batches
    optimizer: torch.optim.Optimizer
    objective: Objective
    multiplier_step: Callable[[AdmmState, RoundView, TrainConfig], AdmmState]
    config: TrainConfig
    stored: torch.dtype
    metric: Metric = PLAIN
    units: Units | None = None
    share: Share = local

    @property
    def round_steps(self) -> int:
        """Optimizer steps of a round."""
        return self.config.round_steps or ROUND_STEPS[type(self.slopes)]

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.epochs * len(self.batches)


def read_weights(parameters: tuple[nn.Parameter, ...]) -> Matrices:
    """The parameters as float64 matrices, copied."""
    return tuple(p.detach().to(torch.float64, copy=True) for p in parameters)


def write_weights(parameters: tuple[nn.Parameter, ...], weights: Matrices) -> None:
    """Overwrite the parameters, rounded to their own dtype."""
    with torch.no_grad():
        for p, w in zip(parameters, weights, strict=True):
            p.copy_(w)


def stream(run: Run, step: int) -> Iterator[tuple[Batch, float]]:
    """Batches and step sizes from optimizer step ``step`` to the end of the run."""
    device = run.parameters[0].device
    per_epoch = len(run.batches)
    for epoch in range(step // per_epoch, run.config.epochs):
        start = step - epoch * per_epoch
        for inputs, targets in run.batches.epoch(epoch_seed(run.config.seed, epoch), start):
            factor = schedule_factor(run.config.schedule, step / run.total_steps)
            yield (inputs.to(device), targets.to(device)), run.config.lr * factor
            step += 1


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for every epoch of every run."""
    return (seed * 1_000_003 + epoch) % (2**63)


def one_round(
    run: Run, state: AdmmState, batches: list[tuple[Batch, float]], progress: float
) -> tuple[AdmmState, Row]:
    """One ADMM round at this share of the run; returns the next state and its history row."""
    config = run.config
    pull = pull_of(run.parameters, state)
    lip = state.target_sq**0.5
    loss = loss_step(run.model, run.optimizer, run.objective, batches, pull, lip, progress)
    weights = read_weights(run.parameters)
    relaxed = relax(weights, state.consensus, config.relaxation)
    point = anchor(relaxed, state.dual, state.rho)
    solution = lipschitz_step(point, state, run.slopes, config, run.metric)
    dual = dual_step(state.dual, relaxed, solution.weights, state.rho)
    measured = residuals(weights, solution.weights, state.consensus, dual, state.rho)
    moved = replace(
        state,
        consensus=solution.weights,
        dual=dual,
        lip_sq=solution.lip_sq,
        target_sq=next_lip_sq(point, solution, state, config, run.slopes),
        rho=RHO_RULES[config.rho_rule](state.rho, measured),
        warm=solution.warm,
    )
    view = RoundView(point, run.slopes, batches[-1][1] / config.lr, run.metric)
    moved = replace(run.multiplier_step(moved, view, config), iteration=state.iteration + 1)
    row = {
        "round": moved.iteration,
        "loss": loss,
        "lip": moved.lip,
        "ball_norm": solution.ball_norm,
        "primal_residual": measured.primal,
        "dual_residual": measured.dual,
        "relative_residual": measured.relative,
        "rho": state.rho,
        "status": solution.status.name,
        "backend": solution.backend,
        "iterations": solution.iterations,
    }
    return run.share(moved), row


def run_rounds(
    run: Run,
    state: AdmmState,
    history: list[Row],
    after_round: Callable[[AdmmState, list[Row]], None],
    progress: bool,
) -> tuple[AdmmState, str]:
    """Run every remaining round.

    Args:
        run: the fixed parts.
        state: where to begin.
        history: rows so far; grows in place by one row per round.
        after_round: called after every whole round (checkpoints).
        progress: show a bar.

    Returns:
        The last state, and ``"finished"``, ``"converged"``, ``"interrupted"`` or ``"terminated"``.

    Raises:
        TrainingFailed: when a loss is not finite or no backend can project; the last whole round
            has been handed to ``after_round``.
    """
    config, step = run.config, steps_done(history)
    begun = time.perf_counter() - (history[-1]["seconds"] if history else 0.0)
    batches = stream(run, step)
    bar = tqdm(
        total=state.iteration - (step - run.total_steps) // run.round_steps,
        initial=state.iteration,
        desc="training",
        unit="round",
        disable=not progress,
        mininterval=0.2,
    )
    with bar, deferred_signals() as asked:
        while step < run.total_steps and not _converged(run, history):
            chunk = [b for _, b in zip(range(run.round_steps), batches, strict=False)]
            try:
                state, row = one_round(run, state, chunk, step / run.total_steps)
            except (NonFiniteLoss, SolveFailed) as error:
                raise TrainingFailed(f"round {state.iteration + 1}: {error}") from error
            if config.restart:
                write_weights(run.parameters, state.consensus)
            step = min(step + run.round_steps, run.total_steps)
            row["step"], row["epoch"] = step, step / len(run.batches)
            row["seconds"] = time.perf_counter() - begun
            history.append(row)
            after_round(state, history)
            bar.update()
            bar.set_postfix(_postfix(row), refresh=False)
            if asked.stop is not None and step < run.total_steps:
                return state, asked.stop
    return state, "converged" if _converged(run, history) else "finished"


def steps_done(history: list[Row]) -> int:
    """Optimizer steps behind a history."""
    done: int = history[-1]["step"] if history else 0
    return done


def _converged(run: Run, history: list[Row]) -> bool:
    return bool(history) and history[-1]["relative_residual"] < run.config.residual_tol


def _postfix(row: Row) -> dict[str, str]:
    return {
        "loss": f"{row['loss']:.4g}",
        "L": f"{row['lip']:.4g}",
        "primal": f"{row['primal_residual']:.1e}",
        "dual": f"{row['dual_residual']:.1e}",
    }


# signal -> how a run ends that was asked to stop by it; and the exit code of a command then
STOPS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
EXIT_CODES = {name: 128 + number for number, name in STOPS.items()}


@dataclass
class Asked:
    """How the run was asked to stop, a value of ``STOPS``; ``None`` while it was not."""

    stop: str | None = None


@contextmanager
def deferred_signals() -> Iterator[Asked]:
    """Let the first Ctrl-C or SIGTERM wait for the end of the round; a second one acts at once.

    Outside the main thread signals cannot be caught and do what they always do.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    previous = {number: signal.getsignal(number) for number in STOPS}

    def put_back() -> None:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def remember(number: int, frame: Any) -> None:
        asked.stop = STOPS[signal.Signals(number)]
        put_back()

    for number in STOPS:
        signal.signal(number, remember)
    try:
        yield asked
    finally:
        put_back()
