"""The sets that local bounds speak of: l2 balls around samples, optionally cut by an input box."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .curves import Range
from .tensors import SLACK, TINY, Net, chunks

Box = tuple[float, float]

# Rounds of the split of a direction between ball and box; any number of them is sound.
_ROUNDS = 4
# Entries of a batch of directions that stay in the cache while they are split.
_CACHED = 2**16


@dataclass(frozen=True, eq=False)
class Region:
    """``{x': ||x' - x|| <= r, low <= x' <= high}`` for every sample.

    Attributes:
        points: ``(batch, n_0)``, float64, taken as exact.
        radius: ``(batch,)``, float64.
        box: ends of the admissible inputs, the same for every feature, or ``None``.
    """

    points: Tensor
    radius: Tensor
    box: Box | None = None

    def __len__(self) -> int:
        return len(self.points)

    def select(self, rows: Tensor) -> Region:
        """The region of some of the samples."""
        return Region(self.points[rows], self.radius[rows], self.box)

    def first_range(self, net: Net, center: Range) -> Range:
        """Range of the first pre-activations."""
        if self.box is None:
            reach = self.radius[:, None] * net.maps[0].rows * SLACK + TINY
            return Range(center.low - reach, center.high + reach)
        eye = torch.eye(len(net.maps[0].rows), dtype=torch.float64).expand(len(self), -1, -1)
        return Range(center.low - self.support(net, -eye), center.high + self.support(net, eye))

    def support(self, net: Net, rows: Tensor) -> Tensor:
        """Upper bound of ``max a W_0 d`` over the displacements d, per row a.

        Args:
            net: the network.
            rows: ``(batch, m, n_1)``.

        Returns:
            ``(batch, m)``: without a box ``r ||a F||``; with one, the least of what
            :func:`_cut_support` gives and that.
        """
        first = net.maps[0]
        off = first.gamma * (rows.abs() @ first.rows) + first.error * rows.norm(dim=-1)
        norm = (rows @ net.factor).norm(dim=-1)
        reach = self.radius[:, None] * (norm + off)
        if self.box is not None:
            size = max(1, _CACHED // (rows.shape[1] * first.weight.shape[1]))
            parts = chunks(torch.arange(len(self)), size)
            cut = torch.cat([_cut_support(self.select(p), rows[p] @ first.weight) for p in parts])
            cut = cut + self.radius[:, None] * off
            reach = torch.minimum(reach, cut)
        raised: Tensor = reach * SLACK + TINY
        return raised


def _cut_support(region: Region, v: Tensor) -> Tensor:
    """``max v d`` over ``||d|| <= r`` and the box, from above.

    For any split ``v = a + b``: at most ``r ||a|| + sum_i |b_i| s_i``, with ``s_i`` the room that
    the box leaves in the direction of ``v_i``.  The best split has ``a_i = min(|v_i|, s_i / c)``
    for the c at which the clipped step ``min(c |v_i|, s_i)`` has length r.
    """
    assert region.box is not None
    low, high = region.box
    radius = region.radius[:, None, None]
    up = (high - region.points).clamp(min=0.0)[:, None] * (1.0 + 1e-15)
    down = (region.points - low).clamp(min=0.0)[:, None] * (1.0 + 1e-15)
    room = torch.minimum(torch.where(v > 0.0, up, down), radius)
    size = v.abs()
    scale = radius / (size.norm(dim=-1, keepdim=True) + TINY)
    for _ in range(_ROUNDS):
        clipped = scale * size > room
        used = torch.where(clipped, room, 0.0).square().sum(-1, keepdim=True)
        left = (radius.square() - used).clamp(min=0.0).sqrt()
        free = torch.where(clipped, 0.0, size).norm(dim=-1, keepdim=True)
        scale = torch.where(free > 0.0, left / (free + TINY), scale)
    share = torch.minimum(size, room / (scale + TINY))
    outer = ((size - share) * room).sum(-1)
    most: Tensor = region.radius[:, None] * share.norm(dim=-1) + outer
    return most
