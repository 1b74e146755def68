"""The nearest network under a bound, after training: weights move as little as they can.

1. T is LipSDP's multiplier of the network scaled evenly over its layers to the bound.
2. For fixed T the nearest weights are a projection onto a convex set (``solve_project``).
3. Its distance has a derivative in T that costs nothing (``multiplier_step.sensitivity``): T
   descends along it, each trial being one warm-started projection.  Random networks of two to four
   hidden layers end 20 to 40 percent nearer than after step 2; re-solving LipSDP at the projection
   gains 1 to 5 percent.
4. The weights are rounded to the model's dtype, and exactly those numbers are certified.

What is frozen, pruned or masked stays (``held.py``); step 1 then scales the rest.

Networks that sort pairs move in the frame of sums and differences (``pair_rotation.py``), those
with convolutions layer by layer (``project_kernels.py``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..certificates.certifier import certify_global
from ..lipschitz import Lipschitz
from ..networks.batch_norm import fold_batch_norm, normalises
from ..networks.chain import linear_layers, read_network
from ..networks.layers import Shape
from ..networks.module_state import evaluating
from ..networks.overrides import unwrapped
from ..settings import BOUND, COUNT
from ..solvers import (
    CertifyProblem,
    ProjectProblem,
    ProjectSolution,
    Slopes,
    SolveFailed,
    SolverConfig,
    solve_certify,
    solve_project,
)
from ..units import Units
from .admm_state import Matrices
from .config import AdmmConfig
from .constrained import check_asked, units_once
from .finetune import FinetuneConfig, Taught, finetuned, is_alone, labelled, prepared, sample
from .held import Held, Masks, held_of, plain_copy
from .judging import Judge, Pair
from .kernel_layers import has_kernels
from .metric import PLAIN, Metric
from .multiplier_step import sensitivity
from .pair_rotation import Frame
from .precision import master_dtype, stored_dtype
from .project_kernels import moved_by, nearest_kernels, not_held
from .projected import Projection
from .signals import EXIT_CODES
from .start import CAST_MARGIN, fitted
from .terms import LayerNorms, Terms

_TRIALS = 30
# Trials of T are compared at this tolerance; the last projection has the caller's.
_TRIAL_TOL = 1e-4
_GROWTH, _SHRINK = 1.6, 0.35
# Corrections of the projection's bound, and the slack in the certified one that ends them.
_ATTEMPTS = 5
_SLACK = 2e-3


def project(
    model: nn.Module,
    bound: float | Lipschitz,
    *,
    units: Units | None = None,
    solver: str | SolverConfig = "auto",
    finetune: Any = None,
    epochs: int = 2,
    judge: Any = None,
    config: FinetuneConfig | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    input_shape: Shape | None = None,
    held: Masks | None = None,
) -> Projection:
    """The nearest network that certifies ``bound``; the one that went in is not touched.

    The set of all networks under a bound is not convex; what comes back is nearest for its
    multiplier, which was improved from a good start.  Biases stay; of convolutions and skips they
    shrink with what they are added to.  What comes back is in evaluation mode, as it is certified,
    with batch normalisation folded (:func:`admm_lip.fold_batch_norm`).

    With data the network is fine-tuned under the bound instead: a classifier is smoothed on them
    and scaled to the bound (``smooth.py``), a regression projected; then ADMM rounds follow, with
    the given network as teacher (``finetune.py``).

    Args:
        model: Linear layers and activations in turn, read by ``chain.linear_layers``; or a path of
            convolutions, pools, residual blocks and activations with such a head.
        bound: the l2 Lipschitz constant to keep, in the model's own units; or a ``Lipschitz``.
        units: of a user's rows, where the model takes and gives standardised numbers: the bound is
            then one of the raw function (:class:`admm_lip.Units`).  Not with ``finetune``: train
            from the given network under ``train(units=...)`` instead.
        solver: a backend's name or a ``SolverConfig``.
        finetune: data to fine-tune on: a DataLoader, a Dataset, a pair of tensors, or one tensor
            of inputs whose classes nobody knows; ``None`` only projects.
        epochs: passes over these data.
        judge: labelled data ``(inputs, targets)`` that ``before`` and ``after`` are measured on
            when they are asked for; ``None`` takes some of ``finetune``, where it has labels.
        config: of the fine-tuning.
        run_dir: folder for checkpoints of the fine-tuning; ``None`` writes nothing.
        resume: continue from the checkpoint in ``run_dir``, to the identical result.
        progress: say how far it is, after two seconds.
        input_shape: of one input without the batch; needed for convolutions only, and read off
            the data to fine-tune on.
        held: entries of weights that stay as they are, as for :class:`admm_lip.Constraint`, beside
            what is frozen or pruned.

    Raises:
        ValueError: for a bound that is not a finite number > 0, or settings, by name.
        UnsupportedModule: by name, for networks that are neither of the two.
        SolverError: when no backend could project.
        CheckpointError: nothing to resume, or a checkpoint of another run.

    Example:
        >>> import torch
        >>> from admm_lip import project
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
        >>> model[0].weight.data = torch.diag(torch.tensor([3.0, 0.5]))
        >>> p = project(model, bound=1.0)
        >>> p.certificate.lip <= 1.0, round(p.distance, 4)
        (True, 2.0)
    """
    bound, units = _asked(bound, units)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    model, masks = plain_copy(unwrapped(model), held)
    if normalises(model):
        model = fold_batch_norm(model)
    kernels = has_kernels(model)
    if not kernels:
        linear_layers(model)  # refuses, by name, what cannot be projected
    chosen = SolverConfig(solver) if isinstance(solver, str) else solver
    if finetune is None:
        if (config, judge, run_dir, resume) != (None, None, None, False):
            raise ValueError("config, judge, run_dir, resume: go with finetune=data only")
        if kernels and units is not None:
            raise ValueError("units: convolutions and skips are projected in those of their inputs")
        with evaluating(model):
            return _projected(model, bound, chosen, masks, units, input_shape)
    if units is not None:
        raise ValueError(
            "units: go with a projection alone; to train in them, give train(units=...) the network"
        )
    epochs = COUNT.read("epochs", epochs)
    own = config or FinetuneConfig()
    job = _Job(bound, epochs, own, chosen, masks, progress, run_dir, resume)
    return _finetuned(model, finetune, judge, job)


def _asked(bound: float | Lipschitz, units: Units | None) -> tuple[float, Units | None]:
    """A bound, and the units that it is meant in."""
    if isinstance(bound, Lipschitz):
        check_asked(bound)
        if bound.bound is None:
            raise ValueError(f"bound: a projection needs one, got mu={bound.mu:g}")
        units = units_once(bound, units)
        bound = bound.bound
    return float(BOUND.read("bound", bound)), units


@dataclass(frozen=True)
class _Job:
    """What was asked for beside model and data."""

    bound: float
    epochs: int
    config: FinetuneConfig
    solver: SolverConfig
    held: Masks
    progress: bool
    run_dir: str | Path | None
    resume: bool


def _finetuned(model: nn.Module, given: Any, judge: Any, job: _Job) -> Projection:
    """Prepare, run the rounds, and measure before and after."""
    stored = stored_dtype(model)
    teacher = copy.deepcopy(model).eval().to(master_dtype(stored))
    data = labelled(teacher, given, job.config)
    some, regression = sample(data, job.config), data.reading.classes is None
    if regression or has_kernels(teacher) or job.held or any(map(_frozen, teacher.parameters())):
        shape = tuple(some[0].shape[1:])
        start = _projected(teacher, job.bound, job.solver, job.held, input_shape=shape).model
    else:
        start = prepared(teacher, some, job.config, job.solver)
    by = (teacher, job.bound, job.config)
    method = Taught(*by) if regression else Taught.by(teacher, some[0], job.bound, job.config)
    result = finetuned(
        start.to(stored),
        method,
        data,
        job.epochs,
        job.solver,
        job.progress,
        job.run_dir,
        job.resume,
        job.held,
    )
    away = moved_by(model, result.model)
    found = Projection(result.model, result.certificate, away, result.stopped)
    asked = None if regression else _pair(given, data, judge, job.config)
    if asked is None or result.stopped in EXIT_CODES:
        return found
    judging = Judge(teacher, asked, job.config.eps, job.solver, job.progress)
    return replace(found, _judge=judging)


def _pair(given: Any, data: Any, judge: Any, config: FinetuneConfig) -> Callable[[], Pair] | None:
    """What classifiers are judged on: data given are checked now, others drawn when needed."""
    if judge is None and not is_alone(given):
        return lambda: data.reading.pair("judge", *sample(data, config))
    if judge is None or judge is False:
        return None
    pair: Pair = data.reading.pair("judge", *judge)
    return lambda: pair


def _frozen(parameter: nn.Parameter) -> bool:
    return not parameter.requires_grad


def _projected(
    model: nn.Module,
    bound: float,
    config: SolverConfig,
    held: Masks,
    units: Units | None = None,
    input_shape: Shape | None = None,
) -> Projection:
    """The nearest network, without data."""
    if has_kernels(model):
        moved, certificate = nearest_kernels(model, bound, config, input_shape, held)
        return Projection(moved, certificate, moved_by(model, moved))
    certificate = certify_global(model, units=units, solver=config, requested=bound)
    if certificate.lip <= bound:
        return Projection(copy.deepcopy(model), certificate, 0.0)
    return _nearest(model, bound, config, units, held)


def _nearest(
    model: nn.Module, bound: float, config: SolverConfig, units: Units | None, masks: Masks
) -> Projection:
    """Project, round, certify; correct the projection's bound by what was certified, and repeat.

    The certified bound misses the projection's where rounding adds to it, or where a slope range
    with alpha > 0 was widened to contain 0, which costs up to 25 percent of the bound.
    """
    frame, own = Frame.of(read_network(model)), _weights(model)
    held = held_of(model, [layer.weight for layer in linear_layers(model)], masks).cpu()
    _check_frame(frame, held)
    margin = max(CAST_MARGIN[layer.weight.dtype] for layer in linear_layers(model))
    goal = bound * (1.0 - margin)
    metric = Metric.of(units, own)
    terms = Terms(Lipschitz(goal), _convex_slopes(model), AdmmConfig(), metric, held)
    problem, best = _start(frame.into(own), terms, goal, config), None
    for _ in range(_ATTEMPTS):
        problem = nearest_multiplier(problem, config, metric)
        moved = copy.deepcopy(model)
        found = frame.back(metric.back(solve_project(problem, config).weights))
        _write(moved, held.kept(own, found))
        known = frame.chain_multiplier(problem.multiplier)
        certificate = certify_global(
            moved, units=units, solver=config, requested=bound, multiplier=known
        )
        distance = moved_by(model, moved)
        if certificate.lip <= bound and (best is None or distance < best.distance):
            best = Projection(moved, certificate, distance)
        if bound * (1.0 - margin - _SLACK) <= certificate.lip <= bound:
            break
        problem = _rescaled(problem, goal / certificate.lip)
    if best is None:
        raise not_held(certificate.lip, bound)
    return best


def _check_frame(frame: Frame, held: Held) -> None:
    """Raise :class:`ValueError` for masks that sums and differences of rows do not keep."""
    partial = [k for k in range(len(held.masks)) if held.masks[k] is not None and not held.whole(k)]
    for k in partial:
        if any(frame.turned[max(k - 1, 0) : k + 1]):
            raise ValueError(
                f"held: layer {k} (from 0) is projected in sums and differences of pairs, which "
                "mix its entries; freeze it whole, or train under the bound, which keeps masks"
            )


def _start(anchor: Matrices, terms: Terms, bound: float, config: SolverConfig) -> ProjectProblem:
    """Step 1: LipSDP's multiplier for the anchor, and the projection that belongs to it."""
    slopes, metric = terms.slopes, terms.metric
    assert not isinstance(slopes, LayerNorms)
    seen, structure = metric.seen(anchor), terms.held.structure(metric.structure(anchor))
    if any(terms.held.rigid):
        fit = fitted(anchor, terms, bound, config)
        return ProjectProblem(seen, slopes, fit.multiplier, bound, structure=structure)
    solution = solve_certify(CertifyProblem(seen, slopes), config)
    problem = ProjectProblem(seen, slopes, solution.multiplier, solution.lip, structure=structure)
    return _rescaled(problem, bound / solution.lip)


def _rescaled(problem: ProjectProblem, factor: float) -> ProjectProblem:
    """Bound times ``factor``, T to match: every layer takes an equal share of the factor."""
    assert problem.bound is not None
    depth, share = len(problem.multiplier), factor ** (1.0 / len(problem.anchor))
    multiplier = tuple(t * share ** (2 * (depth - k)) for k, t in enumerate(problem.multiplier))
    return replace(problem, bound=problem.bound * factor, multiplier=multiplier)


def nearest_multiplier(
    problem: ProjectProblem, config: SolverConfig, metric: Metric = PLAIN
) -> ProjectProblem:
    """The same projection with its multiplier moved to make the distance small.

    ``log t -= step g / rms(g)`` with g the sensitivity; the step grows where the distance falls
    and shrinks where it does not.
    """
    if not problem.slopes:
        return problem
    trial_config = replace(config, tol=max(config.tol, _TRIAL_TOL))
    held = any(own.held is not None for own in problem.structure)
    alone = held and config.name == "auto"  # no other backend finds room where there is none
    one_config = replace(trial_config, fallback=()) if alone else trial_config
    best, step = solve_project(problem, trial_config), 0.3
    for _ in range(_TRIALS):
        moved = replace(problem, multiplier=_moved(problem, best, step, metric))
        trial = _tried(moved, one_config, best)
        if trial is not None and trial.objective < best.objective:
            problem, best, step = moved, trial, step * _GROWTH
        else:
            step *= _SHRINK
    return problem


def _tried(
    problem: ProjectProblem, config: SolverConfig, best: ProjectSolution
) -> ProjectSolution | None:
    """The projection under another T; ``None`` where that leaves no room for what is held."""
    try:
        return solve_project(problem, config, warm=best.warm)
    except SolveFailed:
        return None


def _moved(
    problem: ProjectProblem, solution: ProjectSolution, step: float, metric: Metric
) -> Matrices:
    gradient: Matrices = sensitivity(metric.back(problem.anchor), metric.back(solution.weights))
    size = float(torch.cat(gradient).square().mean().sqrt())
    if size == 0.0:
        return problem.multiplier
    return tuple(
        t * torch.exp((-step / size * g).clamp(-2.0, 2.0))
        for t, g in zip(problem.multiplier, gradient, strict=True)
    )


def _convex_slopes(model: nn.Module) -> tuple[Slopes, ...]:
    """The chain's slope ranges, widened to contain 0: only then is the set convex."""
    return tuple(
        Slopes(torch.from_numpy(s.alpha).clamp(max=0.0), torch.from_numpy(s.beta).clamp(min=0.0))
        for s in read_network(model).chain().slopes
    )


def _write(model: nn.Module, weights: Matrices) -> None:
    with torch.no_grad():
        for layer, w in zip(linear_layers(model), weights, strict=True):
            layer.weight.copy_(w)


def _weights(model: nn.Module) -> Matrices:
    return tuple(
        layer.weight.detach().to("cpu", torch.float64, copy=True) for layer in linear_layers(model)
    )
