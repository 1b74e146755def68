"""Convolutions and pools as correlations on a torus, zero-padded and circular."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...float64 import U
from ...networks.index_maps import wrapped
from ...networks.layer_spec import LayerSpec
from ...networks.layers import Array, Shape, Window, stored_errors
from .reading import NotShiftInvariant, Reading, zeroed
from .steps import Correlation, Pair

WINDOWED = ("conv2d", "avg_pool2d")


def padded_around(reading: Reading, layer: LayerSpec) -> None:
    """A value with its circular padding, for the convolution that follows."""
    (source,) = reading.sources[layer.name]
    index = np.asarray(reading.network.arrays[f"{layer.name}.index"])
    widths = circular_widths(index, reading.shapes[source])
    if widths is None or source in reading.around:
        raise NotShiftInvariant(f"{layer.name}: a take cannot stand on a torus")
    if source in reading.clean:
        reading.clean.add(layer.name)
    reading.live[layer.name] = reading.live[source]
    if source not in reading.kept([layer]):
        del reading.live[source]
    reading.waiting.remove(layer)
    reading.around[layer.name] = widths


def circular_widths(index: Any, shape: Shape) -> tuple[int, int, int, int] | None:
    """How far an index pads an image around: above, below, left and right; ``None`` if it is none.

    Example:
        >>> circular_widths(wrapped((1, 2, 3), (1, 0, 0, 2)), (1, 2, 3))
        (1, 0, 0, 2)
    """
    if len(shape) != 3 or index.ndim != 3 or index.shape[0] != shape[0]:
        return None
    widths: list[int] = []
    for axis, step in ((1, shape[2]), (2, 1)):
        before = int(-(index[0, 0, 0] // step) % shape[axis])
        widths += [before, index.shape[axis] - shape[axis] - before]
    if min(widths) < 0:
        return None
    top, bottom, left, right = widths
    around = wrapped(shape, widths)
    return (top, bottom, left, right) if np.array_equal(around, index) else None


class _Part(NamedTuple):
    """A value that a step makes of another, by a window that ``begins`` before its place."""

    name: str
    source: str
    kernel: Array
    begins: Pair = (0, 0)
    error: float = 0.0


def correlated(reading: Reading, layer: LayerSpec) -> None:
    """A convolution or pool, together with all that stride alike past the values that are held.

    Without strides these are those of the same value: a block and its shortcut.
    """
    stride = (layer.options["stride"][0], layer.options["stride"][1])
    group = [s for s in reading.waiting if _strided_alike(reading, s, stride)]
    if stride == (1, 1):
        own = reading.sources[layer.name]
        group = [s for s in group if reading.sources[s.name] == own]
    kept = reading.kept(group)
    if kept and stride != (1, 1):
        raise NotShiftInvariant(
            f"{layer.name}: strides past {kept[0]!r}, which is needed at the finer grid"
        )
    _correlate(reading, [_windowed(reading, spec) for spec in group], kept, stride)
    for spec in group:
        reading.waiting.remove(spec)


def _strided_alike(reading: Reading, spec: LayerSpec, stride: Pair) -> bool:
    windowed = spec.kind in WINDOWED and tuple(spec.options["stride"]) == stride
    return windowed and reading.sources[spec.name][0] in reading.live


def _windowed(reading: Reading, spec: LayerSpec) -> _Part:
    """A convolution or pool; what it says of the torus, and of what lies outside the image."""
    (source,) = reading.sources[spec.name]
    shape, options = reading.shapes[source], spec.options
    if spec.kind == "avg_pool2d":
        size = tuple(options["kernel_size"])
        window = Window.of({**options, "dilation": [1, 1]}, size, shape, spec.name)
        kernel, error = _average(spec, window, shape[0])
    else:
        stored = np.asarray(reading.network.arrays[f"{spec.name}.weight"], dtype=np.float64)
        window = Window.of(options, stored.shape[2:], shape, spec.name)
        kernel = _spread(stored, options["groups"], window.dilation)
        error = stored_errors(spec.name, reading.network.arrays)[0]
    around = reading.around.get(source, (0, 0, 0, 0))
    _ask_for_room(reading, spec.name, window, shape[1:], around)
    inside = not any(window.padding)
    if not inside and source not in reading.clean:
        zeroed(reading, source)
    # Windows that stand side by side and end with the image see zeros alone beyond it.
    fits = all(n % s == 0 for n, s in zip(shape[1:], window.stride, strict=True))
    tiles = kernel.shape[2:] == (1, 1) or (kernel.shape[2:] == window.stride and fits)
    if inside and tiles and source in reading.clean and not any(around):
        reading.clean.add(spec.name)
    begins = (window.padding[0] + around[0], window.padding[2] + around[2])
    return _Part(spec.name, source, kernel, begins, error)


def _average(spec: LayerSpec, window: Window, channels: int) -> tuple[Array, float]:
    """The kernel of an average pool, and its error."""
    divisor = spec.options["divisor_override"]
    if any(window.padding) and not (spec.options["count_include_pad"] or divisor):
        raise NotShiftInvariant(f"{spec.name}: counts fewer pixels at the edge")
    share = 1.0 / (divisor or math.prod(window.kernel))
    kernel = np.zeros((channels, channels, *window.kernel))
    kernel[range(channels), range(channels)] = share
    return kernel, 2.0 * U * share * math.sqrt(channels * math.prod(window.kernel))


def least_side(window: Window, axis: int, side: int) -> int:
    """Places along an axis of a torus on which a window finds either the image or zeros."""
    out, stride, first = window.out[axis], window.stride[axis], window.padding[2 * axis]
    last = (out - 1) * stride + window.dilation[axis] * (window.kernel[axis] - 1) - first
    return max(out * stride, side + max(first, last - side + 1))


def _ask_for_room(
    reading: Reading,
    name: str,
    window: Window,
    sides: Shape,
    around: Sequence[int],
) -> None:
    """No window may reach around the torus but where it is the image, nor two outputs meet on it.

    ``sides`` are those of what the window slides over, circular padding included.
    """
    wraps = [any(around[:2]), any(around[2:])]
    images, least = [], []
    for axis, wrap in enumerate(wraps):
        zeros = any(window.padding[2 * axis : 2 * axis + 2])
        side = sides[axis] - sum(around[2 * axis : 2 * axis + 2])
        if wrap and zeros:
            raise NotShiftInvariant(f"{name}: pads with zeros what is padded around already")
        images.append(side)
        own = side if wrap else least_side(window, axis, side)
        least.append(max(own, window.out[axis] * window.stride[axis]))
    reading.needs(name, images, wraps)
    reading.needs(name, least, (False, False))


def _spread(stored: Array, groups: int, dilation: Pair) -> Array:
    """All channels in, zeros between the taps."""
    out, inner, rows, columns = stored.shape
    size = ((rows - 1) * dilation[0] + 1, (columns - 1) * dilation[1] + 1)
    kernel = np.zeros((out, inner * groups, *size))
    for g in range(groups):
        own = slice(g * out // groups, (g + 1) * out // groups)
        seen = slice(g * inner, (g + 1) * inner)
        kernel[own, seen, :: dilation[0], :: dilation[1]] = stored[own]
    return kernel


def _correlate(reading: Reading, parts: Sequence[_Part], kept: Sequence[str], stride: Pair) -> None:
    """One step for several kernels and the values that pass."""
    passing = [_Part(n, n, np.eye(len(reading.live[n]))[:, :, None, None]) for n in kept]
    every = [*passing, *parts]
    start = tuple(max(p.begins[axis] for p in every) for axis in (0, 1))
    reach = [max(start[a] - p.begins[a] + p.kernel.shape[2 + a] for p in every) for a in (0, 1)]
    kernel, live, row = np.zeros((sum(len(p.kernel) for p in every), reading.width, *reach)), {}, 0
    for part in every:
        y, x = start[0] - part.begins[0], start[1] - part.begins[1]
        live[part.name] = [*range(row, row + len(part.kernel))]
        rows, columns = part.kernel.shape[2:]
        for r, own in zip(live[part.name], part.kernel, strict=True):
            kernel[r, reading.live[part.source], y : y + rows, x : x + columns] = own
        row += len(part.kernel)
    error = math.sqrt(sum(p.error**2 for p in every)) * (1.0 + 1e-12)
    reading.steps.append(Correlation(kernel, (start[0], start[1]), stride, error))
    reading.live = live
    reading.scale = (reading.scale[0] * stride[0], reading.scale[1] * stride[1])
    reading.fits(parts[-1].name)
