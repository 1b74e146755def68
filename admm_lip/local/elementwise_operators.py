"""Factors, positions and sums over axes as operators: one entry a column, or ones and zeros."""
# ruff: noqa: D102 - the methods are those of Operator

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..networks.activations import Options
from ..rounding import SLACK
from .linear_operator import Along, Entries, Operator, Shape, Sides, as_they_are


class Elementwise(Operator):
    """``x * weight``, broadcast."""

    kind = "elementwise"

    def __init__(self, layer: Any, options: Options, shape_in: Shape, shape_out: Shape) -> None:
        super().__init__(layer, options, shape_in, shape_out, 1, 1)

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = self.layer.bias
        return bias

    def own_entries(self) -> Tensor:
        weight: Tensor | None = self.layer.weight
        like = torch.ones((), dtype=torch.float64) if weight is None else weight
        return like.expand(self.shape_in)

    def product(self, x: Tensor, entries: Entries) -> Tensor:
        return x * self.entries(entries).to(x)

    def transposed(self, u: Tensor, entries: Entries) -> Tensor:
        return self.product(u, entries)

    def row_lengths(self, columns: Tensor | None = None) -> Tensor:
        sizes = self.own_entries().abs()[None]
        return sizes if columns is None else sizes * columns.sqrt() * SLACK

    def column_lengths(self) -> Tensor:
        return self.own_entries().abs()

    def along(self, axis: int) -> Along | None:
        arrays = (a for a in (self.layer.weight, self.layer.bias) if a is not None)
        same = all(a.ndim < 2 - axis or a.shape[axis - 2] == 1 for a in arrays)
        return Along(1, 0, 0) if len(self.shape_in) == 3 and same else None

    def windowed(self, shape_in: Shape, sides: Sides, shape_out: Shape) -> Elementwise:
        return Elementwise(self.layer, self.options, shape_in, shape_out)


class Take(Operator):
    """Entries by their positions, -1 for a zero."""

    kind = "take"

    def __init__(self, layer: Any, options: Options, shape_in: Shape, shape_out: Shape) -> None:
        index = layer.index.flatten().to(torch.int64)
        most = int(torch.bincount(index[index >= 0], minlength=1).max())
        super().__init__(layer, options, shape_in, shape_out, 1, most)
        self.index, self.held = index.clamp(min=0), index >= 0

    def product(self, x: Tensor, entries: Entries) -> Tensor:
        taken: Tensor = x.flatten(1)[:, self.index] * (self.held * _one(entries))
        return taken.view(len(x), *self.shape_out)

    def transposed(self, u: Tensor, entries: Entries) -> Tensor:
        spread = u.new_zeros((len(u), self.size_in))
        spread.index_add_(1, self.index, u.flatten(1) * (self.held * _one(entries)))
        return spread.view(len(u), *self.shape_in)


class Sum(Operator):
    """The sum over axes of every sample."""

    kind = "sum"

    def __init__(self, layer: Any, options: Options, shape_in: Shape, shape_out: Shape) -> None:
        terms = math.prod(shape_in) // math.prod(shape_out)
        super().__init__(layer, options, shape_in, shape_out, terms, 1)
        self.axes = [1 + k for k in options["axes"]]

    def product(self, x: Tensor, entries: Entries) -> Tensor:
        return x.sum(self.axes, keepdim=bool(self.options["keep"])) * _one(entries)

    def transposed(self, u: Tensor, entries: Entries) -> Tensor:
        kept = [len(u), *(1 if 1 + k in self.axes else n for k, n in enumerate(self.shape_in))]
        return u.reshape(kept).expand(len(u), *self.shape_in) * _one(entries)


def _one(entries: Entries) -> float:
    """What becomes of the ones of a matrix of ones and zeros."""
    return 1.0 if entries is as_they_are else float(entries(torch.ones(1, dtype=torch.float64)))
