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

from ..lipschitz import Lipschitz
from ..solvers import CertifyProblem, Slopes, solve_certify
from ..solvers.lmi import ball_tiles
from .admm_state import AdmmState, Matrices
from .config import TrainConfig
from .terms import LayerNorms, Terms

START_TOL = 1e-4
# How far a multiplier may be from the median of its layer: T far from uniform makes a poor metric,
# and t = 0 would switch a neuron off for good.
MULTIPLIER_SPREAD = 1e3
PENALTY_SHARE = 0.2
# How large a cross-entropy is, as the rule for rho takes it.
CROSS_ENTROPY_SCALE = 0.1
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


def orthogonal_(layers: Sequence[nn.Module], seed: int) -> None:
    """Overwrite the layers by seeded orthogonal weights, kernels by rows, and zero biases."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        fresh = torch.empty(weight.shape, dtype=torch.float64)
        nn.init.orthogonal_(fresh, generator=generator)
        with torch.no_grad():
            weight.copy_(fresh)
            if isinstance(bias, Tensor):
                bias.zero_()


def inner_bound(asked: Lipschitz, dtype: torch.dtype) -> float | None:
    """The bound that the consensus keeps, a cast's width inside the requested one."""
    if asked.bound is None:
        return None
    return asked.bound * (1.0 - CAST_MARGIN[dtype])


def start(weights: Matrices, terms: Terms, dtype: torch.dtype, loss_scale: float) -> Start:
    """First state for float64 ``weights``.

    Args:
        weights: of the network as given.
        terms: what is asked of them.
        dtype: that the weights are rounded to in the end.
        loss_scale: see :func:`loss_scale`.

    Raises:
        ValueError: when the network is constant (its bound is 0), so nothing can be scaled.
    """
    config, metric, slopes = terms.config, terms.metric, terms.slopes
    assert not isinstance(slopes, LayerNorms)  # those begin in ``layer_norms.py``
    if not all(bool((w != 0).any()) for w in weights):
        raise ValueError(
            "model: its Lipschitz bound is 0 (a layer is all zeros), so it cannot be scaled to a "
            "bound; initialise it, or use start='scratch'"
        )
    solver = replace(config.solver, tol=max(config.solver.tol, START_TOL))
    bound, plain = inner_bound(terms.asked, dtype), metric.is_plain
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
    lip = target
    if not plain:  # as the weights know it: on standardised rows
        lip = solve_certify(CertifyProblem(consensus, slopes), solver).lip
    state = AdmmState(
        consensus=consensus,
        dual=tuple(torch.zeros_like(w) for w in consensus),
        multiplier=multiplier,
        rho=config.rho or default_rho(terms.asked, lip, len(weights), loss_scale),
        lip_sq=target**2,
        target_sq=target**2,
    )
    return Start(state, tuple(factor ** (k + 1) for k in range(len(weights))))


def gone_on(state: AdmmState) -> Start:
    """The state of an earlier run as the first of another: what counts steps begins anew."""
    again = replace(state, iteration=0, steps=0, lr=None, momentum=(), mean_square=0.0)
    return Start(again, (1.0,) * len(state.consensus))


def asked_again(state: AdmmState, terms: Terms, dtype: torch.dtype) -> Start:
    """The state under other ``terms``: a smaller bound scales all layers evenly.

    The multiplier moves along as in :func:`start`; under a larger bound it certifies as it is.
    """
    layers, bound = len(state.consensus), inner_bound(terms.asked, dtype)
    if bound is None:
        return Start(state, (1.0,) * layers)
    share = bound / state.lip
    factor, gain = (share ** (1.0 / layers), 1.0) if share < 1.0 else (1.0, share**2)
    depth = len(state.multiplier)
    again = replace(
        state,
        consensus=tuple(factor * w for w in state.consensus),
        multiplier=tuple(
            t * gain * factor ** (2 * (depth - k)) for k, t in enumerate(state.multiplier)
        ),
        rho=terms.config.rho or state.rho * share ** (-2.0 / layers),
        lip_sq=bound**2,
        target_sq=bound**2,
    )
    return Start(again, tuple(factor ** (k + 1) for k in range(layers)))


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


def default_rho(asked: Lipschitz, lip: float, layers: int, loss_scale: float) -> float:
    """The measured rule for rho: how large the loss is, per unit of weight.

    Weights scale like ``L^(1/layers)``, so the penalty keeps its weight against a loss that does
    not change with L if rho falls as ``L^(-2/layers)``.

    A penalised run begins at the L of its start and grows several-fold: .05 to .3 times the rule
    for that L gave the same accuracy on MNIST, the rule itself 1 % less.
    """
    per_weight = math.pow(lip, -2.0 / layers) * (1.0 if asked.mu is None else PENALTY_SHARE)
    return loss_scale * per_weight


def loss_scale(config: TrainConfig, length: float, variance: float | None = None) -> float:
    """How large the loss is, as the rule for rho takes it.

    On the margin loss at L = 1, .03 / .1 / .2 are best for eps .1 / .5 / 1.58, flat over a factor
    4; ``0.155 eps^0.66`` runs through them.  A squared error is as large as the variance of its
    targets.  On a square wave of variance 1/4, .03 to .1 were best at slope bounds 10, 5 and 1
    (1-64-64-64-1).

    Args:
        config: names the loss.
        length: that eps is measured in.
        variance: of the targets of a regression; ``None`` for class labels.
    """
    if config.loss == "margin":
        return 0.155 * math.pow(max(config.eps / length, 0.01), 0.66)
    if variance is not None:
        return 0.4 * max(variance, SMALLEST_VARIANCE)
    return CROSS_ENTROPY_SCALE
