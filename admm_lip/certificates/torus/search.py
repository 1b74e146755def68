"""Multipliers of a torus chain and its head: a barrier method on their logarithms.

With ``x = (log t, log nu)`` minimise, for a weight mu that falls,

    log nu - mu (sum_k mean_f log det(T_k^-1/2 Y_k T_k^-1/2) + mean_f log det(I - P_out / nu)),

    Y_k = 2 T_k - T_k P_JJ T_k.

Without the barrier plain descent stalls at the boundary: a head that ignores frequencies still
needs the inequality at all of them.  The start is always inside: ``t = 1 / lambda_max(P)`` layer by
layer proves the product of norms at least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...networks.layers import Array
from ...solvers.deadline import Deadline
from ..claim_matrices import Matrices
from .covariance import adjoint, gain, slack, through_activation, through_correlation
from .steps import Correlation, Pointwise, TorusChain, half_of, levels_of, symbol

# Weights of the barrier, one after the other, and the most steps at each.
_WEIGHTS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_STEPS = 40
_MEMORY = 12
_HALVINGS = 30
# A step that improves by less than this, relatively to the weight, ends a stage.
_ENOUGH = 0.05


@dataclass(frozen=True, eq=False)
class _Stage:
    """An activation: of the torus, or of the head where there is one frequency.

    Attributes:
        before: maps P before the stage's linear parts to P at its neurons.
        weights: of the frequencies at the neurons, of sum 1.
    """

    before: Callable[[Tensor], Tensor]
    rows: Tensor
    least: Tensor
    span: Tensor
    weights: Tensor


def search(
    chain: TorusChain, head: Matrices | None, deadline: Deadline
) -> tuple[list[Array], list[Array]]:
    """Multipliers per channel of the chain's activations, and per neuron of the head's."""
    stages, end, first, weights = _stages(chain, head)
    t = _start(stages, first)
    barrier = _Barrier(stages, end, first, weights)
    sizes = [len(v) for v in t]
    point = torch.cat([torch.cat(t).log(), torch.zeros(1, dtype=torch.float64)])
    point[-1] = math.log(1.5 * barrier.largest(t))
    for weight in _WEIGHTS:
        point = _descend(partial(barrier, weight=weight, sizes=sizes), point, deadline, weight)
        if not deadline.has_time():
            break
    found = [v.exp().numpy() for v in torch.split(point[:-1], sizes)]
    torus = len(chain.activations)
    return found[:torus], found[torus:]


class _Barrier:
    """The function of the module's docstring; infinite outside."""

    def __init__(
        self,
        stages: Sequence[_Stage],
        end: Callable[[Tensor], Tensor],
        first: Tensor,
        weights: Tensor,
    ) -> None:
        self.stages, self.end, self.first, self.weights = stages, end, first, weights

    def __call__(self, point: Tensor, weight: float, sizes: list[int]) -> Tensor:
        bound = point[-1]
        t = [v.exp() for v in torch.split(point[:-1], sizes)]
        p, inside = self.first, torch.zeros((), dtype=torch.float64)
        for stage, own in zip(self.stages, t, strict=True):
            p = stage.before(p)
            y = slack(p, stage.rows, own)
            root = own.rsqrt()
            factor, info = torch.linalg.cholesky_ex(y * root[:, None] * root)
            if bool(info.any()):
                return torch.full((), math.inf, dtype=torch.float64)
            inside = inside + stage.weights @ _log_det(factor)
            h = gain(p, stage.rows, own, stage.least, stage.span) * root
            half = torch.linalg.solve_triangular(factor, adjoint(h), upper=False)
            p = stage.least[:, None] * p * stage.least + adjoint(half) @ half
        p = self.end(p)
        identity = torch.eye(p.shape[-1], dtype=p.dtype)
        factor, info = torch.linalg.cholesky_ex(identity - p / bound.exp())
        if bool(info.any()):
            return torch.full((), math.inf, dtype=torch.float64)
        inside = inside + self.weights @ _log_det(factor)
        return bound - weight * inside

    def largest(self, t: Sequence[Tensor]) -> float:
        """``L^2`` at these multipliers."""
        p = self.first
        for stage, own in zip(self.stages, t, strict=True):
            p = _through(stage, stage.before(p), own)
        return float(torch.linalg.eigvalsh(self.end(p)).max())


def _log_det(factor: Tensor) -> Tensor:
    return 2.0 * torch.diagonal(factor, dim1=-2, dim2=-1).real.log().sum(-1)


def _start(stages: Sequence[_Stage], first: Tensor) -> list[Tensor]:
    """``t = 1 / lambda_max(P_JJ)``: every slack is at least ``1 / lambda_max``."""
    p, found = first, []
    for stage in stages:
        p = stage.before(p)
        inner = p[:, stage.rows[:, None], stage.rows]
        most = float(torch.linalg.eigvalsh(inner).max())
        own = torch.full((len(stage.rows),), 1.0 / most, dtype=torch.float64)
        p = _through(stage, p, own)
        found.append(own)
    return found


def _through(stage: _Stage, p: Tensor, t: Tensor) -> Tensor:
    """P behind an activation."""
    s = torch.linalg.inv(slack(p, stage.rows, t))
    h = gain(p, stage.rows, t, stage.least, stage.span)
    found: Tensor = through_activation(p, h, s, stage.least)
    return found


def _stages(
    chain: TorusChain, head: Matrices | None
) -> tuple[list[_Stage], Callable[[Tensor], Tensor], Tensor, Tensor]:
    """The activations in turn, what follows the last, P at the input, the last one's weights."""
    last, counts = half_of(chain.last_grid)
    levels = levels_of(chain, last)
    first = torch.eye(chain.channels, dtype=torch.complex128).repeat(len(levels[0][0]), 1, 1)
    stages: list[_Stage] = []
    pending: list[Callable[[Tensor], Tensor]] = []
    width = chain.channels
    share = torch.from_numpy(counts / counts.sum())
    for step, (frequencies, grid) in zip(chain.steps, levels, strict=True):
        if isinstance(step, Correlation):
            pending.append(_correlation(step, frequencies, grid))
            width = step.kernel.shape[0]
            continue
        folded = len(frequencies) // len(last)
        weights = share.repeat_interleave(folded) / folded
        stages.append(_stage(pending, step, width, weights))
        pending = []
    if head is not None:
        pending.append(_into_head(chain, head.weights[0], last, counts))
        one = torch.ones(1, dtype=torch.float64)
        for w, slopes in zip(head.weights[1:], head.slopes, strict=True):
            own = Pointwise("", np.arange(len(slopes.alpha)), slopes.alpha, slopes.beta)
            stages.append(_stage(pending, own, len(own.rows), one))
            pending = [_matrix(w)]
        share = one
    return stages, _all_of(pending), first, share


def _stage(
    pending: Sequence[Callable[[Tensor], Tensor]], step: Pointwise, width: int, weights: Tensor
) -> _Stage:
    arrays = (step.rows, step.least(width), step.beta - step.alpha)
    rows, least, span = (torch.from_numpy(np.asarray(v)) for v in arrays)
    return _Stage(_all_of(pending), rows, least, span, weights)


def _all_of(maps: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    steps = tuple(maps)

    def run(p: Tensor) -> Tensor:
        for step in steps:
            p = step(p)
        return p

    return run


def _correlation(step: Correlation, frequencies: Any, grid: Any) -> Callable[[Tensor], Tensor]:
    w = torch.from_numpy(symbol(step, frequencies, grid))
    aliases = step.stride[0] * step.stride[1]
    return lambda p: through_correlation(p, w, aliases)


def _matrix(weight: Array) -> Callable[[Tensor], Tensor]:
    w = torch.from_numpy(weight)
    return lambda p: w @ p @ w.T


def _into_head(
    chain: TorusChain, first: Array, last: Any, counts: Array
) -> Callable[[Tensor], Tensor]:
    """``sum_f V(f) P(f) V(f)^H``, real."""
    seen = symbol(Correlation(first.reshape(-1, *chain.image)), last, chain.last_grid)
    scale = np.sqrt(counts / math.prod(chain.last_grid))
    v = torch.from_numpy(seen * scale[:, None, None])
    # all frequencies side by side: one product
    flat = v.permute(1, 0, 2).reshape(len(first), -1)

    def run(p: Tensor) -> Tensor:
        half = (v @ p).permute(1, 0, 2).reshape(len(first), -1)
        return (half @ flat.mH).real[None]

    return run


def _descend(
    function: Callable[[Tensor], Tensor], point: Tensor, deadline: Deadline, weight: float
) -> Tensor:
    """Limited-memory BFGS with halved steps (Nocedal and Wright, algorithm 7.4)."""
    value, slope = _value_and_slope(function, point)
    memory: list[tuple[Tensor, Tensor]] = []
    for _ in range(_STEPS):
        direction = _two_loops(slope, memory)
        if float(direction @ slope) >= 0.0:
            memory, direction = [], -slope
        length = 1.0 if memory else min(1.0, 0.1 / float(direction.abs().max()))
        moved = _shorter(function, point, value, float(direction @ slope), direction, length)
        if moved is None:
            break
        new, new_value, new_slope = moved
        step, change = new - point, new_slope - slope
        if float(step @ change) > 1e-12 * float(step.norm() * change.norm()):
            memory = [*memory[-_MEMORY + 1 :], (step, change)]
        gained = value - new_value
        point, value, slope = new, new_value, new_slope
        if gained < _ENOUGH * weight or not deadline.has_time():
            break
    return point


def _value_and_slope(function: Callable[[Tensor], Tensor], point: Tensor) -> tuple[float, Tensor]:
    x = point.detach().requires_grad_(True)
    value = function(x)
    found = float(value.detach())
    if not math.isfinite(found):
        return math.inf, torch.zeros_like(point)
    (slope,) = torch.autograd.grad(value, x)
    return found, slope


def _shorter(
    function: Callable[[Tensor], Tensor],
    point: Tensor,
    value: float,
    decrease: float,
    direction: Tensor,
    length: float,
) -> tuple[Tensor, float, Tensor] | None:
    """The first of ever shorter steps that decreases enough; ``None`` where none does."""
    for _ in range(_HALVINGS):
        new = point + length * direction
        found, slope = _value_and_slope(function, new)
        if found <= value + 1e-4 * length * decrease:
            return new, found, slope
        length *= 0.5
    return None


def _two_loops(slope: Tensor, memory: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    direction, shares = -slope, []
    for step, change in reversed(memory):
        share = float(step @ direction) / float(step @ change)
        direction = direction - share * change
        shares.append(share)
    if memory:
        step, change = memory[-1]
        direction = direction * (float(step @ change) / float(change @ change))
    for (step, change), share in zip(memory, reversed(shares), strict=True):
        direction = direction + (share - float(change @ direction) / float(step @ change)) * step
    return direction
