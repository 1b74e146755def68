"""Boxes around every layer's values on a ball, and which units are constant on it.

On ``||x' - x|| <= eps`` every value ``z_k = W_k x_k + b_k`` lies in two boxes, which are
intersected:

* **intervals**: the box of ``x_k`` through ``|W_k|``;
* **ball**: ``|z_ki(x') - z_ki(x)| <= ||w_i|| d_k`` with d_k a bound on ``||x_k(x') - x_k(x)||``
  and ``w_i`` the row, without the columns of units that are constant.

Activations are monotone, so they map ends to ends.  Afterwards the ball around the activation's
value would add nothing: ``d_{k+1} = d_k ||I W_k I||`` is never below ``||w_i|| d_k``.

With ``rounding`` every end is moved outwards by what floating point may have lost, and the boxes
enclose the values of the real-valued network (``gamma_n`` as in ``rounding.py``; the
convolution must sum its products the conventional way).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..rounding import SLACK, TINY, gamma
from .stages import ACTIVATIONS, Stage

Range = tuple[float, float]


class Box(NamedTuple):
    """Lower and upper ends, ``(batch, *shape)``."""

    low: Tensor
    high: Tensor


@dataclass(frozen=True, eq=False)
class Masks:
    """Which units can move, 1.0, or are constant on the ball, 0.0; ``None`` is all ones.

    Attributes:
        rows: of the affine layer: its row may be removed.
        columns: of what comes out of the activations: the next layer's column may be removed.
    """

    rows: Tensor | None
    columns: Tensor | None


def start_box(x: Tensor, eps: float, data_range: Range | None, *, rounding: bool) -> Box:
    """``x +- eps``, cut to the range of admissible inputs.

    Args:
        x: inputs ``(batch, *)``.
        eps: radius, at least 0.
        data_range: least and greatest admissible value of every input feature.
        rounding: whether to round outwards.
    """
    box = Box(x - eps, x + eps)
    if rounding:
        box = _widened(box)
    if data_range is None:
        return box
    return Box(box.low.clamp(min=data_range[0]), box.high.clamp(max=data_range[1]))


def through_affine(stage: Stage, box: Box, *, rounding: bool) -> Box:
    """Interval arithmetic with middle and radius."""
    operator = stage.operator
    middle = 0.5 * (box.low + box.high)
    radius = torch.maximum(box.high - middle, middle - box.low) if rounding else box.high - middle
    z = stage.affine(middle)
    if rounding:
        radius = radius * SLACK + gamma(operator.terms + 2) * middle.abs()
    reach = operator.absolute(radius.reshape(len(radius), *operator.shape_in))
    if rounding:
        bias = operator.bias
        lost = 0.0 if bias is None else gamma(operator.terms + 2) * bias.abs()
        reach = (reach + lost) * SLACK + TINY
    return Box(z - reach, z + reach)


def around(center: Box, moved: Tensor, rows: Tensor, *, rounding: bool) -> Box:
    """The ball's box: ``center +- moved * rows``.

    Args:
        center: the values at the samples, enclosed (both ends alike in training).
        moved: ``(batch,)`` or a scalar, the distance that the layer's input moves.
        rows: norms of the rows, broadcasting against the samples.
        rounding: whether to round outwards.
    """
    scale = moved.view(-1, *([1] * (center.low.ndim - 1)))
    reach = scale * rows
    if not rounding:
        return Box(center.low - reach, center.high + reach)
    reach = reach * SLACK + TINY
    return _widened(Box(center.low - reach, center.high + reach))


def intersected(one: Box, other: Box, *, rounding: bool) -> Box:
    """Both enclose the same numbers; with rounding NaN, from overflow, counts as no knowledge."""
    if not rounding:
        return Box(torch.maximum(one.low, other.low), torch.minimum(one.high, other.high))
    low = torch.where(one.low > other.low, one.low, other.low)
    return Box(low, torch.where(one.high < other.high, one.high, other.high))


def through_activations(stage: Stage, box: Box) -> tuple[Box, Masks]:
    """The box of the activations' output, and which units are constant.

    A unit that is constant behind a function of it alone allows its row to be removed; behind a
    sort, whose outputs mix two inputs, only the next layer's column.
    """
    rows: Tensor | None = None
    columns: Tensor | None = None
    alone = True
    for kind, layer in stage.activations:
        row = ACTIVATIONS[kind]
        if not row.per_neuron:
            alone, columns = False, None  # a pair of constants is constant, but rarely met
        if row.constant is not None:
            moving = ~row.constant(layer, box.low, box.high)
            columns = moving if columns is None else columns.reshape(moving.shape) & moving
            rows = columns if alone else rows
        box = Box(row.apply(layer, box.low), row.apply(layer, box.high))
    return box, Masks(_numbers(rows, box.low), _numbers(columns, box.low))


def _widened(box: Box) -> Box:
    """One floating-point number outwards."""
    down, up = box.low.new_tensor(-torch.inf), box.low.new_tensor(torch.inf)
    return Box(torch.nextafter(box.low, down), torch.nextafter(box.high, up))


def _numbers(mask: Tensor | None, like: Tensor) -> Tensor | None:
    return None if mask is None else mask.to(like.dtype)
