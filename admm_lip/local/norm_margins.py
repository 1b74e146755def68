"""Slopes and margins by the norms of what can move on the ball, and the box of the last features.

For a functional c of the outputs, with d_j the factors of the hidden layers,

    |c f(x') - c f(x)|  <=  ||c W_l C|| d_{l-1} ... d_0  |x' - x|,

and c W_l (a' - a) is at least minus its greatest value over the ball of the features' distance, cut
with their box.  The cheapest means comes first: the layers' own norms, then those of masked layers,
for which an estimate from below sets samples aside that even it leaves open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..float64 import TINY, U
from ..rounding import SLACK, lengths, proven_norms, upper_product
from .backward_lines import center_values
from .forward_bounds import (
    Arithmetic,
    Ball,
    Forward,
    Norm,
    NormOf,
    by_masked_norms,
    by_rows,
    forward,
    input_box,
)
from .input_region import Box, chunks
from .layers import Layer
from .power_iteration import masked_norms, start_vector
from .surrogates import stretched

# Power iterations of the estimate that sets samples aside, and of its start.
_ITERATIONS = 30
_WARM_UP = 20
# Rows of the last layer's differences held at once.
_ENTRIES = 2**24


@dataclass(frozen=True, eq=False)
class NormBounds:
    """Bounds by norms, ``(batch, m)``.

    Attributes:
        lip: of each functional from the samples to points of their balls (of a functional of
            several rows between any two points).
        margin: lower bounds of the functionals on the balls, ``-inf`` where none was sought.
        ratio: ``(batch,)``, the hidden layers' factor over that of their own norms.
        varying: ``(batch,)``, share of hidden units that can move; NaN where not computed.
    """

    lip: Tensor
    margin: Tensor
    ratio: Tensor
    varying: Tensor

    def part(self, rows: Tensor) -> NormBounds:
        """Those of some samples."""
        return NormBounds(self.lip[rows], self.margin[rows], self.ratio[rows], self.varying[rows])


@dataclass(frozen=True, eq=False)
class NormMargins:
    """A network in float64 whose functionals are bounded by norms.

    Attributes:
        layers: the network.
        box: ends of the admissible inputs, or ``None``.
    """

    layers: Sequence[Layer]
    box: Box | None

    @cached_property
    def whole(self) -> float:
        """Product of the hidden layers' own norms and steepest slopes, rounded up."""
        product = torch.ones(1, dtype=torch.float64)
        for layer in self.layers[:-1]:
            assert layer.activation is not None
            product = upper_product(product, layer.norm, layer.activation.steepest)
        return float(product)

    @cached_property
    def _starts(self) -> list[Tensor]:
        return [start_vector(layer.operator, _WARM_UP) for layer in self.layers[:-1]]

    def at_samples(self, x: Tensor) -> Forward:
        """The features at the samples, enclosed."""
        ball = Ball(x.new_zeros(len(x)))
        return forward(self.layers, x, ball, self._own(), Arithmetic(False, rounding=True))

    def by_product(self, functionals: Tensor) -> NormBounds:
        """By the layers' own norms alone; ``functionals`` ``(batch, m, p, n_out)``."""
        lip = upper_product(self._row_norms(functionals, None), self.whole)
        open_ = torch.full_like(lip, -torch.inf)
        nan = torch.full((len(lip),), torch.nan, dtype=torch.float64)
        return NormBounds(lip, open_, torch.ones_like(nan), nan)

    def by_box(self, x: Tensor, radius: Tensor, functionals: Tensor) -> NormBounds:
        """By the layers' own norms and the box of the last features."""
        found = self._forward(x, radius, self._own(), rounding=True)
        return self._bounds(found, radius, functionals, self.whole)

    def by_masked(self, x: Tensor, radius: Tensor, functionals: Tensor) -> NormBounds:
        """By proven norms of what can move."""
        found = self._forward(x, radius, by_masked_norms(self.layers), rounding=True)
        product = torch.ones(1, dtype=torch.float64)
        lip = upper_product(product, *found.factors).expand(len(x)).clamp(max=self.whole)
        return self._bounds(found, radius, functionals, lip)

    def estimated(self, x: Tensor, radius: Tensor, functionals: Tensor) -> Tensor:
        """Estimates of the margins by masked norms, mostly above what can be proven."""
        found = self._forward(x, radius, self._estimates(), rounding=False)
        center = found.value.new_zeros(functionals.shape[:2])
        if functionals.shape[2] == 1:
            center = (functionals[:, :, 0] @ self.layers[-1].affine(found.value)[..., None])[..., 0]
        return center - self._moves(found, radius, functionals, found.lip.expand(len(x)))

    def _forward(self, x: Tensor, radius: Tensor, norm_of: NormOf, *, rounding: bool) -> Forward:
        box = input_box(x, radius, self.box, rounding=rounding)
        return forward(self.layers, x, Ball(radius, box), norm_of, Arithmetic(rounding=rounding))

    def _own(self) -> NormOf:
        return by_rows(self.layers)

    def _estimates(self) -> NormOf:
        def norm(k: int, rows: Tensor | None, columns: Tensor | None) -> Norm:
            start, count = (
                self._starts[k],
                len(next(m for m in (rows, columns, [0]) if m is not None)),
            )
            start = start.expand(count, *start.shape[1:])
            found, _ = masked_norms(
                self.layers[k].operator, rows, columns, start, _ITERATIONS, marks=False
            )
            return Norm(found, found)

        return norm

    def _bounds(
        self, found: Forward, radius: Tensor, functionals: Tensor, lip: Tensor | float
    ) -> NormBounds:
        own = self._row_norms(functionals, found.columns)
        inner = torch.as_tensor(lip, dtype=torch.float64).expand(len(radius))
        margin = torch.full_like(own, -torch.inf)
        if functionals.shape[2] == 1:
            center = center_values(self.layers[-1], found, functionals[:, :, 0])
            margin = center - self._moves(found, radius, functionals, inner)
            margin = torch.nextafter(margin, margin.new_tensor(-torch.inf))
            margin = torch.where(torch.isfinite(margin), margin, -torch.inf)
        ratio = (inner / self.whole).clamp(max=1.0)
        return NormBounds(upper_product(own, inner[:, None]), margin, ratio, found.varying)

    def _row_norms(self, functionals: Tensor, columns: Tensor | None) -> Tensor:
        """``||c W_l C||`` of every functional, ``(batch, m)``."""
        last, parts = self.layers[-1], []
        for rows in self._portions(functionals):
            pairs = self._pairs(functionals[rows])
            lost = lengths(functionals[rows], dim=(2, 3)) * last.error
            if columns is not None:
                pairs = pairs * columns[rows, None, None]
            norms = lengths(pairs[:, :, 0]) if pairs.shape[2] == 1 else proven_norms(pairs)
            parts.append(norms * (1.0 + 8.0 * U) + lost + TINY)
        return torch.cat(parts) if parts else functionals.new_zeros(functionals.shape[:2])

    def _pairs(self, functionals: Tensor) -> Tensor:
        """``c W_l``, whose entries are rounded once, ``(batch, m, p, n)``."""
        flat = functionals.flatten(0, 1)
        return self.layers[-1].rows_back(flat).view(*functionals.shape[:3], -1)

    def _portions(self, functionals: Tensor) -> list[Tensor]:
        size = functionals[0].numel() * self.layers[-1].operator.size_in if len(functionals) else 1
        return chunks(torch.arange(len(functionals)), _ENTRIES // max(size, 1))

    def _moves(self, found: Forward, radius: Tensor, functionals: Tensor, lip: Tensor) -> Tensor:
        """Upper bounds of ``c f(x) - c f(x')``, ``(batch, m)``, of functionals of one row."""
        last, parts = self.layers[-1], []
        reach = upper_product(lip, radius)
        for rows in self._portions(functionals):
            pairs = self._pairs(functionals[rows])[:, :, 0]
            moving = pairs if found.columns is None else pairs * found.columns[rows, None]
            lost = upper_product(
                lengths(functionals[rows, :, 0]) * last.error + 4.0 * U * lengths(pairs),
                reach[rows, None],
            )
            most = upper_product(lengths(moving), reach[rows, None])
            if found.box is not None:
                cut = _cut(pairs, reach[rows], found, rows)
                most = torch.where(cut < most, cut, most)
            parts.append(most + lost)
        return torch.cat(parts) if parts else functionals.new_zeros(functionals.shape[:2])


def _cut(pairs: Tensor, reach: Tensor, found: Forward, rows: Tensor) -> Tensor:
    """``r ||a|| + sum_i b_i s_i`` for the best split of ``|v| = a + b``; any split is a bound.

    The functional is to stay large, so each feature moves against its sign.
    """
    assert found.box is not None
    up = (found.box.high - found.center.low)[rows].clamp(min=0.0)[:, None]
    down = (found.center.high - found.box.low)[rows].clamp(min=0.0)[:, None]
    size, room = pairs.abs(), torch.where(pairs > 0.0, down, up)
    share = stretched(size, room, reach)[1]
    outer = ((size - share) * room).sum(dim=-1)
    most: Tensor = reach[:, None] * lengths(share) + outer
    return most * SLACK + TINY
