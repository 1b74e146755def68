"""A network as steps on a torus, up to a switch layer from which multipliers are per neuron."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

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
class _Reading:
    """What has been read so far.

    Attributes:
        live: which channels of the state every value that is still needed takes.
        clean: values that are 0 outside their image.
        scale: how many rows and columns of the input are one of the state.
        least: rows and columns that the input's torus must have.
        steps: the steps so far.
    """

    network: Network
    shapes: Mapping[str, Shape]
    waiting: list[LayerSpec]
    live: dict[str, list[int]]
    clean: set[str] = field(default_factory=lambda: {INPUT})
    scale: Pair = (1, 1)
    least: list[float] = field(default_factory=lambda: [1.0, 1.0])
    steps: list[Step] = field(default_factory=list)

    def needs(self, rows: int, columns: int) -> None:
        """The state's torus must have so many rows and columns."""
        for axis, side in enumerate((rows, columns)):
            self.least[axis] = max(self.least[axis], side * self.scale[axis])

    def needed_later(self, name: str, but: Sequence[LayerSpec] = ()) -> bool:
        """Whether another layer that is still to be read takes this value."""
        sources = self.network.sources()
        skipped = {spec.name for spec in but}
        return any(name in sources[s.name] for s in self.waiting if s.name not in skipped)


def torus_chain(network: Network, switch: int) -> TorusChain:
    """The network with its first ``switch`` activations on a torus, the rest as its head.

    Args:
        network: of images, ``(channels, rows, columns)``.
        switch: how many activation layers get multipliers per channel, at least 1.

    Raises:
        NotShiftInvariant: by name, for a layer before the switch that a torus cannot hold.
    """
    shape = network.input_shape or ()
    if len(shape) != 3:
        raise NotShiftInvariant(
            f"structure: expected images (channels, rows, columns), got {shape}"
        )
    channels, rows, columns = shape
    live = {INPUT: [*range(channels)]}
    reading = _Reading(network, network.shapes(), list(network.layers), live)
    reading.needs(rows, columns)
    done = 0
    while reading.waiting and not (done >= switch and len(reading.live) == 1):
        layer = reading.waiting[0]
        done += _acts(layer)
        _read_next(reading, layer)
    if done < switch or len(reading.live) != 1:
        raise NotShiftInvariant(
            f"structure: no value alone leads on after {switch} activations; they are {done} here"
        )
    if reading.waiting and not any(map(_acts, reading.waiting)) and _ends_large(reading):
        reading = _to_the_end(reading)
    return _finished(reading)


def _acts(layer: LayerSpec) -> bool:
    return layer.kind in ACTIVATIONS or layer.kind in SORTS


def _ends_large(reading: _Reading) -> bool:
    """Whether what is left, one matrix, would be a large one."""
    (name,) = reading.live
    sizes = [math.prod(reading.shapes[n]) for n in (name, reading.network.output)]
    return sizes[0] * sizes[1] > _LARGE


def _to_the_end(reading: _Reading) -> _Reading:
    """With the last linear layers on the torus as well, where they can stand there."""
    further = copy.copy(reading)
    further.waiting, further.steps = [*reading.waiting], [*reading.steps]
    further.clean, further.least = {*reading.clean}, [*reading.least]
    try:
        while further.waiting:
            _read_next(further, further.waiting[0])
    except NotShiftInvariant:
        return reading
    return further


def _read_next(reading: _Reading, layer: LayerSpec) -> None:
    read = _READERS.get(layer.kind, _activation if layer.kind in ACTIVATIONS else None)
    if read is None:
        raise NotShiftInvariant(f"{layer.name}: a {layer.kind} cannot stand on a torus")
    read(reading, layer)


def _finished(reading: _Reading) -> TorusChain:
    ((name, rows),) = reading.live.items()
    image = reading.shapes[name]
    if rows != [*range(image[0])]:
        _mix(reading, {name: np.eye(len(rows))}, [name])
    stride = reading.scale
    grid = tuple(s * math.ceil(least / s) for s, least in zip(stride, reading.least, strict=True))
    head = None
    if reading.waiting:
        own = {spec.name for spec in reading.waiting}
        arrays = {k: v for k, v in reading.network.arrays.items() if k.rpartition(".")[0] in own}
        sources = reading.network.sources()
        layers = tuple(
            replace(s, inputs=tuple(INPUT if n == name else n for n in sources[s.name]))
            for s in reading.waiting
        )
        head = Network(layers, arrays, image)
    first = reading.network.input_shape or ()
    return TorusChain(tuple(reading.steps), first[0], (grid[0], grid[1]), image, head)


def _conv(reading: _Reading, layer: LayerSpec) -> None:
    """A convolution or pool, together with all that read the same values at its stride."""
    stride = tuple(layer.options["stride"])
    group = [layer]
    if stride != (1, 1):
        group = [s for s in reading.waiting if _strided_alike(reading, s, stride)]
    sources = reading.network.sources()
    kept = [n for n in reading.live if reading.needed_later(n, group)]
    if kept and stride != (1, 1):
        raise NotShiftInvariant(
            f"{layer.name}: strides past {kept[0]!r}, which is needed at the finer grid"
        )
    parts = []
    for spec in group:
        kernel, start, error = _kernel(reading, spec)
        parts.append((spec.name, sources[spec.name][0], kernel, start, error))
        if kernel.shape[2:] != (1, 1) and not _tiles(reading, spec):
            if sources[spec.name][0] not in reading.clean:
                raise NotShiftInvariant(
                    f"{spec.name}: reads around the edge of what no activation has come before"
                )
        elif sources[spec.name][0] in reading.clean:
            reading.clean.add(spec.name)
    _correlate(reading, parts, kept, (stride[0], stride[1]))
    for spec in group:
        reading.waiting.remove(spec)


def _strided_alike(reading: _Reading, spec: LayerSpec, stride: Sequence[int]) -> bool:
    return (
        spec.kind in ("conv2d", "avg_pool2d")
        and tuple(spec.options["stride"]) == tuple(stride)
        and reading.network.sources()[spec.name][0] in reading.live
    )


def _tiles(reading: _Reading, spec: LayerSpec) -> bool:
    """Whether windows stand side by side and end with the image: none looks across its edge."""
    kernel, stride = spec.options.get("kernel_size"), spec.options["stride"]
    shape = reading.shapes[reading.network.sources()[spec.name][0]]
    sides_fit = all(side % s == 0 for side, s in zip(shape[1:], stride, strict=True))
    return kernel is not None and list(kernel) == list(stride) and sides_fit


def _kernel(reading: _Reading, spec: LayerSpec) -> tuple[Array, Pair, float]:
    """A layer's kernel without dilation and groups, where it begins, and its error."""
    shape = reading.shapes[reading.network.sources()[spec.name][0]]
    channels, options = shape[0], spec.options
    if spec.kind == "avg_pool2d":
        window = Window.of(
            {**options, "dilation": [1, 1]}, tuple(options["kernel_size"]), shape, spec.name
        )
        count = options["divisor_override"] or math.prod(window.kernel)
        if any(window.padding) and not (
            options["count_include_pad"] or options["divisor_override"]
        ):
            raise NotShiftInvariant(f"{spec.name}: counts fewer pixels at the edge")
        kernel = np.zeros((channels, channels, *window.kernel))
        kernel[range(channels), range(channels)] = 1.0 / count
        error = 2.0 * _U / count * math.sqrt(channels * math.prod(window.kernel))
    else:
        stored = np.asarray(reading.network.arrays[f"{spec.name}.weight"], dtype=np.float64)
        window = Window.of(options, stored.shape[2:], shape, spec.name)
        kernel = _spread(stored, options["groups"], window.dilation)
        error = stored_errors(spec.name, reading.network.arrays)[0]
    for axis, (side, first) in enumerate(zip(shape[1:], window.padding[::2], strict=True)):
        last = (window.out[axis] - 1) * window.stride[axis] + kernel.shape[2 + axis] - 1 - first
        need = [0.0, 0.0]
        need[axis] = max(side + max(first, last - side + 1), window.out[axis] * window.stride[axis])
        reading.needs(int(need[0]), int(need[1]))
    return kernel, (window.padding[0], window.padding[2]), error


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


def _correlate(
    reading: _Reading,
    parts: Sequence[tuple[str, str, Array, Pair, float]],
    kept: Sequence[str],
    stride: Pair,
) -> None:
    """One step for several kernels and the values that pass."""
    width = sum(len(rows) for rows in reading.live.values())
    passing = [(n, n, _point(len(reading.live[n])), (0, 0), 0.0) for n in kept]
    every = [*passing, *parts]
    start = tuple(max(p[3][axis] for p in every) for axis in (0, 1))
    reach = [max(start[a] - p[3][a] + p[2].shape[2 + a] for p in every) for a in (0, 1)]
    out = sum(len(p[2]) for p in every)
    kernel, live, row = np.zeros((out, width, *reach)), {}, 0
    for name, source, own, begins, _ in every:
        y, x = start[0] - begins[0], start[1] - begins[1]
        rows = np.arange(row, row + len(own))
        window = (slice(y, y + own.shape[2]), slice(x, x + own.shape[3]))
        for o, r in enumerate(rows):
            kernel[r, reading.live[source], window[0], window[1]] = own[o]
        live[name] = rows.tolist()
        row += len(own)
    error = math.sqrt(sum(p[4] ** 2 for p in every)) * (1.0 + 1e-12)
    reading.steps.append(Correlation(kernel, (start[0], start[1]), stride, error))
    reading.live = live
    reading.scale = (reading.scale[0] * stride[0], reading.scale[1] * stride[1])


def _point(channels: int) -> Array:
    return np.eye(channels)[:, :, None, None]


def _mix(
    reading: _Reading, maps: Mapping[str, Array], kept: Sequence[str], error: float = 0.0
) -> None:
    """A step without a window: new values as matrices of the whole state, others kept."""
    width = sum(len(rows) for rows in reading.live.values())
    rows: list[Array] = []
    live: dict[str, range] = {}
    for name in kept:
        if name not in maps:
            live[name] = range(len(rows), len(rows) + len(reading.live[name]))
            rows.extend(np.eye(width)[reading.live[name]])
    for name, matrix in maps.items():
        own = matrix
        if matrix.shape[1] != width:
            own = np.zeros((len(matrix), width))
            own[:, reading.live[name]] = matrix
        live[name] = range(len(rows), len(rows) + len(own))
        rows.extend(own)
    kernel = np.array(rows)[:, :, None, None]
    reading.steps.append(Correlation(kernel, error=error))
    reading.live = {name: [*own] for name, own in live.items()}


def _placed(reading: _Reading, name: str, matrix: Array) -> Array:
    """A matrix of one value as one of the whole state."""
    whole = np.zeros((len(matrix), sum(len(rows) for rows in reading.live.values())))
    whole[:, reading.live[name]] = matrix
    return whole


def _scaled(reading: _Reading, layer: LayerSpec) -> None:
    """One factor per channel, as batch normalisation has; what is added does not matter."""
    (source,) = reading.network.sources()[layer.name]
    channels = reading.shapes[source][0]
    weight = np.asarray(reading.network.arrays.get(f"{layer.name}.weight", 1.0), dtype=np.float64)
    if math.prod(weight.shape[-2:]) != 1:
        raise NotShiftInvariant(f"{layer.name}: its factors differ from pixel to pixel")
    factors = np.broadcast_to(weight.reshape(-1), (channels,))
    error = stored_errors(layer.name, reading.network.arrays)[0]
    # One number stands once for every channel.
    error *= math.sqrt(channels / weight.size) * (1.0 + 1e-9)
    kept = [n for n in reading.live if reading.needed_later(n, [layer])]
    if source in reading.clean:
        reading.clean.add(layer.name)
    _mix(reading, {layer.name: _placed(reading, source, np.diag(factors))}, kept, error)
    reading.waiting.remove(layer)


def _joined(reading: _Reading, layer: LayerSpec) -> None:
    """A sum, or channels one after the other."""
    sources = reading.network.sources()[layer.name]
    parts = [_placed(reading, n, np.eye(len(reading.live[n]))) for n in sources]
    whole = sum(parts[1:], parts[0]) if layer.kind == "add" else np.concatenate(parts)
    kept = [n for n in reading.live if reading.needed_later(n, [layer])]
    if reading.clean.issuperset(sources):
        reading.clean.add(layer.name)
    _mix(reading, {layer.name: whole}, kept)
    reading.waiting.remove(layer)


def _renamed(reading: _Reading, layer: LayerSpec) -> None:
    """A value under another name; a copy of it where the old one is needed as well."""
    (source,) = reading.network.sources()[layer.name]
    if source in reading.clean:
        reading.clean.add(layer.name)
    if reading.needed_later(source, [layer]):
        kept = [n for n in reading.live if reading.needed_later(n, [layer])]
        whole = _placed(reading, source, np.eye(len(reading.live[source])))
        _mix(reading, {layer.name: whole}, kept)
    else:
        reading.live = {
            layer.name if name == source else name: rows for name, rows in reading.live.items()
        }
    reading.waiting.remove(layer)


def _activation(reading: _Reading, layer: LayerSpec) -> None:
    """Its slope range, widened to hold the 0 of what lies outside the image."""
    _renamed(reading, layer)
    rows, shape = np.array(reading.live[layer.name]), reading.shapes[layer.name]
    ranges = neuron_slopes(scalar_parts(layer, reading.network.arrays, shape))
    alpha, beta = (np.asarray(v).reshape(len(rows), -1) for v in ranges)
    least, most = np.minimum(alpha.min(axis=1), 0.0), np.maximum(beta.max(axis=1), 0.0)
    reading.steps.append(Pointwise(layer.label, rows, least, most))
    reading.clean.add(layer.name)


def _sorted_pairs(reading: _Reading, layer: LayerSpec) -> None:
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


_READERS: Mapping[str, Callable[[_Reading, LayerSpec], None]] = {
    "conv2d": _conv,
    "avg_pool2d": _conv,
    "elementwise": _scaled,
    "identity": _renamed,
    **dict.fromkeys(JOINS, _joined),
    **dict.fromkeys(SORTS, _sorted_pairs),
}
