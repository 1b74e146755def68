"""A network as steps on a torus, up to a switch layer from which multipliers are per neuron."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from ...float64 import U
from ...networks.activations import ACTIVATIONS
from ...networks.joins import JOINS
from ...networks.layer_spec import INPUT, LayerSpec, neuron_slopes, scalar_parts
from ...networks.layers import stored_errors
from ...networks.network import Network
from ...networks.sorting import SORTS
from .reading import NotShiftInvariant, Reading, merge, mix, placed, renamed, zeroed
from .steps import Correlation, Pointwise, TorusChain
from .windows import WINDOWED, correlated, padded_around

# Entries of a matrix behind the last activation beyond which it stays on the torus: there it is
# cheap, but every place of the output counts as an infinite image has it.
_LARGE = 2**22
# A matrix as a kernel, and the layers that say of a vector what they say of its pixel.
_ONE_TAP = {"stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1}
_ALIKE = (*ACTIVATIONS, *SORTS, *JOINS, "identity")
# Layers that change no number.
_FLATTENING = ("flatten", "reshape")


def stops(network: Network, padded: bool = False) -> Iterator[Reading]:
    """The network read up to every activation behind which a single value leads on.

    Args:
        network: to be read.
        padded: also up to a convolution that a flattening or nothing follows, with zero padding for
            an activation behind it.

    Raises:
        NotShiftInvariant: by name, at a layer that a torus cannot hold.
    """
    reading = _begun(network)
    done = stopped = 0
    while reading.waiting:
        layer = reading.waiting[0]
        if padded and stopped and layer.kind in _FLATTENING and _padded(reading):
            yield reading
        _read_next(reading, layer)
        done += _acts(layer)
        if done > stopped and _leads_on(reading):
            stopped = done
            yield reading
    if padded and stopped and _padded(reading):
        yield reading


def _leads_on(reading: Reading) -> bool:
    """Whether all that follows takes a single value."""
    return len(reading.live) == 1 and not reading.around.keys() & reading.live


def _padded(reading: Reading) -> bool:
    """Put an activation behind a convolution that alone leads on; whether that was done."""
    name = next(iter(reading.live))
    if not _leads_on(reading) or reading.kind_of(name) != "conv2d":
        return False
    zeroed(reading, name)
    return True


def _begun(network: Network) -> Reading:
    """Nothing read but the input."""
    network = as_pixels(network)
    shape = network.input_shape or ()
    if len(shape) != 3:
        raise NotShiftInvariant(
            f"structure: expected images (channels, rows, columns), got {shape}"
        )
    live = {INPUT: [*range(shape[0])]}
    waiting = _copies_late(network)
    reading = Reading(network, network.shapes(), network.sources(), waiting, live)
    reading.needs(INPUT, shape[1:], (False, False))
    return reading


def _copies_late(network: Network) -> list[LayerSpec]:
    """The layers, each that is a value times factors directly in front of what takes it.

    So that no copy of a value passes where the value itself is set to 0 outside its image.
    """
    sources, found = network.sources(), list[LayerSpec]()
    held: dict[str, LayerSpec] = {}

    def take(spec: LayerSpec) -> None:
        for name in sources[spec.name]:
            if name in held:
                take(held.pop(name))
        found.append(spec)

    for spec in network.layers:
        if spec.kind in ("elementwise", "identity"):
            held[spec.name] = spec
        else:
            take(spec)
    for spec in [*held.values()]:
        if held.pop(spec.name, None):
            take(spec)
    return found


def as_pixels(network: Network) -> Network:
    """A network of vectors as one of images of a single pixel, whose kernels have one tap.

    What has no such image, a layer that moves entries say, is refused by name.
    """
    if len(network.input_shape or ()) != 1:
        return network
    layers, arrays = [], dict(network.arrays)
    for spec in network.layers:
        if spec.kind == "linear":
            key = f"{spec.name}.weight"
            arrays[key] = np.asarray(arrays[key])[:, :, None, None]
            spec = replace(spec, kind="conv2d", options=_ONE_TAP)
        elif spec.kind == "elementwise":
            for key in (f"{spec.name}.weight", f"{spec.name}.bias"):
                if key in arrays and np.ndim(arrays[key]):
                    arrays[key] = np.asarray(arrays[key])[..., None, None]
        elif spec.kind not in _ALIKE:
            raise NotShiftInvariant(f"{spec.name}: a {spec.kind} of a vector is no image's")
        layers.append(spec)
    return Network(tuple(layers), arrays, (*(network.input_shape or ()), 1, 1))


def chains_of(network: Network) -> list[TorusChain]:
    """The network switched behind its first activation, its second, and so on while it can be.

    Raises:
        NotShiftInvariant: by name, where not even the first one can stand on a torus.
    """
    found: list[TorusChain] = []
    try:
        for reading in stops(network):
            found.append(finished(reading))
    except NotShiftInvariant:
        if not found:
            raise
    if not found:
        raise NotShiftInvariant("structure: no single value leads on behind an activation")
    return found


def furthest_chain(network: Network) -> TorusChain:
    """The network with as much of it on a torus as there can be.

    Raises:
        NotShiftInvariant: by name, where not even the first activation can stand on one.
    """
    found: TorusChain | None = None
    try:
        for reading in stops(network, padded=True):
            found = finished(reading)
    except NotShiftInvariant:
        if found is None:
            raise
    if found is None:
        raise NotShiftInvariant("structure: no single value leads on behind an activation")
    return found


def torus_chain(network: Network, switch: int) -> TorusChain:
    """The network with its first ``switch`` activations on a torus, the rest as its head.

    Args:
        network: of images, ``(channels, rows, columns)``.
        switch: how many activation layers get multipliers per channel, at least 1.

    Raises:
        NotShiftInvariant: by name, for a layer before the switch that a torus cannot hold.
    """
    for reading in stops(network, padded=True):
        if sum(isinstance(step, Pointwise) for step in reading.steps) == switch:
            return finished(reading)
    raise NotShiftInvariant(f"structure: no single value leads on behind {switch} activations")


def whole_chain(network: Network) -> TorusChain:
    """The whole network on a torus, but for a flattening at its end.

    Raises:
        NotShiftInvariant: by name, at a layer that a torus cannot hold.
    """
    reading = _begun(network)
    while any(layer.kind not in _FLATTENING for layer in reading.waiting):
        _read_next(reading, reading.waiting[0])
    reading.waiting.clear()
    return finished(reading)


def finished(reading: Reading) -> TorusChain:
    """What was read as the part on the torus; of what is left the linear end, where it is large."""
    reading = reading.copied()
    if reading.waiting and not any(map(_acts, reading.waiting)) and _ends_large(reading):
        reading = _to_the_end(reading)
    ((name, rows),) = reading.live.items()
    image = reading.shapes[name]
    if rows != [*range(image[0])]:
        mix(reading, {name: placed(reading, name, np.eye(len(rows)))}, [])
    channels = reading.shapes[INPUT][0]
    head = _head(reading, name) if reading.waiting else None
    return TorusChain(tuple(reading.steps), channels, reading.grid(), image, head)


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
    if layer.kind not in WINDOWED and reading.around.keys() & {*reading.sources[layer.name]}:
        raise NotShiftInvariant(f"{layer.name}: takes a value with its circular padding")
    read(reading, layer)


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
    mix(reading, {layer.name: placed(reading, source, np.diag(factors))}, kept, error)
    reading.waiting.remove(layer)


def _joined(reading: Reading, layer: LayerSpec) -> None:
    """A sum, or channels one after the other."""
    sources = reading.sources[layer.name]
    parts = [placed(reading, n, np.eye(len(reading.live[n]))) for n in sources]
    whole = sum(parts[1:], parts[0]) if layer.kind == "add" else np.concatenate(parts)
    kept = reading.kept([layer])
    if reading.clean.issuperset(sources):
        reading.clean.add(layer.name)
    mix(reading, {layer.name: whole}, kept)
    merge(reading)
    reading.waiting.remove(layer)


def _activation(reading: Reading, layer: LayerSpec) -> None:
    """Its slope range, widened to hold the 0 of what lies outside the image."""
    renamed(reading, layer)
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
    renamed(reading, layer)
    rows = reading.live[layer.name]
    turn = np.eye(reading.width)
    half = math.sqrt(0.5)
    even, odd = rows[0::2], rows[1::2]
    for a, b in zip(even, odd, strict=True):
        turn[np.ix_([a, b], [a, b])] = [[half, half], [half, -half]]
    off = 1.01 * U * math.sqrt(len(rows) * 2.0)
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
    **dict.fromkeys(WINDOWED, correlated),
    "take": padded_around,
    "elementwise": _scaled,
    "identity": renamed,
    **dict.fromkeys(JOINS, _joined),
    **dict.fromkeys(SORTS, _sorted_pairs),
}
