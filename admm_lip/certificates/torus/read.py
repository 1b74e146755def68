"""A network as steps on a torus, up to a switch layer from which multipliers are per neuron."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from ...errors import CertificateError
from ...networks.activations import ACTIVATIONS
from ...networks.joins import JOINS
from ...networks.layer_spec import INPUT, LayerSpec, neuron_slopes, scalar_parts
from ...networks.layers import Array, Shape, Window, stored_errors
from ...networks.network import Network
from ...networks.sorting import SORTS
from .steps import Correlation, Pair, Pointwise, Step, TorusChain

_U = 2.0**-53
# Entries of a matrix behind the last activation beyond which it stays on the torus: there it is
# cheap, but every place of the output counts as an infinite image has it.
_LARGE = 2**22


class NotShiftInvariant(CertificateError):
    """A layer that no torus part can hold, by name, with the reason."""


@dataclass(eq=False)
class Reading:
    """What has been read so far.

    Attributes:
        waiting: the layers that are still to be read.
        sources: of every layer, the values that it takes.
        live: which channels of the state every value that is still needed takes.
        clean: values that are 0 outside their image.
        scale: how many rows and columns of the input are one of the state.
        least: rows and columns that the input's torus must have.
        steps: the steps so far.
    """

    network: Network
    shapes: Mapping[str, Shape]
    sources: Mapping[str, tuple[str, ...]]
    waiting: list[LayerSpec]
    live: dict[str, list[int]]
    clean: set[str] = field(default_factory=lambda: {INPUT})
    scale: Pair = (1, 1)
    least: list[float] = field(default_factory=lambda: [1.0, 1.0])
    steps: list[Step] = field(default_factory=list)

    def copied(self) -> Reading:
        """The same, to be read on by itself."""
        return replace(
            self,
            waiting=[*self.waiting],
            clean={*self.clean},
            least=[*self.least],
            steps=[*self.steps],
        )

    def needs(self, rows: int, columns: int) -> None:
        """The state's torus must have so many rows and columns."""
        for axis, side in enumerate((rows, columns)):
            self.least[axis] = max(self.least[axis], side * self.scale[axis])

    def kept(self, but: Sequence[LayerSpec]) -> list[str]:
        """The values that other layers, still to be read, take."""
        skipped = {spec.name for spec in but}
        wanted = {n for s in self.waiting if s.name not in skipped for n in self.sources[s.name]}
        return [name for name in self.live if name in wanted]


def stops(network: Network) -> Iterator[Reading]:
    """The network read up to every activation behind which a single value leads on.

    Raises:
        NotShiftInvariant: by name, at a layer that a torus cannot hold.
    """
    shape = network.input_shape or ()
    if len(shape) != 3:
        raise NotShiftInvariant(
            f"structure: expected images (channels, rows, columns), got {shape}"
        )
    live = {INPUT: [*range(shape[0])]}
    reading = Reading(network, network.shapes(), network.sources(), [*network.layers], live)
    reading.needs(*shape[1:])
    done = stopped = 0
    while reading.waiting:
        layer = reading.waiting[0]
        _read_next(reading, layer)
        done += _acts(layer)
        if done > stopped and len(reading.live) == 1:
            stopped = done
            yield reading


def torus_chain(network: Network, switch: int) -> TorusChain:
    """The network with its first ``switch`` activations on a torus, the rest as its head.

    Args:
        network: of images, ``(channels, rows, columns)``.
        switch: how many activation layers get multipliers per channel, at least 1.

    Raises:
        NotShiftInvariant: by name, for a layer before the switch that a torus cannot hold.
    """
    for reading in stops(network):
        if sum(isinstance(step, Pointwise) for step in reading.steps) == switch:
            return finished(reading)
    raise NotShiftInvariant(f"structure: no single value leads on behind {switch} activations")


def finished(reading: Reading) -> TorusChain:
    """What was read as the part on the torus; of what is left the linear end, where it is large."""
    reading = reading.copied()
    if reading.waiting and not any(map(_acts, reading.waiting)) and _ends_large(reading):
        reading = _to_the_end(reading)
    ((name, rows),) = reading.live.items()
    image = reading.shapes[name]
    if rows != [*range(image[0])]:
        _mix(reading, {name: _placed(reading, name, np.eye(len(rows)))}, [])
    stride, least = reading.scale, reading.least
    grid = tuple(s * math.ceil(n / s) for s, n in zip(stride, least, strict=True))
    channels = reading.shapes[INPUT][0]
    head = _head(reading, name) if reading.waiting else None
    return TorusChain(tuple(reading.steps), channels, (grid[0], grid[1]), image, head)


def _head(reading: Reading, name: str) -> Network:
    """What is left, a network of the value named."""
    own = {spec.name for spec in reading.waiting}
    arrays = {k: v for k, v in reading.network.arrays.items() if k.rpartition(".")[0] in own}
    layers = tuple(
        replace(s, inputs=tuple(INPUT if n == name else n for n in reading.sources[s.name]))
        for s in reading.waiting
    )
    return Network(layers, arrays, reading.shapes[name])


def _acts(layer: LayerSpec) -> bool:
    return layer.kind in ACTIVATIONS or layer.kind in SORTS


def _ends_large(reading: Reading) -> bool:
    """Whether what is left, one matrix, would be a large one."""
    (name,) = reading.live
    sizes = [math.prod(reading.shapes[n]) for n in (name, reading.network.output)]
    return sizes[0] * sizes[1] > _LARGE


def _to_the_end(reading: Reading) -> Reading:
    """With the last linear layers on the torus as well, where they can stand there."""
    further = reading.copied()
    try:
        while further.waiting:
            _read_next(further, further.waiting[0])
    except NotShiftInvariant:
        return reading
    return further


def _read_next(reading: Reading, layer: LayerSpec) -> None:
    read = _READERS.get(layer.kind, _activation if layer.kind in ACTIVATIONS else None)
    if read is None:
        raise NotShiftInvariant(f"{layer.name}: a {layer.kind} cannot stand on a torus")
    read(reading, layer)


class _Part(NamedTuple):
    """A value that a step makes of another, by a window that ``begins`` before its place."""

    name: str
    source: str
    kernel: Array
    begins: Pair = (0, 0)
    error: float = 0.0


def _conv(reading: Reading, layer: LayerSpec) -> None:
    """A convolution or pool, together with all that stride alike past the values that are held."""
    stride = (layer.options["stride"][0], layer.options["stride"][1])
    group = [layer]
    if stride != (1, 1):
        group = [s for s in reading.waiting if _strided_alike(reading, s, stride)]
    kept = reading.kept(group)
    if kept and stride != (1, 1):
        raise NotShiftInvariant(
            f"{layer.name}: strides past {kept[0]!r}, which is needed at the finer grid"
        )
    _correlate(reading, [_windowed(reading, spec) for spec in group], kept, stride)
    for spec in group:
        reading.waiting.remove(spec)


def _strided_alike(reading: Reading, spec: LayerSpec, stride: Pair) -> bool:
    windowed = spec.kind in ("conv2d", "avg_pool2d") and tuple(spec.options["stride"]) == stride
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
    _ask_for_room(reading, window, kernel.shape[2:], shape[1:])
    inside = not any(window.padding)
    if not inside and source not in reading.clean:
        raise NotShiftInvariant(
            f"{spec.name}: reads around the edge of what no activation has come before"
        )
    # Windows that stand side by side and end with the image see zeros alone beyond it.
    fits = all(n % s == 0 for n, s in zip(shape[1:], window.stride, strict=True))
    tiles = kernel.shape[2:] == (1, 1) or (kernel.shape[2:] == window.stride and fits)
    if inside and tiles and source in reading.clean:
        reading.clean.add(spec.name)
    return _Part(spec.name, source, kernel, (window.padding[0], window.padding[2]), error)


def _average(spec: LayerSpec, window: Window, channels: int) -> tuple[Array, float]:
    """The kernel of an average pool, and its error."""
    divisor = spec.options["divisor_override"]
    if any(window.padding) and not (spec.options["count_include_pad"] or divisor):
        raise NotShiftInvariant(f"{spec.name}: counts fewer pixels at the edge")
    share = 1.0 / (divisor or math.prod(window.kernel))
    kernel = np.zeros((channels, channels, *window.kernel))
    kernel[range(channels), range(channels)] = share
    return kernel, 2.0 * _U * share * math.sqrt(channels * math.prod(window.kernel))


def _ask_for_room(reading: Reading, window: Window, kernel: Shape, sides: Shape) -> None:
    """No window of the output may reach around the torus, nor any two outputs meet on it."""
    least = []
    for axis, (side, first) in enumerate(zip(sides, window.padding[::2], strict=True)):
        last = (window.out[axis] - 1) * window.stride[axis] + kernel[axis] - 1 - first
        reach = side + max(first, last - side + 1)
        least.append(max(reach, window.out[axis] * window.stride[axis]))
    reading.needs(least[0], least[1])


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
    width = sum(len(rows) for rows in reading.live.values())
    passing = [_Part(n, n, np.eye(len(reading.live[n]))[:, :, None, None]) for n in kept]
    every = [*passing, *parts]
    start = tuple(max(p.begins[axis] for p in every) for axis in (0, 1))
    reach = [max(start[a] - p.begins[a] + p.kernel.shape[2 + a] for p in every) for a in (0, 1)]
    kernel, live, row = np.zeros((sum(len(p.kernel) for p in every), width, *reach)), {}, 0
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


def _mix(
    reading: Reading, made: Mapping[str, Array], kept: Sequence[str], error: float = 0.0
) -> None:
    """A step without a window: new values as matrices of the whole state, others pass."""
    passing = {name: _placed(reading, name, np.eye(len(reading.live[name]))) for name in kept}
    rows: list[Array] = []
    live: dict[str, list[int]] = {}
    for name, matrix in {**passing, **made}.items():
        live[name] = [*range(len(rows), len(rows) + len(matrix))]
        rows.extend(matrix)
    reading.steps.append(Correlation(np.array(rows)[:, :, None, None], error=error))
    reading.live = live


def _placed(reading: Reading, name: str, matrix: Array) -> Array:
    """A matrix of one value as one of the whole state."""
    whole = np.zeros((len(matrix), sum(len(rows) for rows in reading.live.values())))
    whole[:, reading.live[name]] = matrix
    return whole


def _scaled(reading: Reading, layer: LayerSpec) -> None:
    """One factor per channel, as batch normalisation has; what is added does not matter."""
    (source,) = reading.sources[layer.name]
    channels = reading.shapes[source][0]
    weight = np.asarray(reading.network.arrays.get(f"{layer.name}.weight", 1.0), dtype=np.float64)
    if math.prod(weight.shape[-2:]) != 1:
        raise NotShiftInvariant(f"{layer.name}: its factors differ from pixel to pixel")
    factors = np.broadcast_to(weight.reshape(-1), (channels,))
    error = stored_errors(layer.name, reading.network.arrays)[0]
    # One number stands once for every channel.
    error *= math.sqrt(channels / weight.size) * (1.0 + 1e-9)
    kept = reading.kept([layer])
    if source in reading.clean:
        reading.clean.add(layer.name)
    _mix(reading, {layer.name: _placed(reading, source, np.diag(factors))}, kept, error)
    reading.waiting.remove(layer)


def _joined(reading: Reading, layer: LayerSpec) -> None:
    """A sum, or channels one after the other."""
    sources = reading.sources[layer.name]
    parts = [_placed(reading, n, np.eye(len(reading.live[n]))) for n in sources]
    whole = sum(parts[1:], parts[0]) if layer.kind == "add" else np.concatenate(parts)
    kept = reading.kept([layer])
    if reading.clean.issuperset(sources):
        reading.clean.add(layer.name)
    _mix(reading, {layer.name: whole}, kept)
    reading.waiting.remove(layer)


def _renamed(reading: Reading, layer: LayerSpec) -> None:
    """A value under another name; a copy of it where the old one is needed as well."""
    (source,) = reading.sources[layer.name]
    if source in reading.clean:
        reading.clean.add(layer.name)
    kept = reading.kept([layer])
    if source in kept:
        whole = _placed(reading, source, np.eye(len(reading.live[source])))
        _mix(reading, {layer.name: whole}, kept)
    else:
        reading.live = {
            layer.name if name == source else name: rows for name, rows in reading.live.items()
        }
    reading.waiting.remove(layer)


def _activation(reading: Reading, layer: LayerSpec) -> None:
    """Its slope range, widened to hold the 0 of what lies outside the image."""
    _renamed(reading, layer)
    rows, shape = np.array(reading.live[layer.name]), reading.shapes[layer.name]
    ranges = neuron_slopes(scalar_parts(layer, reading.network.arrays, shape))
    alpha, beta = (np.asarray(v).reshape(len(rows), -1) for v in ranges)
    least, most = np.minimum(alpha.min(axis=1), 0.0), np.maximum(beta.max(axis=1), 0.0)
    reading.steps.append(Pointwise(layer.label, rows, least, most))
    reading.clean.add(layer.name)


def _sorted_pairs(reading: Reading, layer: LayerSpec) -> None:
    """Pairs of channels as sums, which pass, and differences, whose absolute value is taken.

    Outside the image a sum becomes 0: slopes [0, 1].
    """
    _renamed(reading, layer)
    rows, width = reading.live[layer.name], sum(len(r) for r in reading.live.values())
    turn = np.eye(width)
    half = math.sqrt(0.5)
    even, odd = rows[0::2], rows[1::2]
    for a, b in zip(even, odd, strict=True):
        turn[np.ix_([a, b], [a, b])] = [[half, half], [half, -half]]
    off = 1.01 * _U * math.sqrt(len(rows) * 2.0)
    kernel = turn[:, :, None, None]
    reading.steps.append(Correlation(kernel, error=off))
    ones = np.ones(len(even))
    reading.steps.append(
        Pointwise(
            layer.kind,
            np.array([*even, *odd]),
            np.concatenate([0.0 * ones, -ones]),
            np.ones(len(rows)),
        )
    )
    reading.steps.append(Correlation(kernel, error=off))
    reading.clean.add(layer.name)


_READERS: Mapping[str, Callable[[Reading, LayerSpec], None]] = {
    "conv2d": _conv,
    "avg_pool2d": _conv,
    "elementwise": _scaled,
    "identity": _renamed,
    **dict.fromkeys(JOINS, _joined),
    **dict.fromkeys(SORTS, _sorted_pairs),
}
