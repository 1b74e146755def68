"""Several linear layers wired together as one operator: sums, skips and concatenations.

A chain carries what skips still need (``lifted_layers.py``), so the input of a layer is a *state*
of several segments, and its output several values, one behind the other.  Between them stand
*steps*: an operator, a sum, a concatenation, or a change of shape.  Nothing is unrolled: products
and adjoints go step by step.

**Rounding.**  On a path of steps a product of numbers is rounded as often as all of its sums have
terms together, so with n the most along any path

    |fl(W x) - W x|  <=  gamma_n A |x|,     A  the same wires with the absolute values of each step,

``A >= |W|``, with equality where no two paths lead from one entry to another.  Row and column norms
are those of the matrix, which is formed once, sparse, with the error that ``lowering.merged`` and
the joins state.
"""
# ruff: noqa: D102 - the methods are those of Operator

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as functional
from torch import Tensor

from ..float64 import SQUARED_AWAY
from ..networks.affine import AffineMap
from ..networks.joins import JOINS, dense, stacked
from ..networks.lowering import merged, widened
from ..rounding import SLACK
from .linear_operator import Entries, Operator, Shape, Sides

_ENTRIES = 2**33
WHOLE: Sides = 0, 0, 0, 0


@dataclass(frozen=True, eq=False)
class Step:
    """One value, made of values before it.

    Attributes:
        sources: their numbers: first the segments of the state, then the steps.
        shape: of the value.
        operator: a linear layer of the only source; ``None`` for a join.
        join: what is done otherwise, a key of ``networks.joins.JOINS``.
        error: bound on the Frobenius norm of the operator minus the exact layer, and
        bias_error: on every entry of the bias minus the exact one.
        crops: what each source leaves out, where a step reads a window.
    """

    sources: tuple[int, ...]
    shape: Shape
    operator: Operator | None = None
    join: str = "add"
    error: float = 0.0
    bias_error: float = 0.0
    crops: tuple[Sides, ...] = ()

    def forward(self, given: Sequence[Tensor], entries: Entries) -> Tensor:
        """The value, without bias."""
        crops = self.crops or (WHOLE,) * len(given)
        seen = [_padded(v, crop, -1) for v, crop in zip(given, crops, strict=True)]
        if self.operator is not None:
            found = self.operator.product(seen[0].reshape(-1, *self.operator.shape_in), entries)
        elif self.join == "concatenate":
            found = torch.cat(seen, dim=1)
        else:
            found = sum(seen[1:], seen[0])
        return found.reshape(len(found), *self.shape)

    def back(self, u: Tensor, shapes: Sequence[Shape], entries: Entries) -> list[Tensor]:
        """What it hands back to each source, of these shapes."""
        if self.operator is not None:
            u = self.operator.transposed(u.reshape(-1, *self.operator.shape_out), entries)
            parts = [u]
        elif self.join == "concatenate":
            parts = list(torch.split(u, [shape[0] for shape in shapes], dim=1))
        else:
            parts = [u] * len(shapes)
        crops = self.crops or (WHOLE,) * len(parts)
        return [
            _padded(part.reshape(len(part), *cropped(shape, crop)), crop, 1)
            for part, shape, crop in zip(parts, shapes, crops, strict=True)
        ]

    @property
    def terms(self) -> tuple[int, int]:
        """How often a product is rounded on its way through, and on its way back."""
        if self.operator is not None:
            return self.operator.terms, self.operator.terms_back
        return (len(self.sources) - 1 if self.join == "add" else 0), 0

    def map(self, given: Sequence[AffineMap | _Segment]) -> AffineMap:
        """The value as a map of the state."""
        if self.operator is not None:
            matrix, off = self.operator.matrix(_ENTRIES)
            bias = self.operator.bias
            numbers = np.zeros(self.operator.size_out)
            if bias is not None:
                numbers = bias.expand(self.operator.shape_out).flatten().numpy()
            own = AffineMap(matrix, numbers, off + self.error, self.shape, self.bias_error)
            if isinstance(given[0], _Segment) and not self.crops:
                return widened(own, given[0].before, given[0].after)
            return merged(own, self._seen(given)[0])
        return JOINS[self.join].merge(self._seen(given), self.shape)

    def _seen(self, given: Sequence[AffineMap | _Segment]) -> list[AffineMap]:
        maps = [one.map if isinstance(one, _Segment) else one for one in given]
        if not self.crops:
            return maps
        return [_rows_of(one, crop) for one, crop in zip(maps, self.crops, strict=True)]


class _Segment(NamedTuple):
    """A segment of the state: what stands before and after it."""

    before: int
    shape: Shape
    after: int

    @property
    def map(self) -> AffineMap:
        """As a map of the state."""
        size = math.prod(self.shape)
        eye = AffineMap(sp.csr_array(sp.eye_array(size)), np.zeros(size), 0.0, self.shape)
        return widened(eye, self.before, self.after)


class Wired(Operator):
    """Steps from the segments of a state to some of their values.

    Args:
        segments: shapes of the segments.
        steps: in an order in which they can be evaluated.
        outputs: numbers of the values that are given, one behind the other.
        bias: of the whole, where it is known; else it is made of the steps'.
    """

    kind = "wired"

    def __init__(
        self,
        segments: Sequence[Shape],
        steps: Sequence[Step],
        outputs: Sequence[int],
        bias: Tensor | None = None,
    ) -> None:
        self._bias = bias
        self.segments, self.steps, self.outputs = tuple(segments), tuple(steps), tuple(outputs)
        self.shapes = (*self.segments, *(step.shape for step in steps))
        shape_in, shape_out = (_joint(s) for s in (self.shapes_in, self.shapes_out))
        super().__init__(None, {}, shape_in, shape_out, *self._terms())

    @property
    def shapes_in(self) -> tuple[Shape, ...]:
        return self.segments

    @property
    def shapes_out(self) -> tuple[Shape, ...]:
        return tuple(self.shapes[k] for k in self.outputs)

    @property
    def exact_rows(self) -> bool:
        return False

    def _terms(self) -> tuple[int, int]:
        through, count = [0] * len(self.segments), len(self.segments)
        for step in self.steps:
            through.append(step.terms[0] + max(through[k] for k in step.sources))
        # Back, a value adds up what those who hear it hand back.
        back, heard = [0] * len(self.shapes), [0] * len(self.shapes)
        for k in self.outputs:
            heard[k] += 1
        for number, step in reversed(list(enumerate(self.steps, count))):
            terms = back[number] + max(heard[number] - 1, 0) + step.terms[1]
            for k in step.sources:
                back[k], heard[k] = max(back[k], terms), heard[k] + 1
        ends = [back[k] + max(heard[k] - 1, 0) for k in range(count)]
        return max(through[k] for k in self.outputs), max(ends)

    def product(self, x: Tensor, entries: Entries) -> Tensor:
        values = _parts(x, self.shapes_in)
        for step in self.steps:
            values.append(step.forward([values[k] for k in step.sources], entries))
        return _together([values[k] for k in self.outputs], self.shape_out)

    def transposed(self, u: Tensor, entries: Entries) -> Tensor:
        found: list[Tensor | None] = [None] * len(self.shapes)

        def add(k: int, part: Tensor) -> None:
            have = found[k]
            found[k] = part if have is None else have + part

        for k, part in zip(self.outputs, _parts(u, self.shapes_out), strict=True):
            add(k, part)
        for number in range(len(self.shapes) - 1, len(self.segments) - 1, -1):
            step, own = self.steps[number - len(self.segments)], found[number]
            found[number] = None
            if own is None:
                continue
            back = step.back(own, [self.shapes[k] for k in step.sources], entries)
            for k, part in zip(step.sources, back, strict=True):
                add(k, part)
        ends = [
            u.new_zeros(len(u), *shape) if part is None else part
            for part, shape in zip(found, self.segments, strict=False)
        ]
        return _together(ends, self.shape_in)

    @cached_property
    def map(self) -> AffineMap:
        """The whole as one map of the state, with bounds on what rounding took from it."""
        sizes = [math.prod(shape) for shape in self.segments]
        found: list[AffineMap | _Segment] = [
            _Segment(sum(sizes[:k]), shape, sum(sizes[k + 1 :]))
            for k, shape in enumerate(self.segments)
        ]
        for step in self.steps:
            found.append(step.map([found[k] for k in step.sources]))
        given = [found[k] for k in self.outputs]
        maps = [one.map if isinstance(one, _Segment) else one for one in given]
        return stacked(maps, ()) if len(maps) > 1 else maps[0]

    @property
    def bias(self) -> Tensor | None:
        whole = torch.from_numpy(self.map.bias) if self._bias is None else self._bias
        return whole.view(self.shape_out)

    def matrix(self, limit: int) -> tuple[Any, float]:
        return sp.csr_array(self.map.matrix), self.map.error

    def dense(self) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(dense(self.map.matrix)))

    @cached_property
    def _squares(self) -> tuple[Any, Tensor]:
        """Squares of the matrix' entries, its rows scaled to about 1, and these scales."""
        matrix = sp.csr_array(self.map.matrix)
        most = abs(matrix).max(axis=1).toarray().ravel()
        scale = np.ldexp(1.0, -np.clip(np.frexp(np.where(most > 0.0, most, 1.0))[1], -1000, 1000))
        scaled = sp.csr_array(sp.diags_array(scale) @ matrix)
        scaled.data = np.square(scaled.data)
        return scaled, torch.from_numpy(scale)

    def row_lengths(self, columns: Tensor | None = None) -> Tensor:
        squares, scale = self._squares
        mask = torch.ones(1, self.size_in).double() if columns is None else columns.flatten(1)
        sums = torch.from_numpy((squares @ mask.numpy().T).T)
        found = (sums.clamp(min=0.0).sqrt() * SLACK + SQUARED_AWAY) / scale
        return found.reshape(-1, *self.shape_out)

    def row_norms(self) -> Tensor:
        return self.row_lengths()[0]

    def column_lengths(self) -> Tensor:
        matrix = sp.csc_array(self.map.matrix)
        scale = float(np.abs(matrix.data).max(initial=1e-300))
        squares = (matrix / scale).power(2).sum(axis=0)
        return torch.from_numpy(np.sqrt(np.ravel(squares))).view(self.shape_in) * scale

    def spread(self, x: Tensor) -> Tensor:
        sizes = self._sizes
        if self._bias is not None or sizes is None:
            return self.absolute(x)
        return torch.from_numpy((sizes @ x.flatten(1).numpy().T).T).view(-1, *self.shape_out)

    @cached_property
    def _sizes(self) -> Any:
        """The matrix' absolute values, where the steps' are more."""
        sizes, ones = abs(sp.csr_array(self.map.matrix)), self._ones(self.shape_in)
        more = self.absolute(ones).flatten() > torch.from_numpy(sizes.sum(axis=1)) * SLACK
        return sizes if bool(more.any()) else None

    @cached_property
    def copies(self) -> Tensor:
        count = len(self.segments)
        marks = [torch.full((math.prod(self.shapes[k]),), k < count) for k in self.outputs]
        return torch.cat(marks)


def wired(
    segments: Sequence[Shape],
    steps: Sequence[Step],
    outputs: Sequence[int],
    bias: Tensor | None = None,
) -> Operator:
    """The steps as one operator; a layer that stands alone is that layer's own."""
    if len(segments) == len(steps) == 1 and tuple(outputs) == (1,):
        step = steps[0]
        if step.operator is not None and not step.crops and step.operator.shape_in == segments[0]:
            return step.operator
    return Wired(segments, steps, outputs, bias)


def steps_of(operator: Operator) -> tuple[Step, ...]:
    """Those of an operator; any other than :class:`Wired` is a single one."""
    if isinstance(operator, Wired):
        return operator.steps
    return (Step((0,), operator.shape_out, operator),)


def _joint(shapes: Sequence[Shape]) -> Shape:
    """Of one value its shape, of several their number of entries."""
    return shapes[0] if len(shapes) == 1 else (sum(math.prod(shape) for shape in shapes),)


def _parts(x: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    parts = torch.split(x.flatten(1), [math.prod(shape) for shape in shapes], dim=1)
    return [part.reshape(len(x), *shape) for part, shape in zip(parts, shapes, strict=True)]


def _together(parts: Sequence[Tensor], shape: Shape) -> Tensor:
    whole = parts[0] if len(parts) == 1 else torch.cat([p.flatten(1) for p in parts], dim=1)
    return whole.reshape(len(whole), *shape)


def _padded(x: Tensor, crop: Sides, sign: int) -> Tensor:
    """Zeros in the place of what was left out (1), or that left out (-1)."""
    if crop == WHOLE:
        return x
    top, bottom, left, right = (sign * side for side in crop)
    return functional.pad(x, (left, right, top, bottom))


def cropped(shape: Shape, crop: Sides) -> Shape:
    """The shape of what is left of an image."""
    if crop == WHOLE:
        return shape
    top, bottom, left, right = crop
    return shape[0], shape[1] - top - bottom, shape[2] - left - right


def _rows_of(given: AffineMap, crop: Sides) -> AffineMap:
    """What is left of an image."""
    numbers = np.arange(len(given.bias)).reshape(given.shape)
    shape = cropped(given.shape, crop)
    top, _, left, _ = crop
    rows = numbers[:, top : top + shape[1], left : left + shape[2]].ravel()
    return replace(given, matrix=given.matrix[rows], bias=given.bias[rows], shape=shape)
