"""What a neuron behind convolutions sees: a window of every value before it, down to the input.

Neurons at places whose windows have equal sizes and meet the image's rim in the same way see the
same small network, so all such places of all samples are samples of that one.  Nothing is lost: a
row over such a neuron is zero outside its window.  Where several layers hear a value, its window
holds what each of them reads, and they leave out the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from .activations import Curve, Response
from .curves import Lines, Range
from .forward_bounds import LayerBounds
from .input_region import Region, unit_ball
from .layers import Layer
from .linear_operator import Shape, Sides, Stored
from .operators import Dense
from .wired_operator import WHOLE, Step, Wired, cropped, steps_of, wired

# Entries of a matrix for each product of the kernel, up to which the matrix is quicker.
_FORMED = 8
# First and last row, or column, of a window.
Span = tuple[int, int]
# Of an edge, how much its reader pads before and after, less than 0 where it leaves out.
Rim = tuple[int, int]


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


@dataclass(frozen=True)
class _Sight:
    """What one layer reads along one axis.

    Attributes:
        spans: of each of its values, the state's segments first, ``None`` where it is not read.
        rims: of each step, and at last of each output, for every source.
    """

    spans: tuple[Span | None, ...]
    rims: tuple[tuple[Rim, ...] | None, ...]

    @property
    def form(self) -> tuple[object, ...]:
        """Equal where places see the same network."""
        return tuple(s and s[1] - s[0] for s in self.spans), self.rims


# Of one place along one axis, what each layer reads.
Sights = tuple[_Sight, ...]
# Places along one axis that see the same, each with what it reads.
Places = list[tuple[int, Sights]]


def windows_of(layers: Sequence[Layer], region: Region) -> tuple[list[Windows], Tensor]:
    """The windows of neurons of the last layer, and which of these have none, ``(n,)``."""
    last = layers[-1].operator
    left, found, start = torch.ones(last.size_out, dtype=torch.bool), list[Windows](), 0
    scale = region.ball.scale
    pairs = [(one.operator, two.operator) for one, two in pairwise(layers)]
    fits = all(one.shapes_out == two.shapes_in for one, two in pairs)
    fits &= scale is None or bool((scale == scale[0]).all())
    for number, shape in enumerate(last.shapes_out if fits else ()):
        stop = start + math.prod(shape)
        if not bool(last.copies[start:stop].all()) and len(shape) == 3:
            groups = _of_output(layers, number, shape, start)
            found += groups or []
            left[start:stop] = groups is None
        start = stop
    return found, left


def _of_output(
    layers: Sequence[Layer], number: int, shape: Shape, start: int
) -> list[Windows] | None:
    """Of one image among the outputs; ``None`` where some see more than a window."""
    forms = []
    for axis in (0, 1):
        found: dict[tuple[object, ...], Places] = {}
        for place in range(shape[1 + axis]):
            if (sights := _sights(layers, number, axis, place)) is None:
                return None
            found.setdefault(tuple(s.form for s in sights), []).append((place, sights))
        forms.append(list(found.values()))
    whole = start, shape
    return [_windows(layers, number, whole, up, across) for up in forms[0] for across in forms[1]]


def _sights(layers: Sequence[Layer], number: int, axis: int, place: int) -> Sights | None:
    """From the last layer on; ``None`` where a step does not slide, or a window is all padding."""
    found: list[_Sight] = []
    wanted: dict[int, Span] = {number: (place, place)}
    for layer in reversed(layers):
        sight = _sight(layer, wanted, axis)
        if sight is None:
            return None
        found.append(sight)
        segments = sight.spans[: len(layer.operator.shapes_in)]
        wanted = {k: span for k, span in enumerate(segments) if span is not None}
    return tuple(found[::-1])


def _sight(layer: Layer, wanted: dict[int, Span], axis: int) -> _Sight | None:
    """What a layer reads for spans of some of its outputs."""
    steps, first = steps_of(layer.operator), len(layer.operator.shapes_in)
    outputs = _outputs(layer)
    shapes = [*layer.operator.shapes_in, *(step.shape for step in steps)]
    spans: list[Span | None] = [None] * len(shapes)

    def read(k: int, span: Span) -> bool:
        if len(shapes[k]) != 3:
            return False
        inside = max(span[0], 0), min(span[1], shapes[k][1 + axis] - 1)
        have = spans[k]
        spans[k] = inside if have is None else (min(have[0], inside[0]), max(have[1], inside[1]))
        return inside[0] <= inside[1]

    if not all(read(outputs[p], span) for p, span in wanted.items()):
        return None
    reads: list[Span | None] = [None] * len(steps)
    for number in range(len(steps) - 1, -1, -1):
        if (own := spans[first + number]) is not None:
            found = _read(steps[number], own, axis)
            if found is None or not all(read(k, found) for k in steps[number].sources):
                return None
            reads[number] = found
    rims: list[tuple[Rim, ...] | None] = []
    for step, span in zip(steps, reads, strict=True):
        rims.append(span and tuple(_rim(spans[k], span) for k in step.sources))
    for p, k in enumerate(outputs):
        rims.append((_rim(spans[k], wanted[p]),) if p in wanted else None)
    return _Sight(tuple(spans), tuple(rims))


def _read(step: Step, own: Span, axis: int) -> Span | None:
    """What a step reads of its sources for a span of its own."""
    if step.operator is None:
        return own
    along = step.operator.along(axis)
    if along is None:
        return None
    low, high = (end * along.stride - along.before for end in own)
    return low, high + along.reach


def _rim(held: Span | None, read: Span) -> Rim:
    assert held is not None
    return held[0] - read[0], read[1] - held[1]


def _outputs(layer: Layer) -> tuple[int, ...]:
    return getattr(layer.operator, "outputs", (1,))


def _windows(
    layers: Sequence[Layer], number: int, whole: tuple[int, Shape], rows: Places, columns: Places
) -> Windows:
    """Of all places with these forms."""
    start, shape = whole
    places = ([place for place, _ in part] for part in (rows, columns))
    inputs = [_read_entries(layers, k, rows, columns) for k in range(len(layers))]
    inputs.append(start + _entries(shape, (shape[0], 1, 1), *places))
    sights = zip(rows[0][1], columns[0][1], strict=True)
    small = [_small(*seen) for seen in zip(layers, sights, (i[0] for i in inputs[1:]), strict=True)]
    return Windows(small, inputs[:-1], inputs[-1])


def _read_entries(layers: Sequence[Layer], k: int, rows: Places, columns: Places) -> Tensor:
    """What all places read of a layer's inputs, ``(places, n)``."""
    start, found = 0, []
    for segment, shape in enumerate(layers[k].operator.shapes_in):
        spans = [[at[k].spans[segment] for _, at in part] for part in (rows, columns)]
        some = [[span for span in part if span is not None] for part in spans]
        if some[0]:
            height, width = (part[0][1] - part[0][0] + 1 for part in some)
            corners = ([first for first, _ in part] for part in some)
            found.append(start + _entries(shape, (shape[0], height, width), *corners))
        start += math.prod(shape)
    return torch.cat(found, dim=1)


def _small(layer: Layer, sights: tuple[_Sight, _Sight], outputs: Tensor) -> Layer:
    """A layer on windows of its segments, which gives these of its outputs."""
    operator, steps = layer.operator, steps_of(layer.operator)
    shapes = [*operator.shapes_in, *(step.shape for step in steps)]
    sizes = {
        k: (shape[0], *(span[1] - span[0] + 1 for span in spans))
        for k, (shape, *spans) in enumerate(zip(shapes, *(s.spans for s in sights), strict=True))
        if spans[0] is not None
    }
    number = {k: place for place, k in enumerate(sizes)}
    segments = [size for k, size in sizes.items() if k < len(operator.shapes_in)]
    made, given = list[Step](), list[int]()
    rims = [
        None if up is None else [(*a, *b) for a, b in zip(up, across, strict=True)]
        for up, across in zip(*(s.rims for s in sights), strict=True)
    ]
    for k, (step, sides) in enumerate(zip(steps, rims, strict=False), len(operator.shapes_in)):
        if sides is not None:
            made.append(_small_step(step, sides, sizes, k, number))
    for k, sides in zip(_outputs(layer), rims[len(steps) :], strict=True):
        if sides is not None:
            value, crop = number[k], _left_out(sides[0])
            if crop != WHOLE:
                made.append(Step((value,), cropped(sizes[k], crop), crops=(crop,)))
                value = len(segments) + len(made) - 1
            given.append(value)
    bias = None if layer.bias is None else layer.bias[outputs]
    return _formed(replace(layer, operator=wired(segments, made, given, bias)), bias)


def _formed(layer: Layer, bias: Tensor | None) -> Layer:
    """A layer on small windows as a matrix: in float64 several times as fast as its kernel."""
    operator = layer.operator
    if operator.size_in * operator.size_out > _FORMED * operator.size_out * operator.terms:
        return layer
    stored = Stored(operator.dense(), bias)
    error = layer.error
    if isinstance(operator, Wired):
        error = max(error, operator.map.error)
    made = Dense(stored, {}, (operator.size_in,), (operator.size_out,))
    return replace(layer, operator=made, error=error)


def _small_step(
    step: Step,
    sides: Sequence[Sides],
    sizes: Mapping[int, Shape],
    k: int,
    number: Mapping[int, int],
) -> Step:
    """A step on windows; what stands still leaves out what it does not read, others pad less."""
    sources, size = tuple(number[source] for source in step.sources), sizes[k]
    operator = step.operator
    if operator is None or operator.kind == "elementwise":
        crops = tuple(map(_left_out, sides)) if any(s != WHOLE for s in sides) else ()
        operator = operator and operator.windowed(size, WHOLE, size)
        return replace(step, sources=sources, shape=size, operator=operator, crops=crops)
    operator = operator.windowed(sizes[step.sources[0]], sides[0], size)
    return replace(step, sources=sources, shape=size, operator=operator)


def _left_out(sides: Sides) -> Sides:
    top, bottom, left, right = sides
    return -top, -bottom, -left, -right


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
