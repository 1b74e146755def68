"""Values of functionals that are met on balls: whoever meets one below 0 need not search further.

A descent with the steps of projected gradients (A. Madry et al., ICLR 2018), on the displacements
of raw inputs.  Nothing here is proven, and nothing proven rests on it.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..float64 import TINY
from ..rounding import lengths
from .quadratic_pass import QuadraticPass

_STEPS = 20
# All steps together, in radii.
_WAY = 3.0


def least_met(passing: QuadraticPass, rows: Tensor) -> Tensor:
    """The least value met of each functional, ``(batch,)``.

    Args:
        passing: one sample for each functional.
        rows: ``(batch, 1, n_out)``: functionals of the outputs.
    """
    region = passing.lines.region
    radius, ones = region.radius[:, None], torch.ones_like(region.points)[:, None]
    ends = -region.room(-ones, None)[:, 0], region.room(ones, None)[:, 0]
    moved, least = torch.zeros_like(region.points), torch.full_like(region.radius, torch.inf)
    for _ in range(_STEPS):
        moved.requires_grad_(True)
        with torch.enable_grad():
            value = _values(passing, rows, moved)
            (slope,) = torch.autograd.grad(value.sum(), moved)
        least = torch.minimum(least, value.detach())
        sharp = region.ball.norm == "linf"
        way = slope.sign() if sharp else slope / (lengths(slope)[:, None] + TINY)
        moved = moved.detach() - _WAY / _STEPS * radius * way
        moved = torch.minimum(torch.maximum(moved, ends[0]), ends[1])
        if not sharp:
            moved = moved * (radius / (lengths(moved)[:, None] + TINY)).clamp(max=1.0)
    return torch.minimum(least, _values(passing, rows, moved))


def _values(passing: QuadraticPass, rows: Tensor, moved: Tensor) -> Tensor:
    """Those at displaced inputs."""
    operator = passing.lines.region.ball.first.operator
    through = operator.trained if torch.is_grad_enabled() else operator.forward
    z = passing.hidden[0].at + through(moved.reshape(-1, *operator.shape_in)).flatten(1)
    for before, layer in pairwise(passing.lines.layers):
        assert before.activation is not None
        z = layer.affine(before.activation.apply(z))
    return (rows[:, 0] * z).sum(dim=1)
