"""Where a run begins: the first consensus, a multiplier that certifies it, and rho.

The start is the given network, or a seeded orthogonal one, scaled evenly over its layers until its
LipSDP bound is the requested one.  The multiplier is the one that proves this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..solvers import CertifyProblem, Slopes, SolverConfig, solve_certify
from ..solvers.lmi import ball_tiles
from .admm import AdmmState, Matrices
from .config import TrainConfig
from .metric import PLAIN, Metric

START_TOL = 1e-4
# How far a multiplier may be from the median of its layer: T far from uniform makes a poor metric,
# and t = 0 would switch a neuron off for good.
MULTIPLIER_SPREAD = 1e3
PENALTY_SHARE = 0.2
# Constant targets have variance 0, and rho must be positive.
SMALLEST_VARIANCE = 1e-12
# The consensus stays this far inside the bound, relatively, so that rounding to the model's dtype
# does not leave it (measured excess: 1e-8 in float32, 1e-4 in float16, 7e-4 in bfloat16).
CAST_MARGIN = {
    torch.float64: 1e-9,
    torch.float32: 1e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


@dataclass(frozen=True, eq=False)
class Start:
    """The first state, and the factor that each layer's bias is multiplied by."""

    state: AdmmState
    bias_factors: tuple[float, ...]


def orthogonal_(layers: Sequence[nn.Linear], seed: int) -> None:
    """Overwrite the layers by seeded orthogonal weights and zero biases."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        fresh = torch.empty(layer.weight.shape, dtype=torch.float64)
        nn.init.orthogonal_(fresh, generator=generator)
        with torch.no_grad():
            layer.weight.copy_(fresh)
            if layer.bias is not None:
                layer.bias.zero_()


def inner_bound(config: TrainConfig, dtype: torch.dtype) -> float | None:
    """The bound that the consensus keeps, a cast's width inside the requested one."""
    if config.bound is None:
        return None
    return config.bound * (1.0 - CAST_MARGIN[dtype])


def start(
    weights: Matrices,
    slopes: tuple[Slopes, ...],
    config: TrainConfig,
    dtype: torch.dtype,
    variance: float | None = None,
    metric: Metric = PLAIN,
) -> Start:
    """First state for float64 ``weights``.

    Args:
        weights: of the network as given.
        slopes: of its hidden layers.
        config: all settings.
        dtype: the model's own.
        variance: of the targets of a regression; ``None`` for class labels.
        metric: which matrices the bound is about.

    Raises:
        ValueError: when the network is constant (its bound is 0), so nothing can be scaled.
    """
    if not all(bool((w != 0).any()) for w in weights):
        raise ValueError(
            "model: its Lipschitz bound is 0 (a layer is all zeros), so it cannot be scaled to a "
            "bound; initialise it, or use start='scratch'"
        )
    solver = replace(config.solver, tol=max(config.solver.tol, START_TOL))
    bound, plain = inner_bound(config, dtype), metric.is_plain
    if bound is not None:
        weights = metric.admitted(weights, slopes, bound, solver)
    solution = solve_certify(CertifyProblem(metric.seen(weights), slopes), solver)
    fits = bound is None or solution.lip <= bound
    shrinks = not fits or (plain and bound is not None and config.start == "scratch")
    target = bound if bound is not None else solution.lip
    factor = (target / solution.lip) ** (1.0 / len(weights)) if shrinks else 1.0
    depth = len(solution.multiplier)
    gain = 1.0 if shrinks else (target / solution.lip) ** 2
    multiplier = tuple(
        spread_limited(t * gain * factor ** (2 * (depth - k)))
        for k, t in enumerate(solution.multiplier)
    )
    scaled = metric.seen(tuple(factor * w for w in weights))
    consensus = metric.back(feasible(scaled, slopes, multiplier, target))
    rho = (
        default_rho(config, target, len(weights), variance)
        if plain
        else _rho_in_units(config, consensus, slopes, variance, metric, solver)
    )
    state = AdmmState(
        consensus=consensus,
        dual=tuple(torch.zeros_like(w) for w in consensus),
        multiplier=multiplier,
        rho=config.rho or rho,
        lip_sq=target**2,
        target_sq=target**2,
    )
    return Start(state, tuple(factor ** (k + 1) for k in range(len(weights))))


def _rho_in_units(
    config: TrainConfig,
    weights: Matrices,
    slopes: tuple[Slopes, ...],
    variance: float | None,
    metric: Metric,
    solver: SolverConfig,
) -> float:
    """The rule for rho with L and eps as the weights know them: on standardised rows."""
    lip = solve_certify(CertifyProblem(weights, slopes), solver).lip
    own = replace(config, eps=config.eps / metric.length)
    return default_rho(own, lip, len(weights), variance)


def spread_limited(t: Tensor) -> Tensor:
    """Entries of t brought within ``MULTIPLIER_SPREAD`` of their median."""
    middle = float(t.median())
    return t.clamp(middle / MULTIPLIER_SPREAD, middle * MULTIPLIER_SPREAD)


def feasible(
    weights: Matrices, slopes: tuple[Slopes, ...], multiplier: Matrices, bound: float
) -> Matrices:
    """``weights`` divided by ``max(1, ||B(weights)||)``: inside the ball of the multiplier."""
    if not multiplier:
        size = float(torch.linalg.matrix_norm(weights[0], 2)) / bound
    else:
        ball = ball_tiles(slopes, multiplier, bound**2, weights[0].shape[1], weights[-1].shape[0])
        size = ball.norm(weights)
    return tuple(w / size for w in weights) if size > 1.0 else weights


def default_rho(
    config: TrainConfig, lip: float, layers: int, variance: float | None = None
) -> float:
    """The measured rule for rho.

    On the margin loss at L = 1, .03 / .1 / .2 are best for eps .1 / .5 / 1.58, flat over a factor
    4; ``0.155 eps^0.66`` runs through them.  Weights scale like ``L^(1/layers)``, so the penalty
    keeps its weight against a loss that does not change with L if rho falls as ``L^(-2/layers)``.
    A squared error is as large as the variance of its targets.  On a square wave of variance 1/4,
    .03 to .1 were best at slope bounds 10, 5 and 1 (1-64-64-64-1).

    A penalised run begins at the L of its start and grows several-fold: .05 to .3 times the rule
    for that L gave the same accuracy on MNIST, the rule itself 1 % less.
    """
    per_weight = math.pow(lip, -2.0 / layers) * (PENALTY_SHARE if config.mode == "penalty" else 1.0)
    if config.loss == "margin":
        return 0.155 * math.pow(max(config.eps, 0.01), 0.66) * per_weight
    if variance is not None:
        return 0.4 * max(variance, SMALLEST_VARIANCE) * per_weight
    return 0.1 * per_weight
