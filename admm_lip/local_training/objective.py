"""The training loss of a batch under a local (or global) bound, with its warm starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .boxes import Masks, Range
from .norms import masked_norms
from .passage import Norm, Passage, Settings, passage
from .stages import Stage
from .surrogates import LOSSES, pair_norms, pair_rows, support
from .warm_starts import WarmStarts

_NO_MASKS = Masks(None, None)
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
    data_range: Range | None
    box_gradient: bool

    @property
    def settings(self) -> Settings:
        """How boxes are made: not at all where nothing asks for them."""
        return Settings(
            data_range=self.data_range,
            boxes=self.local or self.surrogate == "bcp" or self.sparsity > 0.0,
            differentiable=self.box_gradient or self.sparsity > 0.0,
            sparsity=self.sparsity > 0.0,
        )


class Measured(NamedTuple):
    """Of one batch: mean share of units that can move, mean ratio of local to global bound."""

    varying: float
    ratio: float


def robust_loss(
    stages: Sequence[Stage],
    warm: WarmStarts,
    rows: Tensor | None,
    batch: tuple[Tensor, Tensor],
    eps: float,
    kappa: float,
    plan: Plan,
) -> tuple[Tensor, Measured]:
    """The surrogate's mean loss of a batch.

    Args:
        stages: the network.
        warm: where its power iterations start; updated.
        rows: the samples' numbers in the data set, or ``None``.
        batch: inputs and integer labels.
        eps: radius, > 0.
        kappa: weight left on the plain cross-entropy.
        plan: see :class:`Plan`.
    """
    x, labels = batch
    estimates = _Estimates(warm, rows, len(x), plan)
    found = passage(stages, x, eps, estimates, plan.settings)
    last = stages[-1]
    logits = last.affine(found.center.low)
    shift = _SHIFTS[plan.surrogate](last, found, labels, eps, estimates)
    loss = LOSSES[plan.surrogate](logits, labels, shift, kappa)
    if plan.sparsity > 0.0:
        loss = loss + plan.sparsity * found.sparsity
    return loss, _measured(found, estimates)


class _Estimates:
    """Norms by power iteration, as a :data:`~.passage.NormOf`; remembers the layers' own."""

    def __init__(self, warm: WarmStarts, rows: Tensor | None, count: int, plan: Plan) -> None:
        self.warm, self.rows, self.count, self.plan = warm, rows, count, plan
        self.whole: list[Tensor] = []

    def __call__(self, k: int, stage: Stage, masks: Masks) -> Norm:
        operator, warm = stage.operator, self.warm
        masked = self.plan.local and not (masks.rows is None and masks.columns is None)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not masked):
            own, warm.whole[k] = masked_norms(
                operator, _NO_MASKS, warm.whole[k], max(_WHOLE_ITERATIONS, self.plan.iterations)
            )
        self.whole.append(own.detach())
        if not masked:
            return Norm(own, own.detach())
        start = warm.starts(k, self.rows, self.count)
        norm, vectors = masked_norms(operator, masks, start, self.plan.iterations)
        warm.keep(k, self.rows, vectors)
        return Norm(norm, norm.detach() if self.plan.running_radius else own.detach())


def _box_shift(last: Stage, found: Passage, labels: Tensor, eps: float, _: _Estimates) -> Tensor:
    """The worst case over ball and box."""
    assert found.box is not None and last.operator.weight is not None
    center = found.center.low
    if not found.box.low.requires_grad:
        center = center.detach()
    radius = (eps * found.lip).expand(len(center))
    rows = pair_rows(last.operator.weight, labels)
    return support(rows, radius, found.box.low - center, found.box.high - center)


def _pair_shift(last: Stage, found: Passage, labels: Tensor, eps: float, _: _Estimates) -> Tensor:
    assert last.operator.weight is not None
    norms = pair_norms(pair_rows(last.operator.weight, labels), found.columns)
    return eps * found.lip[:, None] * norms


def _logit_shift(
    last: Stage, found: Passage, labels: Tensor, eps: float, norm_of: _Estimates
) -> Tensor:
    norm = norm_of(len(found.factors), last, Masks(None, found.columns)).factor
    shift: Tensor = found.lip * norm * (2.0**0.5 * eps)
    return shift[:, None].expand(len(labels), last.operator.shape_out[0])


_SHIFTS = {"bcp": _box_shift, "gloro": _pair_shift, "lmt": _logit_shift}


def _measured(found: Passage, estimates: _Estimates) -> Measured:
    with torch.no_grad():
        hidden = len(found.factors)
        whole = torch.stack(estimates.whole[:hidden]).prod() if hidden else found.moved.new_ones(())
        ratio = float((found.lip / whole.clamp_min(1e-30)).mean())
        return Measured(float((found.varying / max(found.units, 1)).mean()), ratio)
