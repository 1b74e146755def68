"""Where a run begins: the first consensus, a multiplier that certifies it, and rho.

The start is the given network, or a seeded orthogonal one, scaled evenly over its layers until its
LipSDP bound is the requested one.  The multiplier is the one that proves this.  Where entries stay
at what is not 0 (``held.py``), the others alone are scaled (:func:`fitted`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn

from ..lipschitz import Lipschitz
from ..solvers import CertifyProblem, CertifySolution, Slopes, SolverConfig, solve_certify
from ..solvers.lmi import ball_tiles
from .admm_state import AdmmState, Matrices, read_weights, write_weights
from .config import TrainConfig
from .held import NOTHING, Held
from .terms import LayerNorms, Terms

START_TOL = 1e-4
# How far a multiplier may be from the median of its layer: T far from uniform makes a poor metric,
# and t = 0 would switch a neuron off for good.
MULTIPLIER_SPREAD = 1e3
PENALTY_SHARE = 0.2
# Where weights stay, how far inside the bound the others begin, so that rounding has room, and how
# many shares of them are tried.
_ROOM = 1e-6
_HALVINGS = 12
# Of the largest entry of T, so that none is 0.
_LEAST_SHARE = 1e-12
# How large a cross-entropy is, as the rule for rho takes it.
CROSS_ENTROPY_SCALE = 0.1
# Optimizer steps of the rounds that the rule for rho was measured with.
_RULE_STEPS = 4
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


def orthogonal_(layers: Sequence[nn.Module], seed: int, held: Held = NOTHING) -> None:
    """Overwrite the layers by seeded orthogonal weights, kernels by rows, and zero biases.

    What is held, or a frozen bias, stays.
    """
    generator = torch.Generator().manual_seed(seed)
    fresh = []
    for layer in layers:
        assert isinstance(layer.weight, nn.Parameter)
        fresh.append(torch.empty(layer.weight.shape, dtype=torch.float64))
        nn.init.orthogonal_(fresh[-1], generator=generator)
    weights = [cast(nn.Parameter, layer.weight) for layer in layers]
    fresh = [w.to(p.device) for w, p in zip(fresh, weights, strict=True)]
    write_weights(weights, held.kept(read_weights(weights), tuple(fresh)))
    scale_biases(layers, (0.0,) * len(layers))


def scale_biases(layers: Iterable[nn.Module], factors: Sequence[float]) -> None:
    """Multiply the biases of the layers that have one, but for frozen ones."""
    with torch.no_grad():
        for layer, factor in zip(layers, factors, strict=True):
            if isinstance(layer.bias, nn.Parameter) and layer.bias.requires_grad:
                layer.bias.mul_(factor)


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
    if any(terms.held.rigid):
        fit = fitted(weights, terms, bound, solver)
        lip = fit.lip if plain else solve_certify(CertifyProblem(fit.weights, slopes), solver).lip
        rho = config.rho or default_rho(terms.asked, lip, len(weights), loss_scale)
        return Start(fit.state(rho), fit.bias_factors)
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


@dataclass(frozen=True, eq=False)
class Fit:
    """Weights under a bound of which some stayed, and a multiplier that proves it.

    Attributes:
        weights: in the run's own coordinates.
        multiplier: that certifies them with room to spare.
        lip: L that they are certified at.
        bias_factors: as of a :class:`Start`.
    """

    weights: Matrices
    multiplier: Matrices
    lip: float
    bias_factors: tuple[float, ...]

    def state(self, rho: float) -> AdmmState:
        """The first state."""
        zero = tuple(torch.zeros_like(w) for w in self.weights)
        return AdmmState(self.weights, zero, self.multiplier, rho, self.lip**2, self.lip**2)


def fitted(weights: Matrices, terms: Terms, bound: float | None, solver: SolverConfig) -> Fit:
    """The weights with those that may move scaled until LipSDP certifies ``bound``.

    The constant of a network is homogeneous in every layer: with nothing but whole layers held, one
    scale is exact.  Else the largest of ``_HALVINGS`` trials is taken.

    Raises:
        ValueError: where what stays exceeds the bound by itself, with its constant.
    """
    slopes, held, metric = terms.slopes, terms.held, terms.metric
    assert not isinstance(slopes, LayerNorms)

    def certified(share: float) -> CertifySolution:
        seen = metric.seen(held.scaled(weights, share))
        return solve_certify(CertifyProblem(seen, slopes), solver)

    share, found = 1.0, certified(1.0)
    goal = found.lip if bound is None else bound * (1.0 - _ROOM)
    if found.lip > goal:
        share, found = _largest_share(certified, held, weights, found.lip, goal)
    target = found.lip * (1.0 + _ROOM) if bound is None else bound
    even = (target / found.lip) ** (1.0 / len(weights))
    depth = len(found.multiplier)
    multiplier = tuple(
        t.clamp(min=_LEAST_SHARE * float(t.max())) * even ** (2 * (depth - k))
        for k, t in enumerate(found.multiplier)
    )
    factors = accumulate(held.factors(share, len(weights)), lambda a, b: a * b)
    return Fit(held.scaled(weights, share), multiplier, target, tuple(factors))


def _largest_share(
    certified: Callable[[float], CertifySolution],
    held: Held,
    weights: Matrices,
    lip: float,
    goal: float,
) -> tuple[float, CertifySolution]:
    """The scale of what moves at which the network meets ``goal``, and its certificate."""
    layers = len(weights)
    loose = [k for k in range(layers) if not held.is_rigid(k)]
    if len(loose) == held.moving(layers):  # nothing but whole layers stays
        share = (goal / lip * (1.0 - START_TOL)) ** (1.0 / len(loose))
        found = certified(share)
        if found.lip <= goal:
            return share, found
    low, high, best = 0.0, 1.0, None
    for _ in range(_HALVINGS):
        share = 0.5 * (low + high)
        found = certified(share)
        if found.lip <= goal:
            low, best = share, found
        else:
            high = share
    if best is None:
        raise ValueError(
            f"held: what stays has a Lipschitz constant of {found.lip:.6g} with all other weights "
            f"next to 0, beyond the bound of {goal:.6g}; hold less, or ask for more"
        )
    return low, best


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


def scale_of_steps(loss_scale: float, steps: int, regression: bool) -> float:
    """The scale for rounds of so many steps: of classes, what they pull together stays.

    The rule for rho is for rounds of 4 steps.  Rows of MNIST held back, 784-256-256-10 at 1.58: of
    4 steps 62.6 to 63.0 % certified with rho from .02 to .2, of 8 steps 62.3 with .07 and 60.4 with
    .2, of 16 steps 60.2 with .03 and 59.2 with .07.  A regression (square wave, bound 10, rounds of
    8) ends 1.006 times above the best error, and with half that rho 1.024 times.
    """
    return loss_scale if regression else loss_scale * _RULE_STEPS / steps


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
