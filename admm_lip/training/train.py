"""Training under a certified Lipschitz bound, or by another method: the public entry.

``train`` sets a run up, lets ``loop`` run it, and hands the finished network back: with its proof
where a bound was kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TrainingFailed
from ..lipschitz import All, Lipschitz
from ..networks.overrides import unwrapped
from ..units import Units
from .admm_state import read_weights
from .batches import Batches, TensorBatches, as_batches
from .callbacks import Callback
from .centring import mean_input
from .config import TrainConfig
from .constrained import asked_of, trained_layers
from .constraint import Constraint
from .held import Masks, plain_copy
from .identity import data_identity
from .keeper import Keeper, run_folder
from .kernel_layers import has_kernels
from .loop import run_steps
from .losses import BoundedLoss, resolve_loss
from .method import Method
from .metric import Metric
from .monotone import PlusLinear, core_of
from .moved import moved_as
from .optimize import make_optimizer, schedule_of
from .precision import master_dtype, scaler_of, stored_dtype
from .ranks import Ranks, ranks_of
from .run import Progress, Run
from .start import loss_scale
from .train_result import TrainResult

__all__ = ["TrainConfig", "TrainResult", "TrainingFailed", "train"]


def train(
    model: nn.Module | TrainResult,
    data: Any,
    config: TrainConfig | Lipschitz | All,
    loss: Any = None,
    *,
    constraint: Lipschitz | All | None = None,
    method: Method | None = None,
    units: Units | None = None,
    batch: Callable[[Any], Any] | None = None,
    steps: int | None = None,
    classes: Sequence[Any] | None = None,
    held: Masks | None = None,
    validation: Any = None,
    callbacks: Sequence[Callback] = (),
    run_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train a network under a Lipschitz bound (or penalty) by ADMM, and certify the result.

    Without ``bound`` and ``mu`` nothing is enforced, and ``method`` alone says how it is trained.

    Args:
        model: a chain of ``Linear`` layers and activations that are slope-restricted, or all sort
            pairs, or a path of convolutions, pools, residual blocks and activations with such
            a head (``skips.py``, ``layer_norms.py``; MaxMin is the activation for these); any
            module that the method accepts, where nothing is enforced.  It is copied, the one that
            went in is not changed.
            A result of an earlier run under a bound goes on from its network and its ADMM state,
            under another bound, say.  A DistributedDataParallel: every process calls this with all
            data, each takes its rows of every batch (losses are means over rows), and rank 0 alone
            projects, calls back and writes; a checkpoint serves any number of processes.
        data: a DataLoader, a Dataset, or a pair ``(inputs, targets)`` of tensors, NumPy arrays,
            data frames, series or lists.  Inputs take the model's dtype; integers, booleans and
            words are class labels, floats are numbers (``reading.py``).
        config: all settings, with ``bound`` or ``mu``; a ``Lipschitz`` stands for the others'
            defaults, as an ``All`` does.
        constraint: what is asked, beside settings without ``bound`` and ``mu``: a ``Lipschitz``, or
            ``All(Lipschitz(...), Monotone(...))``, under which the network gets a linear term and
            comes back as a :class:`~admm_lip.PlusLinear`.
        loss: overrides ``config.loss``: a name or any ``loss(outputs, targets)``.
        method: takes the place of the plain loss by its own objective (a gradient penalty, an
            adversarial loss, see ``methods``); the bound or penalty on L comes on top.
        units: of the raw rows that ``data`` were standardised from.  The bound (or penalty), eps
            and the certificate are then those of the raw function, in raw units
            (:class:`admm_lip.Units`); data and model stay standardised.
        batch: ``batch(item) -> (inputs, targets)``, for a DataLoader of dicts or longer tuples.
        steps: batches of an epoch, for a DataLoader that does not know its length.
        classes: the labels in the order of the outputs; ``None`` takes those of data in memory in
            sorted order, and a DataLoader's as numbers of the outputs.
        held: entries of weights that stay as they are under a bound or a price, as for
            :class:`admm_lip.Constraint`, beside what is frozen or pruned.
        validation: data in a form like ``data``, on which the loss (and the accuracy) of the
            network as it would be shipped join the history after every epoch.
        callbacks: see :class:`~admm_lip.training.callbacks.Callback`.
        run_dir: folder for checkpoints; ``None`` writes nothing.
        resume: continue from the checkpoint in ``run_dir``, to the identical result; with more
            ``epochs`` for longer.
        progress: say how far it is, after two seconds.

    Returns:
        The trained model with its certificate, history and last state.

    Raises:
        ValueError, TypeError: bad data, settings or model, by name.
        UnsupportedModule: a layer that cannot be trained under the LMI.
        CheckpointError: nothing to resume, or a checkpoint of another run.
        TrainingFailed: the loss left the finite numbers, or no backend could project.

    Example:
        >>> import torch
        >>> from admm_lip import TrainConfig, train
        >>> x = torch.rand(64, 4); y = (x[:, 0] > 0.5).long()
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> result = train(net, (x, y), TrainConfig(bound=2.0, epochs=2), progress=False)
        >>> result.certificate.lip <= 2.0
        True
    """
    config, asked = asked_of(config, constraint, units)
    _check_method(method, asked, units, held)
    earlier, given = _goes_on(model, asked)
    ranks, given = ranks_of(given), unwrapped(given)
    with run_folder(run_dir, resume, ranks) as folder, torch.random.fork_rng(devices=[]):
        subject = _subject(given, asked, held, earlier)
        chosen = config.loss if loss is None else loss
        like: dict[str, Any] = {"model": subject.model, "loss": chosen, "batch": batch}
        like["batch_size"] = config.batch_size
        batches = moved_as(config, as_batches(data, **like, steps=steps, classes=classes))
        ranks.same("data", lambda: _rows_of(batches))
        torch.manual_seed(config.seed)  # the caller's random state stays as it was
        run = _set_up(subject, batches, config, chosen, method or Method(), ranks)
        if validation is not None:  # read as the training data were
            measured = as_batches(validation, **like, classes=batches.reading.classes)
            run = replace(run, validation=measured)
        run = replace(run, callbacks=tuple(callbacks) if ranks.first else ())
        keeper = Keeper(run, folder)
        at = keeper.restore() if resume else Progress()
        stopped = run_steps(run, at, keeper, progress)
        keeper.save(at)
    return _finished(run, at, stopped)


def _rows_of(batches: Batches) -> dict[str, str]:
    """What says that ranks draw the same rows; inputs may be augmented, by each in its own way."""
    found = data_identity(batches)
    return {name: text for name, text in found.items() if name != "data (first inputs)"}


def _goes_on(
    model: nn.Module | TrainResult, asked: Lipschitz | All | None
) -> tuple[TrainResult | None, nn.Module]:
    """The run that this one goes on from, if any, and the network that was given."""
    if not isinstance(model, TrainResult):
        return None, model
    if isinstance(asked, All) and not isinstance(model.model, PlusLinear):
        raise TypeError(
            "model: expected the result of a run under All(...), got one without; give its .model"
        )
    return model, model.model


def _check_method(
    method: Method | None, asked: Any, units: Units | None, held: Masks | None
) -> None:
    """Raise unless the method can run under what is asked, or there is one where nothing is."""
    if asked is None:
        if method is None:
            raise ValueError(
                "bound, mu: expected exactly one of the two, or a method; got none of them"
            )
        for name, value in (("units", units), ("held", held)):
            if value is not None:
                raise ValueError(f"{name}: go with a bound or mu, got neither")
        return
    for hook in ("prepare", "after_step", "finish"):
        if method is not None and getattr(type(method), hook) is not getattr(Method, hook):
            raise TypeError(
                f"method: {method.name} changes the network itself ({hook}), so it cannot run "
                "under ADMM; leave out bound and mu"
            )


@dataclass(frozen=True, eq=False)
class _Subject:
    """What is trained.

    Attributes:
        model: a copy, in the dtype that is trained.
        asked: of it; ``None``: nothing.
        stored: the dtype that it came in.
        layers: that move, where all of them are dense and something is asked.
        held: masks of entries that stay.
        earlier: the run that this one goes on from.
    """

    model: nn.Module
    asked: Lipschitz | All | None
    stored: torch.dtype
    layers: list[nn.Linear]
    held: Masks
    earlier: TrainResult | None

    @cached_property
    def units(self) -> Units | None:
        """That the bound is meant in."""
        asked = None if self.asked is None else core_of(self.model, self.asked)[1]
        return None if asked is None else asked.units

    @property
    def length(self) -> float:
        """The bound's unit of inputs over that of the model's."""
        if self.units is None or not self.layers:
            return 1.0
        weights = read_weights([layer.weight for layer in self.layers])
        return Metric.of(self.units, weights).length


def _subject(
    given: nn.Module, asked: Lipschitz | All | None, held: Masks | None, earlier: TrainResult | None
) -> _Subject:
    """A copy of a network, with the linear term that ``All`` asks for.

    Raises:
        UnsupportedModule: by name, before data are read, but for convolutions, which ask for their
            shape.
    """
    copied, masks = plain_copy(given, held)
    if isinstance(asked, All) and isinstance(copied, PlusLinear):
        copied = copied.core  # its linear term is made anew
    stored = stored_dtype(copied)
    copied.to(master_dtype(stored))
    dense = asked is not None and not has_kernels(copied)
    layers = list(trained_layers(copied).values()) if dense else []
    if isinstance(asked, All):
        copied = PlusLinear(copied, asked)
        masks = {f"core.{name}": mask for name, mask in masks.items()}
    return _Subject(copied, asked, stored, layers, masks, earlier)


def _set_up(
    subject: _Subject,
    batches: Batches,
    config: TrainConfig,
    loss: Any,
    method: Method,
    ranks: Ranks,
) -> Run:
    """Check everything once, before the first step."""
    inputs, targets = _first_batch(batches)
    length = subject.length
    own = resolve_loss(loss, targets, config.eps / length, config.temperature)
    constraint = None
    if subject.asked is not None:
        constraint = _constraint(
            subject,
            subject.asked,
            config,
            mean=_mean(subject.layers, config, batches, inputs),
            loss_scale=loss_scale(config, length, _variance(targets)),
            regression=targets.is_floating_point(),
            input_shape=None if subject.layers else tuple(inputs.shape[1:]),
            group=ranks.group,
        )
    trained = method.prepare(subject.model)
    optimizer = make_optimizer(config.optimizer, trained.parameters(), config.lr)
    if constraint is not None:
        constraint.attach(optimizer)
    return Run(
        model=trained,
        optimizer=optimizer,
        batches=batches,
        method=method,
        constraint=constraint,
        loss=_in_own_units(own, length),
        named_loss=loss,
        config=config,
        schedule=schedule_of(config.schedule),
        stored=subject.stored,
        units=subject.units,
        scaler=scaler_of(config, optimizer, trained),
        ranks=ranks,
    )


def _mean(
    layers: list[nn.Linear], config: TrainConfig, batches: Batches, inputs: Tensor
) -> Tensor | None:
    """What inputs are centred by, where the first layer's bias can take it up."""
    if not layers or not config.centre:
        return None
    bias = layers[0].bias
    moves = bias is not None and bias.requires_grad
    return mean_input(batches, inputs, layers[0].in_features) if moves else None


def _constraint(
    subject: _Subject, asked: Lipschitz | All, config: TrainConfig, **more: Any
) -> Constraint:
    """A new constraint, or that of an earlier run, asking something else."""
    model, earlier = subject.model, subject.earlier
    more |= {"dtype": subject.stored, "held": subject.held}
    if isinstance(asked, All):  # another claim begins from the weights: its core has other units
        goes_on = earlier is not None and _same_claim(earlier, asked, model)
        state = earlier.state if earlier is not None and goes_on else None
        return Constraint(model, asked, config, state=state, **more)
    if earlier is None:
        return Constraint(model, asked, config, **more)
    then = earlier.config.asked(asked.units)
    if earlier.state is None or then is None:
        raise ValueError(
            "model: expected a result of a run under a bound, got one without; give its .model"
        )
    constraint = Constraint(model, then, config, state=earlier.state, **more)
    constraint.ask(asked)
    return constraint


def _same_claim(earlier: TrainResult, asked: All, model: nn.Module) -> bool:
    """Whether a run was under this bound, in these units, with this linear term."""
    own = asked.lipschitz
    assert isinstance(earlier.model, PlusLinear) and isinstance(model, PlusLinear)
    then, now = earlier.model.linear.weight, model.linear.weight
    same = (earlier.config.bound, earlier.certificate.units) == (own.bound, own.units)
    return same and torch.equal(then, now.to(then))


def _in_own_units(loss: BoundedLoss, length: float) -> BoundedLoss:
    """The loss knows rows as the model takes them: L with distances in its own unit."""

    def scaled(outputs: Tensor, targets: Tensor, lip: float) -> Tensor:
        return loss(outputs, targets, lip * length)

    return loss if length == 1.0 else scaled


def _first_batch(batches: Batches) -> tuple[Tensor, Tensor]:
    """A batch's inputs, and all targets (a batch's where they come from a loader)."""
    inputs, targets = next(iter(batches.epoch(0, 0)))
    return inputs, batches.targets if isinstance(batches, TensorBatches) else targets


def _variance(targets: Tensor) -> float | None:
    """Mean variance of a regression's targets; ``None`` for class labels."""
    if not targets.is_floating_point():
        return None
    rows = targets.to(torch.float64).reshape(len(targets), -1)
    return float(rows.var(dim=0, correction=0).mean())


def _finished(run: Run, at: Progress, stopped: str) -> TrainResult:
    """The plain network, and its proof or what the method claims of it."""
    proof, claimed = None, None
    if run.constraint is not None:
        model, proof = run.constraint.finish()
    else:
        run.model.eval()
        model = run.method.finish(run.model).to(run.stored)
        claimed = run.method.lipschitz(_in_master(model, run.stored))
    return TrainResult(
        model=model,
        history=tuple(at.history),
        state=None if run.constraint is None else run.constraint.state,
        config=run.config,
        stopped=stopped,
        seconds=at.seconds,
        steps=at.step,
        claimed_lip=claimed,
        classes=run.batches.reading.classes,
        _proof=proof,
    )


def _in_master(model: nn.Module, stored: torch.dtype) -> nn.Module:
    """The rounded weights in the dtype that norms are computed in."""
    master = master_dtype(stored)
    return model if master == stored else copy.deepcopy(model).to(master)
