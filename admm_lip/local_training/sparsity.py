"""The sparsity loss: how far units are from being constant on the balls (Huang et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .boxes import Box
from .stages import ACTIVATIONS, Stage

# Weight on leaving by the upper threshold of a clipped ReLU rather than by 0.
_UPPER = 0.1


def _relu(layer: Any, box: Box) -> Tensor:
    return box.high.relu().mean()


def _clipped_relu(layer: Any, box: Box) -> Tensor:
    above: Tensor = (layer.threshold.view(box.low.shape[1:]) - box.low).relu().mean()
    return above * _UPPER + box.high.relu().mean()


def _pair_clip(layer: Any, box: Box) -> Tensor:
    floor, cap = (end.view(box.low.shape[1:]) for end in layer.ends())
    # Where there is no threshold the difference is infinite, and no unit of that side is asked for.
    room = torch.where(torch.isfinite(cap), cap - box.low, box.high - floor)
    return 2.0 * room.relu().mean()


_LOSSES: Mapping[str, Callable[[Any, Box], Tensor]] = {
    "relu": _relu,
    "clipped_relu": _clipped_relu,
    "pair_clip": _pair_clip,
}


def sparsity_loss(stage: Stage, box: Box) -> Tensor:
    """Mean distance of a layer's units from being constant, 0 where none ever is.

        ReLU                mean (ub)_+
        clipped ReLU        mean (ub)_+ + 0.1 mean (threshold - lb)_+
        clipped MaxMin      mean over maxima (cap - lb)_+ + mean over minima (ub - floor)_+

    Args:
        stage: the layer.
        box: of its affine output, differentiable, ``(batch, *shape_out)``.
    """
    total = box.low.new_zeros(())
    for kind, layer in stage.activations:
        if kind in _LOSSES:
            total = total + _LOSSES[kind](layer, box)
        row = ACTIVATIONS[kind]
        box = Box(row.apply(layer, box.low), row.apply(layer, box.high))
    return total
