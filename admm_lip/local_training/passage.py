"""One pass of a batch through the layers: values, boxes, masks and norms, interleaved.

    d_0 = eps;    box of z_k = intervals and  z_k(x) +- ||w_i|| d_k;    masks from the box;
    d_{k+1} = d_k ||R_k W_k C_k||  (or, with the fixed radius, eps times the layers' own norms)

where ``R_k`` and ``C_k`` mark the units of the box that can move.  The product of the masked norms
up to the last hidden layer bounds the slope on the ball from the input to the features that the
last layer reads.  What a norm is (an estimate to train with, a proven bound) is for the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..rounding import SLACK, SQUARED_AWAY, upper_product
from .boxes import (
    Box,
    Masks,
    Range,
    around,
    intersected,
    start_box,
    through_activations,
    through_affine,
)
from .sparsity import sparsity_loss
from .stages import Stage


class Norm(NamedTuple):
    """A layer's factor in the bound, and in the radius of the balls; ``(batch,)`` or ``(1,)``."""

    factor: Tensor
    growth: Tensor


# From the layer's number, the stage and its masks to its norm.
NormOf = Callable[[int, Stage, Masks], Norm]


@dataclass(frozen=True)
class Settings:
    """How boxes are made.

    Attributes:
        data_range: least and greatest admissible input value, or ``None``.
        boxes: whether to make any; without them nothing is masked.
        rounding: whether to round outwards, for a proof (float64 only).
        differentiable: whether gradients flow through the boxes.
        sparsity: whether to measure the sparsity loss.
    """

    data_range: Range | None = None
    boxes: bool = True
    rounding: bool = False
    differentiable: bool = False
    sparsity: bool = False


@dataclass(frozen=True, eq=False)
class Passage:
    """What is known of a batch at its last layer.

    Attributes:
        center: the inputs of the last layer at the samples, enclosed, ``(batch, n)``.
        box: the same on the ball, or ``None``.
        columns: which of them can move, ``(batch, n)``, or ``None`` for all.
        factors: the norms of the layers before, each ``(batch,)`` or ``(1,)``.
        moved: ``(batch,)``: how far the last layer's input moves, as the boxes have it.
        varying: number of hidden units that can move, per sample, of ``units``.
        units: number of hidden units.
        sparsity: mean over layers of the sparsity loss.
    """

    center: Box
    box: Box | None
    columns: Tensor | None
    factors: tuple[Tensor, ...]
    moved: Tensor
    varying: Tensor
    units: int
    sparsity: Tensor

    @property
    def lip(self) -> Tensor:
        """Product of the norms before the last layer, ``(batch,)`` or ``(1,)``."""
        product = self.moved.new_ones(1)
        for factor in self.factors:
            product = product * factor
        return product


@dataclass
class _State:
    center: Box
    box: Box
    moved: Tensor
    columns: Tensor | None = None
    varying: Tensor | None = None
    units: int = 0
    factors: list[Tensor] = field(default_factory=list)
    sparsity: list[Tensor] = field(default_factory=list)


def passage(
    stages: Sequence[Stage], x: Tensor, eps: float, norm_of: NormOf, settings: Settings
) -> Passage:
    """Take a batch up to the inputs of the last layer.

    Args:
        stages: the network.
        x: inputs ``(batch, *)``.
        eps: radius of the balls.
        norm_of: see :data:`NormOf`; it is asked layer by layer, in order.
        settings: see :class:`Settings`.
    """
    state = _State(
        center=Box(x, x),
        box=start_box(x.detach(), eps, settings.data_range, rounding=settings.rounding),
        moved=x.new_full((len(x),), eps),
    )
    for k, stage in enumerate(stages[:-1]):
        _step(k, stage, state, norm_of, settings)
    flat = Box(*(end.flatten(1) for end in state.center))
    return Passage(
        center=flat,
        box=Box(*(end.flatten(1) for end in state.box)) if settings.boxes else None,
        columns=None if state.columns is None else state.columns.flatten(1),
        factors=tuple(state.factors),
        moved=state.moved,
        varying=x.new_zeros(len(x)) if state.varying is None else state.varying,
        units=state.units,
        sparsity=torch.stack(state.sparsity).mean() if state.sparsity else x.new_zeros(()),
    )


def _step(k: int, stage: Stage, state: _State, norm_of: NormOf, settings: Settings) -> None:
    """One stage: ``state`` moves on to the inputs of the next one."""
    if settings.rounding:
        center = through_affine(stage, state.center, rounding=True)
    else:
        z = stage.affine(state.center.low)
        center = Box(z, z)
    masks = Masks(None, None)
    if settings.boxes:
        with torch.set_grad_enabled(torch.is_grad_enabled() and settings.differentiable):
            masks = _boxed(k, stage, center, state, settings)
    norm = norm_of(k, stage, Masks(masks.rows, state.columns))
    state.factors.append(norm.factor)
    product = upper_product if settings.rounding else torch.mul
    state.moved = product(state.moved, norm.growth)
    state.columns = masks.columns
    state.center = _activated(stage, center)
    _count(stage, masks, state)


def _boxed(k: int, stage: Stage, center: Box, state: _State, settings: Settings) -> Masks:
    """The box of the affine output, then of the activations' output; the masks between."""
    rounding = settings.rounding
    rows = _proven_rows(stage, state.columns) if rounding else stage.operator.row_norms()
    rows = rows.to(center.low)
    if not settings.differentiable:
        center, rows = Box(center.low.detach(), center.high.detach()), rows.detach()
    box = around(center, state.moved, rows, rounding=rounding)
    # Without a range of the data the intervals of the first layer are never the better ones.
    if k > 0 or settings.data_range is not None:
        wide = through_affine(stage, state.box, rounding=rounding)
        box = intersected(box, wide, rounding=rounding)
    if settings.sparsity:
        state.sparsity.append(sparsity_loss(stage, box))
    state.box, masks = through_activations(stage, box)
    return masks


def _proven_rows(stage: Stage, columns: Tensor | None) -> Tensor:
    """Upper bounds of the norms of the rows, without the columns that cannot move."""
    operator = stage.operator
    rows = operator.row_norms()
    if columns is not None:
        left = operator.squared(columns.reshape(-1, *operator.shape_in))
        rows = torch.minimum(rows, left.clamp(min=0.0).sqrt())
    return rows * SLACK + SQUARED_AWAY


def _activated(stage: Stage, center: Box) -> Box:
    value = stage.activate(center.low)
    return Box(value, value if center.high is center.low else stage.activate(center.high))


def _count(stage: Stage, masks: Masks, state: _State) -> None:
    """Add the stage's units, and those that can move."""
    if not any(kind != "flatten" for kind, _ in stage.activations):
        return
    size = torch.Size(stage.operator.shape_out).numel()
    moving = masks.columns
    count = state.moved.new_full(state.moved.shape, size)
    if moving is not None:
        count = moving.flatten(1).sum(dim=1)
    state.varying = count if state.varying is None else state.varying + count
    state.units += size
