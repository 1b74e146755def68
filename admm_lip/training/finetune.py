"""ADMM rounds from a trained network, with what the network knows: the second half of a projection.

The network as given, g, is teacher and start.  Its class probabilities q, softened, enter the
targets beside the labels y, in the margin loss (``losses.py``) of the certified radius eps:

    temperature CE((f(x) - sqrt(2) r L e_y) / tau,  (1 - distill) e_y + distill q)
        =  margin loss with y  +  distill / L (f_y - q' f)  +  what depends on no weight,

    q = softmax(g(x) / (softness m)),   m the median of g's margins, first less second output.

In units of its own margins a teacher says the same at any scale of its outputs: at one temperature
for all of them a network that already has L = 1 would teach labels that are almost uniform.

Where there are no labels, y is the class that the given network predicts.  A regression's targets
are mixed with its outputs in the same way.

The network's own scale is no obstacle for a classifier: the start is scaled evenly over its layers
to the bound, which changes no prediction, after what ``smooth.py`` does.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..networks.interface import interface_of
from ..solvers import SolverConfig
from .batches import Batches, as_batches
from .config import FinetuneConfig as FinetuneConfig
from .config import TrainConfig
from .held import Masks
from .losses import PlainLoss
from .method import Method
from .smooth import best_smoothed, coarse, even_gauge
from .train import TrainResult, train

# Samples that smoothing looks at.
_SAMPLES = 10_000


@dataclass(frozen=True, eq=False)
class Taught(Method):
    """The loss of the module's docstring."""

    name: ClassVar[str] = "taught"
    source: ClassVar[str] = "G. Hinton, O. Vinyals, J. Dean, 2015, under a margin loss"

    teacher: nn.Module
    lip: float
    config: FinetuneConfig
    # Of the class probabilities; no part of what tells runs apart, for teacher and data give it.
    temperature: float = field(default=1.0, compare=False)

    @classmethod
    def by(cls, teacher: nn.Module, x: Tensor, lip: float, config: FinetuneConfig) -> Taught:
        """By a copy of a classifier whose margins are measured on inputs ``(samples, ...)``."""
        device = next(teacher.parameters()).device
        with torch.no_grad():
            known = torch.cat(
                [teacher(some.to(device)) for some in torch.split(x, config.batch_size)]
            )
        first, second = known.topk(2, dim=1).values.unbind(dim=1)
        margin = float((first - second).median())
        return cls(copy.deepcopy(teacher).eval(), lip, config, config.softness * margin)

    def chances(self, known: Tensor) -> Tensor:
        """The class probabilities q for the teacher's outputs, both ``(batch, classes)``."""
        # Where most outputs are tied the classes that lead share alike.
        temperature = max(self.temperature, torch.finfo(known.dtype).tiny)
        return ((known - known.amax(dim=1, keepdim=True)) / temperature).softmax(dim=1)

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, progress: float
    ) -> Tensor:
        """The scalar to minimise on one batch."""
        with torch.no_grad():
            known = self.teacher(inputs)
        share, outputs = self.config.distill, model(inputs)
        if targets.is_floating_point():
            return loss(outputs, (1.0 - share) * targets.reshape(known.shape) + share * known)
        own = outputs.gather(1, targets[:, None])[:, 0]
        excess = (own - (self.chances(known) * outputs).sum(dim=1)).mean()
        total: Tensor = loss(outputs, targets) + share / self.lip * excess
        return total


def labelled(model: nn.Module, data: Any, config: FinetuneConfig) -> Batches:
    """The data as batches: inputs alone get the classes that ``model`` predicts.

    Raises:
        ValueError, TypeError: for data that cannot be read; for inputs without targets of a network
            with one output, which predicts no class.
    """
    if not is_alone(data):
        return as_batches(data, config.batch_size, model)
    takes = interface_of(model, "finetune", data)
    if takes.outputs == 1:
        raise ValueError(
            "finetune: a network of one output predicts no class; expected a pair (inputs, "
            "targets), got inputs alone"
        )
    inputs = takes.inputs("finetune", data)
    with torch.no_grad():
        classes = model(inputs.to(takes.device)).argmax(dim=1)
    return as_batches((inputs, classes), config.batch_size, model)


def is_alone(data: Any) -> bool:
    """Whether the data are one array of inputs, without targets."""
    return not isinstance(data, (tuple, list, Dataset, DataLoader, dict))


def sample(batches: Batches, config: FinetuneConfig) -> tuple[Tensor, Tensor]:
    """Some of the data, in the order in which training draws them."""
    few = islice(batches.epoch(config.seed, 0), -(-_SAMPLES // config.batch_size))
    inputs, targets = zip(*few, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def prepared(
    model: nn.Module, some: tuple[Tensor, Tensor], config: FinetuneConfig, solver: SolverConfig
) -> nn.Module:
    """A classifier smoothed on some of its data, with even multipliers."""
    ready, tol = model, coarse(solver)
    if config.ridges:
        ready = best_smoothed(model, *some, config.ridges, tol)
    return even_gauge(ready, tol) if config.even else ready


def finetuned(
    start: nn.Module,
    method: Taught,
    data: Batches,
    epochs: int,
    solver: SolverConfig,
    progress: bool,
    run_dir: str | Path | None = None,
    resume: bool = False,
    held: Masks | None = None,
) -> TrainResult:
    """The rounds.

    Args:
        start: where they begin.
        method: the network as given as teacher, the Lipschitz bound and everything else.
        data: with targets.
        epochs: passes over the data.
        solver: of the projections.
        progress: say how far it is, after two seconds.
        run_dir: folder for checkpoints.
        resume: continue from the one there.
        held: masks of entries that stay.
    """
    steps, config = epochs * len(data), method.config
    settings = TrainConfig(
        bound=method.lip,
        epochs=epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        eps=config.eps,
        loss="auto" if data.reading.classes is None else "margin",
        lr=step_size(steps) if config.lr is None else config.lr,
        checkpoint_seconds=config.checkpoint_seconds,
        solver=solver,
    )
    return train(
        start,
        data,
        settings,
        method=method,
        held=held,
        run_dir=run_dir,
        resume=resume,
        progress=progress,
    )


def step_size(steps: int) -> float:
    """The larger the more steps there are: few ones should not throw away what is there."""
    return min(1e-2, max(3e-3, 3e-5 * steps))
