"""The training loss of a batch under a local (or global) bound, with its warm starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .forward_bounds import Arithmetic, Ball, Forward, Norm, forward, input_box
from .input_region import Box
from .layers import Layer
from .power_iteration import masked_norms
from .quadratic_shift import quadratic_shift
from .surrogates import LOSSES, pair_norms, pair_rows, support
from .warm_starts import WarmStarts

# For the layers themselves, whose batch of one costs next to nothing.
_WHOLE_ITERATIONS = 4


@dataclass(frozen=True)
class Plan:
    """What is minimised; see ``methods/local.py`` for the fields."""

    surrogate: str
    local: bool
    iterations: int
    running_radius: bool
    sparsity: float
    data_range: Box | None
    box_gradient: bool

    @property
    def arithmetic(self) -> Arithmetic:
        """How intervals are made: not at all where nothing asks for them."""
        by_intervals = self.surrogate in ("bcp", "quadratic")
        return Arithmetic(
            intervals=self.local or by_intervals or self.sparsity > 0.0,
            differentiable=self.box_gradient or self.sparsity > 0.0,
            sparsity=self.sparsity > 0.0,
        )


class Measured(NamedTuple):
    """Of one batch: mean share of units that can move, mean ratio of local to global bound."""

    varying: float
    ratio: float


def robust_loss(
    layers: Sequence[Layer],
    warm: WarmStarts,
    rows: Tensor | None,
    batch: tuple[Tensor, Tensor],
    eps: float,
    kappa: float,
    plan: Plan,
) -> tuple[Tensor, Measured]:
    """The surrogate's mean loss of a batch.

    Args:
        layers: the network.
        warm: where its power iterations start; updated.
        rows: the samples' numbers in the data set, or ``None``.
        batch: inputs and integer labels.
        eps: radius, > 0.
        kappa: weight left on the plain cross-entropy.
        plan: see :class:`Plan`.
    """
    x, labels = batch
    estimates = _Estimates(layers, warm, rows, len(x), plan)
    radius = x.new_full((len(x),), eps)
    ball = Ball(radius, input_box(x, radius, plan.data_range, rounding=False))
    found = forward(layers, x, ball, estimates, plan.arithmetic)
    last = layers[-1]
    logits = last.affine(found.value)
    shift = _SHIFTS[plan.surrogate](last, found, labels, eps, estimates)
    loss = LOSSES[plan.surrogate](logits, labels, shift, kappa)
    if found.sparsity:
        loss = loss + plan.sparsity * torch.stack(found.sparsity).mean()
    return loss, _measured(found, estimates)


class _Estimates:
    """Norms by power iteration, as a :data:`~.forward_bounds.NormOf`; remembers the layers' own."""

    def __init__(
        self,
        layers: Sequence[Layer],
        warm: WarmStarts,
        rows: Tensor | None,
        count: int,
        plan: Plan,
    ) -> None:
        self.layers, self.warm, self.rows, self.count, self.plan = layers, warm, rows, count, plan
        self.whole: list[Tensor] = []

    def __call__(self, k: int, rows: Tensor | None, columns: Tensor | None) -> Norm:
        operator, warm, iterations = self.layers[k].operator, self.warm, self.plan.iterations
        masked = self.plan.local and not (rows is None and columns is None)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not masked):
            own, warm.whole[k] = masked_norms(
                operator, None, None, warm.whole[k], max(_WHOLE_ITERATIONS, iterations)
            )
        self.whole.append(own.detach())
        if not masked:
            return Norm(own, own.detach())
        start = warm.starts(k, self.rows, self.count)
        norm, vectors = masked_norms(operator, rows, columns, start, iterations)
        warm.keep(k, self.rows, vectors)
        return Norm(norm, norm.detach() if self.plan.running_radius else own.detach())


def _box_shift(
    last: Layer, found: Forward, labels: Tensor, eps: float, other: _Estimates
) -> Tensor:
    """The worst case over ball and box."""
    if found.box is None:
        return _pair_shift(last, found, labels, eps, other)
    assert last.operator.weight is not None
    center = found.value if found.box.low.requires_grad else found.value.detach()
    radius = (eps * found.lip).expand(len(center))
    rows = pair_rows(last.operator.weight, labels)
    return support(rows, radius, found.box.low - center, found.box.high - center)


def _pair_shift(last: Layer, found: Forward, labels: Tensor, eps: float, _: _Estimates) -> Tensor:
    assert last.operator.weight is not None
    norms = pair_norms(pair_rows(last.operator.weight, labels), found.columns)
    return eps * found.lip[:, None] * norms


def _logit_shift(
    last: Layer, found: Forward, labels: Tensor, eps: float, norm_of: _Estimates
) -> Tensor:
    norm = norm_of(len(found.factors), None, found.columns).factor
    shift: Tensor = found.lip * norm * (2.0**0.5 * eps)
    return shift[:, None].expand(len(labels), last.operator.shape_out[0])


def _quadratic_shift(
    last: Layer, found: Forward, labels: Tensor, eps: float, other: _Estimates
) -> Tensor:
    """The worst case of quadratic bounds, each pair of classes on its own way back."""
    assert last.operator.weight is not None
    rows = -pair_rows(last.operator.weight, labels)
    gap = (rows @ found.value[..., None])[..., 0]
    return quadratic_shift(other.layers, found, rows, gap, eps)


_SHIFTS = {
    "bcp": _box_shift,
    "gloro": _pair_shift,
    "lmt": _logit_shift,
    "quadratic": _quadratic_shift,
}


def _measured(found: Forward, estimates: _Estimates) -> Measured:
    with torch.no_grad():
        hidden = len(found.factors)
        whole = torch.stack(estimates.whole[:hidden]).prod() if hidden else found.moved.new_ones(())
        ratio = float((found.lip / whole.clamp_min(1e-30)).mean())
        return Measured(float(found.varying.mean()), ratio)
