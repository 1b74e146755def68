"""The sets that local bounds speak of: balls around samples, optionally cut by an input box."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rounding import SLACK, TINY, lengths, upper_product
from .curves import Range
from .tensors import Net, chunks

Box = tuple[float, float]

# Rounds of the split of a direction between ball and box; any number of them is sound.
_ROUNDS = 4
# Entries of a batch of directions that stay in the cache while they are split.
_CACHED = 2**16


@dataclass(frozen=True, eq=False)
class Region:
    """``{x': ||x' - x|| <= r, low <= x' <= high}`` for every sample, in the net's norm.

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
            reach = upper_product(net.ball.rows, self.radius[:, None])
            return Range(center.low - reach, center.high + reach)
        eye = torch.eye(len(net.ball.rows), dtype=torch.float64).expand(len(self), -1, -1)
        return Range(center.low - self.support(net, -eye), center.high + self.support(net, eye))

    def support(self, net: Net, rows: Tensor) -> Tensor:
        """Upper bound of ``max a W_0 d`` over the displacements d, per row a.

        Args:
            net: the network.
            rows: ``(batch, m, n_1)``.

        Returns:
            ``(batch, m)``: for l2 without a box ``r ||a F||``, with one the least of what
            :func:`_cut_support` gives and that; for linf feature by feature.
        """
        ball, first = net.ball, net.ball.first
        off = first.gamma * (rows.abs() @ ball.rows)
        if ball.norm == "linf":
            off = off + first.error * lengths(rows) * first.weight.shape[1] ** 0.5
            reach = self._by_parts(net, rows, _box_support)
        else:
            off = off + first.error * lengths(rows)
            reach = self.radius[:, None] * lengths(rows @ net.factor)
            if self.box is not None:
                reach = torch.minimum(reach, self._by_parts(net, rows, _cut_support))
        raised: Tensor = (reach + self.radius[:, None] * (off + TINY)) * SLACK + TINY
        return raised

    def _by_parts(
        self, net: Net, rows: Tensor, support: Callable[[Region, Tensor, Tensor | None], Tensor]
    ) -> Tensor:
        """A support function of ``a W_0``, as many samples at a time as stay in the cache."""
        weight = net.ball.first.weight
        size = max(1, _CACHED // (rows.shape[1] * weight.shape[1]))
        parts = chunks(torch.arange(len(self)), size)
        found = [support(self.select(p), rows[p] @ weight, net.ball.scale) for p in parts]
        return torch.cat(found) if found else rows.new_zeros(rows.shape[:2])

    def room(self, v: Tensor, scale: Tensor | None) -> Tensor:
        """How far each feature may go in the direction of ``v``, at most r; ``(batch, m, n_0)``."""
        radius = self.radius[:, None, None]
        if self.box is None:
            return radius.expand_as(v)
        low, high = self.box
        up = (high - self.points).clamp(min=0.0) * (1.0 + 1e-15)
        down = (self.points - low).clamp(min=0.0) * (1.0 + 1e-15)
        if scale is not None:
            up, down = upper_product(up, scale), upper_product(down, scale)
        return torch.minimum(torch.where(v > 0.0, up[:, None], down[:, None]), radius)


def _box_support(region: Region, v: Tensor, scale: Tensor | None) -> Tensor:
    """``max v d`` over ``|d_i| <= r`` and the box."""
    most: Tensor = (v.abs() * region.room(v, scale)).sum(-1)
    return most


def _cut_support(region: Region, v: Tensor, scale: Tensor | None) -> Tensor:
    """``max v d`` over ``||d|| <= r`` and the box, from above.

    For any split ``v = a + b``: at most ``r ||a|| + sum_i |b_i| s_i``, with ``s_i`` the room that
    the box leaves in the direction of ``v_i``.  The best split has ``a_i = min(|v_i|, s_i / c)``
    for the c at which the clipped step ``min(c |v_i|, s_i)`` has length r.
    """
    radius, room = region.radius[:, None, None], region.room(v, scale)
    size = v.abs()
    pace = radius / lengths(size)[..., None]
    for _ in range(_ROUNDS):
        clipped = pace * size > room
        used = (torch.where(clipped, room, 0.0) / (radius + TINY)).square().sum(-1, keepdim=True)
        left = radius * (1.0 - used).clamp(min=0.0).sqrt()
        free = torch.where(clipped, 0.0, size)
        some = (free > 0.0).any(dim=-1, keepdim=True)
        pace = torch.where(some, left / lengths(free)[..., None], pace)
    share = torch.minimum(size, room / (pace + TINY))
    outer = ((size - share) * room).sum(-1)
    most: Tensor = region.radius[:, None] * lengths(share) + outer
    return most
