"""What a neuron behind convolutions sees: a window of every layer before it, down to the input.

Neurons at places whose windows have equal sizes and meet the image's rim in the same way see the
same small network, so all such places of all samples are samples of that one.  Nothing is lost: a
row over such a neuron is zero outside its window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from .activations import Curve, Response
from .convolutions import Convolution
from .curves import Lines, Range
from .forward_bounds import LayerBounds
from .input_region import Region, unit_ball
from .layers import Layer
from .linear_operator import Shape

# Of one direction, for each layer from the first: start and size of the window that it reads, and
# how much padding it meets on either side.
Span = tuple[int, int, int, int]
# Places along one direction whose windows have one form, each with its spans.
Places = list[tuple[int, list[Span]]]


@dataclass(frozen=True, eq=False)
class Windows:
    """Places with windows of the same form.

    Attributes:
        layers: the small network.
        inputs: for every place and layer the entries that it reads, ``(places, n)`` each.
        outputs: the neurons of the last layer, ``(places, channels)``.
    """

    layers: list[Layer]
    inputs: list[Tensor]
    outputs: Tensor

    def region(self, region: Region) -> Region:
        """The inputs seen, place by place for each sample."""
        ball, places = region.ball, len(self.outputs)
        scale = None if ball.scale is None else ball.scale[self.inputs[0][0]]
        points = region.points[:, self.inputs[0]].flatten(0, 1)
        radius = region.radius.repeat_interleave(places)
        return Region(unit_ball(self.layers[0], ball.norm, scale), points, radius, region.box)

    def known(self, known: Sequence[LayerBounds]) -> list[LayerBounds]:
        """What is known of the hidden layers seen."""
        return [_seen(layer, index) for layer, index in zip(known, self.inputs[1:], strict=True)]


def windows_of(layers: Sequence[Layer], region: Region) -> list[Windows] | None:
    """The windows of all neurons of the last layer; ``None`` where some are no convolution's."""
    operators = [one for layer in layers if isinstance(one := layer.operator, Convolution)]
    scale = region.ball.scale
    if len(operators) < len(layers) or (scale is not None and bool((scale != scale[0]).any())):
        return None
    if any(one.shape_out != two.shape_in for one, two in pairwise(operators)):
        return None
    rows, columns = (_by_form(operators, axis) for axis in (0, 1))
    if any(size <= 0 for part in (*rows, *columns) for _, size, _, _ in part[0][1]):
        return None  # a window that is all padding
    return [_windows(layers, operators, up, across) for up in rows for across in columns]


def _by_form(operators: Sequence[Convolution], axis: int) -> list[Places]:
    """All places along an axis, those of one form together."""
    found: dict[tuple[tuple[int, ...], ...], Places] = {}
    for place in range(operators[-1].shape_out[1 + axis]):
        spans = _spans(operators, axis, place)
        found.setdefault(tuple(span[1:] for span in spans), []).append((place, spans))
    return list(found.values())


def _spans(operators: Sequence[Convolution], axis: int, place: int) -> list[Span]:
    first, last, spans = place, place, []
    for operator in reversed(operators):
        stride, dilation, _ = operator.window
        low = first * stride[axis] - operator.sides[2 * axis]
        high = last * stride[axis] - operator.sides[2 * axis]
        high += dilation[axis] * (operator.layer.weight.shape[2 + axis] - 1)
        before, after = max(0, -low), max(0, high + 1 - operator.shape_in[1 + axis])
        first, last = low + before, high - after
        spans.append((first, last - first + 1, before, after))
    return spans[::-1]


def _windows(
    layers: Sequence[Layer], operators: Sequence[Convolution], rows: Places, columns: Places
) -> Windows:
    small, inputs = [], []
    shape_out: tuple[int, ...] = 1, 1
    for k in range(len(layers) - 1, -1, -1):
        one = operators[k]
        (_, height, *above), (_, width, *left) = rows[0][1][k], columns[0][1][k]
        shape = one.shape_in[0], height, width
        options = {**one.options, "padding": (*above, *left)}
        made = Convolution(one.layer, options, shape, (one.shape_out[0], *shape_out))
        small.append(replace(layers[k], operator=made))
        starts = ([spans[k][0] for _, spans in part] for part in (rows, columns))
        inputs.append(_entries(one.shape_in, shape, *starts))
        shape_out = height, width
    places = ([place for place, _ in part] for part in (rows, columns))
    whole = operators[-1].shape_out
    return Windows(small[::-1], inputs[::-1], _entries(whole, (whole[0], 1, 1), *places))


def _entries(whole: Shape, part: Shape, top: list[int], left: list[int]) -> Tensor:
    """Positions of the entries of windows in an image, ``(places, entries)``."""
    numbers = torch.arange(math.prod(whole)).view(whole)
    found = numbers.unfold(1, part[1], 1).unfold(2, part[2], 1)[:, top][:, :, left]
    return found.permute(1, 2, 0, 3, 4).reshape(len(top) * len(left), -1)


def _seen(layer: LayerBounds, index: Tensor) -> LayerBounds:
    def part(ends: Range) -> Range:
        return Range(*(end[:, index].flatten(0, 1) for end in ends))

    curve, response = layer.response.curve, layer.response
    assert curve is not None
    lines = Lines(*(end[:, index].flatten(0, 1) for end in curve.lines))
    seen = Curve(part(curve.slopes), part(curve.anchored), lines)
    answer = Response(part(response.outputs), None, None, seen)
    return LayerBounds(part(layer.center), part(layer.interval), answer, layer.acts)
