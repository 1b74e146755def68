"""Training under a certified Lipschitz bound: the public entry.

``train`` sets a run up, lets ``loop`` run its rounds, writes the consensus into the model in the
model's own dtype, and certifies exactly those numbers.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..certificates.certificate import Certificate
from ..certificates.certifier import certify_global
from ..data.labels import Classes
from ..networks.chain import linear_layers, read_network
from ..networks.overrides import unwrapped
from ..units import Units
from .admm import AdmmState, Matrices
from .batches import Batches, TensorBatches, as_batches
from .centring import Centring, centre, mean_input
from .config import TrainConfig
from .keeper import Keeper, Trainee, held
from .layer_norms import LayerNorms, layer_start, training_constraint
from .loop import Row, Run, TrainingFailed, run_rounds, steps_done, write_weights
from .loss_step import Objective
from .losses import BoundedLoss, checked_value, resolve_loss
from .method import Method
from .metric import PLAIN, Metric
from .multiplier_step import resolve_multiplier_step
from .optimize import make_optimizer, schedule_factor
from .precision import master_dtype, stored_dtype
from .start import CAST_MARGIN, orthogonal_, start

__all__ = ["TrainConfig", "TrainResult", "TrainingFailed", "train"]

# Gap in L^2 to which the finished network is certified: the bound is used up by then, so a closer
# look gains a few units in the sixth digit, and on sorting layers it takes as long as three epochs.
FINAL_TOL = 1e-4
# Times that weights are rounded to the model's dtype and, outside the bound, scaled down.
ROUNDINGS = 5


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What a run gives back.

    Attributes:
        model: a plain module of the class that went in, holding the consensus weights.
        certificate: the proof of its Lipschitz constant, made from the weights as shipped.
        history: one row per round: loss, lip, residuals, rho, the projection's status, seconds.
        state: the last ADMM state.
        config: the settings.
        stopped: ``"finished"``, ``"converged"``, ``"interrupted"`` (by Ctrl-C) or ``"terminated"``
            (by SIGTERM).
        seconds: of training, certification not included.
        classes: the label of each output, in order, so that
            ``np.array(result.classes)[result.model(x).argmax(1)]`` are labels as the data have
            them; ``None`` for a regression.
    """

    model: nn.Module
    certificate: Certificate
    history: tuple[Row, ...]
    state: AdmmState
    config: TrainConfig
    stopped: str
    seconds: float
    classes: Classes | None = None


def train(
    model: nn.Module,
    data: Any,
    config: TrainConfig,
    loss: Any = None,
    *,
    method: Method | None = None,
    units: Units | None = None,
    batch: Callable[[Any], Any] | None = None,
    steps: int | None = None,
    classes: Sequence[Any] | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train a network under a Lipschitz bound (or penalty) by ADMM, and certify the result.

    Args:
        model: a chain of ``Linear`` layers and activations that are slope-restricted, or all sort
            pairs; it is copied, the one that went in is not changed.
        data: a DataLoader, a Dataset, or a pair ``(inputs, targets)`` of tensors, NumPy arrays,
            data frames, series or lists.  Inputs take the model's dtype; integers, booleans and
            words are class labels, floats are numbers (``reading.py``).
        config: all settings; give ``bound`` or ``mu``.
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
        run_dir: folder for checkpoints; ``None`` writes nothing.
        resume: continue from the checkpoint in ``run_dir``, to the identical result.
        progress: show a bar.

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
    with held(run_dir, resume) as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # the caller's random state stays as it was
        copied = copy.deepcopy(unwrapped(model))
        stored = stored_dtype(copied)
        layers = _trained_layers(copied.to(master_dtype(stored)))
        chosen, by = config.loss if loss is None else loss, method or Method()
        batches = as_batches(
            data, config.batch_size, copied, chosen, batch=batch, steps=steps, classes=classes
        )
        run, state, centring = _set_up(
            copied, layers, batches, config, chosen, method, stored, units
        )
        history: list[Row] = []
        keeper = Keeper(
            Trainee(run.model, run.optimizer, by, batches, config, chosen, stored, units), folder
        )
        if resume:
            kept = keeper.restore()
            state, history = AdmmState(**kept["state"]), kept["history"]

        def save(state: AdmmState, history: list[Row]) -> None:
            fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
            keeper.save(steps_done(history), {"state": fields, "history": history})

        def after_round(state: AdmmState, history: list[Row]) -> None:
            if keeper.due:
                save(state, history)

        state, stopped = run_rounds(run, state, history, after_round, progress)
        save(state, history)
    return _finished(run, state, history, stopped, centring)


def _trained_layers(model: nn.Module) -> list[nn.Linear]:
    """The layers that move, in evaluation mode: dropout is the identity in what is certified.

    Raises:
        UnsupportedModule: by name, for a network that is no chain of them.
        ValueError: for a frozen parameter: every projection moves all weights, and the start
            scales all biases.
    """
    layers = linear_layers(model.eval())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise ValueError(
                f"model: {name} is frozen (requires_grad=False), but the bound moves every layer; "
                "thaw it by model.requires_grad_(True), or train it by another method"
            )
    return layers


def _set_up(
    model: nn.Module,
    layers: list[nn.Linear],
    batches: Batches,
    config: TrainConfig,
    loss: Any,
    method: Method | None,
    stored: torch.dtype,
    units: Units | None,
) -> tuple[Run, AdmmState, Centring | None]:
    """Check everything once, before the first step."""
    if config.start == "scratch":
        orthogonal_(layers, config.seed)
    parameters = tuple(cast(nn.Parameter, layer.weight) for layer in layers)
    chain = read_network(model).chain()
    model.train()
    slopes = training_constraint(chain, parameters[0].device)
    inputs, targets = _first_batch(batches)
    weights = tuple(p.detach().to(torch.float64) for p in parameters)
    metric = PLAIN if units is None else Metric.of(units, weights)
    own = resolve_loss(loss, targets, config.eps / metric.length, config.temperature)
    bounded = _in_own_units(own, metric.length)
    objective = _objective(bounded, method)
    schedule_factor(config.schedule, 0.0)
    multiplier_step = resolve_multiplier_step(
        config.multiplier_step,
        tuple(layer.kind for layer in chain.activations),
        regression=targets.is_floating_point(),
    )
    variance = _variance(targets)
    if isinstance(slopes, LayerNorms):
        if units is not None:
            raise ValueError(
                "units: a network that sorts pairs is trained by one norm per layer, in the units "
                "of its inputs; leave units out, and certify the result with them"
            )
        begin = layer_start(weights, config, stored, variance)
    else:
        begin = start(weights, slopes, config, stored, variance, metric)
    write_weights(parameters, begin.state.consensus)
    with torch.no_grad():
        for layer, factor in zip(layers, begin.bias_factors, strict=True):
            if layer.bias is not None:
                layer.bias.mul_(factor)
    centring = _centring(layers[0], batches, inputs, config)
    optimizer = make_optimizer(config.optimizer, model.parameters(), config.lr)
    run = Run(
        model,
        parameters,
        slopes,
        batches,
        optimizer,
        objective,
        multiplier_step,
        config,
        stored,
        metric,
        units,
    )
    return run, begin.state, centring


def _in_own_units(loss: BoundedLoss, length: float) -> BoundedLoss:
    """The loss knows rows as the model takes them: L with distances in its own unit."""

    def scaled(outputs: Tensor, targets: Tensor, lip: float) -> Tensor:
        return loss(outputs, targets, lip * length)

    return loss if length == 1.0 else scaled


def _centring(
    layer: nn.Linear, batches: Batches, inputs: Tensor, config: TrainConfig
) -> Centring | None:
    """The first layer centred, where that is asked for and it has a bias to take the mean."""
    if not config.centre or layer.bias is None:
        return None
    mean = mean_input(batches, inputs, layer.in_features)
    if mean is None:
        return None
    centring = centre(layer, mean)
    if config.start == "scratch":  # nothing is lost by a bias of 0 at the mean input
        with torch.no_grad():
            layer.bias.zero_()
    return centring


def _objective(loss: BoundedLoss, method: Method | None) -> Objective:
    """The loss of a model on a batch, by way of the method's objective where there is one."""
    if method is None:
        return lambda model, x, y, lip, progress: checked_value(loss(model(x), y, lip))
    kind = type(method)
    for hook in ("prepare", "after_step", "finish"):
        if getattr(kind, hook) is not getattr(Method, hook):
            raise TypeError(
                f"method: {method.name} changes the network itself ({hook}), so it cannot run "
                "under ADMM; train it by admm_lip.training.fit.fit"
            )

    def objective(model: nn.Module, x: Tensor, y: Tensor, lip: float, progress: float) -> Tensor:
        value = method.objective(model, x, y, lambda out, aim: loss(out, aim, lip), progress)
        return checked_value(value)

    return objective


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


def _finished(
    run: Run, state: AdmmState, history: list[Row], stopped: str, centring: Centring | None
) -> TrainResult:
    """Write the consensus into the model, and certify exactly what is stored there."""
    write_weights(run.parameters, state.consensus)
    if centring is not None:
        centring.undo()
    run.model.eval().to(run.stored)
    certificate = _certified(run, state, state.consensus)
    return TrainResult(
        model=run.model,
        certificate=certificate,
        history=tuple(history),
        state=state,
        config=run.config,
        stopped=stopped,
        seconds=history[-1]["seconds"] if history else 0.0,
        classes=run.batches.reading.classes,
    )


def _certified(run: Run, state: AdmmState, weights: Matrices) -> Certificate:
    """The certificate of ``weights`` as the model stores them.

    Where rounding has led out of the bound, all layers are scaled by what it is too much, and
    rounded again.

    Raises:
        TrainingFailed: when that does not lead back.
    """
    bound = run.config.bound
    solver = replace(run.config.solver, tol=max(run.config.solver.tol, FINAL_TOL))
    for _ in range(ROUNDINGS):
        known = state.multiplier or None
        found = certify_global(
            run.model, units=run.units, solver=solver, requested=bound, multiplier=known
        )
        if bound is None or found.lip <= bound:
            return found
        share = (bound / found.lip * (1.0 - CAST_MARGIN[run.stored])) ** (1.0 / len(weights))
        weights = tuple(share * w for w in weights)
        write_weights(run.parameters, weights)
    raise TrainingFailed(
        f"bound: {run.stored} cannot hold weights that certify {bound:g}, only {found.lip:.6g}; "
        "train in float32"
    )
