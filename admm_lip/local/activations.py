"""What acts on the output of an affine map: values, and what a ball makes of them.

Two kinds of activation, of one interface:

* :class:`Monotone`: the modules of a network in training or of its stored twin, sorts included,
  non-decreasing and moving by at most what their input moves.  The ends of the output's box are
  the images of the ends of the input's; thresholds may be in training;
* :class:`Curved`: any scalar functions of ``curves.py``, one a neuron, with the range of their
  slopes and with lines below and above.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..float64 import TINY, U
from ..networks.activations import slope_range
from ..networks.network import LayerSpec, SideBySide
from ..rounding import SLACK
from .curve_pieces import Bend, bend_on, joined
from .curves import (
    Lines,
    Range,
    WithArrays,
    anchored_slopes,
    lines_on,
    parts_of,
    slopes_on,
    value_range,
    value_with_error,
)
from .linear_operator import Shape

# Weight on leaving by the upper threshold of a clipped ReLU rather than by 0, in the sparsity loss.
_UPPER = 0.1


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        constant: from the layer and the ends of its input to which of its outputs cannot move
            while the input stays between them; ``None`` where none can be told.
        per_neuron: whether output i depends on input i alone.
        apply: from the layer and its input to its output.
        sparsity: from the layer and the ends of its input to how far its units are from being
            constant, on average (Y. Huang et al., NeurIPS 2021); ``None`` where none ever is.
        scalar: from the layer to the scalar activation that it is, none where it is a change of
            shape; ``None`` where outputs mix inputs.
    """

    constant: Callable[[Any, Range], Tensor] | None = None
    per_neuron: bool = True
    apply: Callable[[Any, Tensor], Tensor] = lambda layer, z: layer(z)
    sparsity: Callable[[Any, Range], Tensor] | None = None
    scalar: Callable[[Any], Sequence[LayerSpec]] | None = None


def _clipped_relu_constant(layer: Any, box: Range) -> Tensor:
    beyond: Tensor = box.low >= layer.threshold.view(box.low.shape[1:])
    return beyond | (box.high <= 0.0)


def _clipped_relu_sparsity(layer: Any, box: Range) -> Tensor:
    above: Tensor = (layer.threshold.view(box.low.shape[1:]) - box.low).relu().mean()
    return above * _UPPER + box.high.relu().mean()


def _pair_ends(layer: Any, box: Range) -> tuple[Tensor, Tensor]:
    floor, cap = (end.view(box.low.shape[1:]) for end in layer.ends())
    return floor, cap


def _pair_clip_constant(layer: Any, box: Range) -> Tensor:
    floor, cap = _pair_ends(layer, box)
    return (box.low >= cap) | (box.high <= floor)


def _pair_clip_sparsity(layer: Any, box: Range) -> Tensor:
    floor, cap = _pair_ends(layer, box)
    # Where there is no threshold the difference is infinite, and no unit of that side is asked for.
    room = torch.where(torch.isfinite(cap), cap - box.low, box.high - floor)
    return 2.0 * room.relu().mean()


MONOTONE: Mapping[str, Row] = {
    # Not the layer itself, which may work in place.
    "relu": Row(
        lambda _, box: box.high <= 0.0,
        apply=lambda _, z: z.relu(),
        sparsity=lambda _, box: box.high.relu().mean(),
        scalar=lambda _: [LayerSpec("relu", "", {})],
    ),
    "clipped_relu": Row(
        _clipped_relu_constant,
        sparsity=_clipped_relu_sparsity,
        scalar=lambda layer: [
            WithArrays("clipped_relu", "", {"threshold": layer.threshold.flatten()})
        ],
    ),
    "max_min": Row(per_neuron=False),
    "group_sort2": Row(per_neuron=False),
    "flatten": Row(apply=lambda _, z: z.flatten(1), scalar=lambda _: ()),
    "pair_clip": Row(_pair_clip_constant, sparsity=_pair_clip_sparsity),
}


@dataclass(frozen=True, eq=False)
class Curve:
    """Slopes and lines of a hidden layer on every sample's ball, tensors ``(batch, n)``.

    Attributes:
        slopes: the activation's slopes between any two points of the interval.
        anchored: its slopes between the sample and a point of the interval.
        lines: below and above the activation on the interval.
    """

    slopes: Range
    anchored: Range
    lines: Lines


@dataclass(frozen=True, eq=False)
class Response:
    """How activations answer an interval of their inputs, tensors ``(batch, n)``.

    Attributes:
        outputs: range of the outputs.
        rows: upper bounds of the slopes' sizes, 0 for units that are constant; ``None`` is 1.
            Behind a sort, whose outputs mix two inputs, no row of the affine map is constant.
        columns: 1 for outputs that can move, 0 for those that are constant; ``None`` is 1.
        curve: slopes and lines, where they are known.
    """

    outputs: Range
    rows: Tensor | None
    columns: Tensor | None
    curve: Curve | None = None


@dataclass(frozen=True, eq=False)
class Monotone:
    """Modules of the table, applied one after the other.

    Attributes:
        parts: each module with its kind.
        shape: of one sample's input.
    """

    parts: tuple[tuple[str, Any], ...]
    shape: Shape
    steepest = 1.0

    @property
    def acts(self) -> bool:
        """Whether any of them is more than a change of shape."""
        return any(kind != "flatten" for kind, _ in self.parts)

    def apply(self, z: Tensor) -> Tensor:
        """The activations of ``(batch, n)``."""
        value = z.reshape(len(z), *self.shape)
        for kind, layer in self.parts:
            value = MONOTONE[kind].apply(layer, value)
        return value.flatten(1)

    def evaluate(self, z: Tensor, error: Tensor, response: Response) -> tuple[Tensor, Tensor]:
        """The value at z, which nothing rounds, and what an error of z makes of it."""
        value = self.apply(z)
        off = torch.maximum(self.apply(z + error) - value, value - self.apply(z - error))
        return value, off * (1.0 + 4.0 * U) + TINY

    def on(self, z: Tensor, center: Range, interval: Range) -> Response:
        """The answer to an interval."""
        rows: Tensor | None = None
        columns: Tensor | None = None
        alone = True
        box = Range(*(end.reshape(len(end), *self.shape) for end in interval))
        for kind, layer in self.parts:
            row = MONOTONE[kind]
            if not row.per_neuron:
                alone, columns = False, None  # a pair of constants is constant, but rarely met
            if row.constant is not None:
                moving = ~row.constant(layer, box)
                columns = moving if columns is None else columns.reshape(moving.shape) & moving
                rows = columns if alone else rows
            box = Range(row.apply(layer, box.low), row.apply(layer, box.high))
        outputs = Range(*(end.flatten(1) for end in box))
        return Response(outputs, _numbers(rows, box.low), _numbers(columns, box.low))

    def sparsity(self, interval: Range) -> Tensor:
        """Mean distance of the units from being constant, 0 where none ever is; differentiable."""
        box = Range(*(end.reshape(len(end), *self.shape) for end in interval))
        total = box.low.new_zeros(())
        for kind, layer in self.parts:
            row = MONOTONE[kind]
            if row.sparsity is not None:
                total = total + row.sparsity(layer, box)
            box = Range(row.apply(layer, box.low), row.apply(layer, box.high))
        return total


@dataclass(frozen=True, eq=False)
class Curved:
    """Scalar functions, one a neuron, rounded outwards in float64."""

    spec: LayerSpec | SideBySide
    acts = True

    @property
    def steepest(self) -> float:
        """The greatest size of a slope anywhere."""
        runs = parts_of(self.spec, 2)  # of pairs, both halves
        ranges = [slope_range(one.kind, one.options) for _, one in runs]
        return max(abs(end) for ends in ranges for end in ends)

    def apply(self, z: Tensor) -> Tensor:
        """The activations of ``(batch, n)``."""
        return self._values(z)[0]

    def evaluate(self, z: Tensor, error: Tensor, response: Response) -> tuple[Tensor, Tensor]:
        """The value at z, and a bound on its error."""
        value, evaluated = self._values(z)
        assert response.rows is not None
        return value, SLACK * (response.rows * error + evaluated) + TINY

    def _values(self, z: Tensor) -> tuple[Tensor, Tensor]:
        parts = [value_with_error(one, z[:, run]) for run, one in parts_of(self.spec, z.shape[1])]
        return torch.cat([v for v, _ in parts], dim=1), torch.cat([e for _, e in parts], dim=1)

    def sparsity(self, interval: Range) -> Tensor:
        """Nothing is asked of smooth units."""
        return interval.low.new_zeros(())

    def on(self, z: Tensor, center: Range, interval: Range) -> Response:
        """The answer to an interval, in which ``center`` encloses the inputs at the samples."""
        parts: list[Sequence[Any]] = []
        for run, one in parts_of(self.spec, z.shape[1]):
            at, on = (Range(r.low[:, run], r.high[:, run]) for r in (center, interval))
            slopes = slopes_on(one, on)
            lines = lines_on(one, z[:, run], on, slopes)
            anchored = anchored_slopes(one, at, on)
            parts.append((slopes, anchored, lines, value_range(one, on, slopes)))
        slopes, anchored, lines, outputs = (
            type(same[0])(*(torch.cat(ends, dim=1) for ends in zip(*same, strict=True)))
            for same in zip(*parts, strict=True)
        )
        steepest = largest(slopes)
        moving = (slopes.high - slopes.low + slopes.high.abs() > 0.0).to(steepest)
        return Response(outputs, steepest, moving, Curve(slopes, anchored, lines))

    def bend(self, at: Tensor, interval: Range) -> Bend:
        """How they bend on an interval around points."""
        parts = []
        for run, one in parts_of(self.spec, at.shape[1]):
            on = Range(interval.low[:, run], interval.high[:, run])
            parts.append(bend_on(one, at[:, run], on))
        return joined(parts)


Activation = Monotone | Curved


def largest(interval: Range) -> Tensor:
    """The greatest absolute value of an interval."""
    return torch.maximum(interval.low.abs(), interval.high.abs())


def _numbers(mask: Tensor | None, like: Tensor) -> Tensor | None:
    return None if mask is None else mask.flatten(1).to(like.dtype)
