"""Circular padding and a minus as parts of the layer that they belong to.

A graph has circular padding as a layer of its own, which repeats pixels; with the convolution
behind it, it is one on the torus of the image itself, whose norm no other torus has.  What is
subtracted is a layer, and a factor of -1 behind it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..certificates.torus.windows import circular_widths
from ..networks.layer_spec import LayerSpec
from ..networks.layers import Shape
from ..networks.network import Network

LINEAR = ("conv2d", "linear")
Widths = tuple[int, int, int, int]
NONE: Widths = (0, 0, 0, 0)


class Rows(NamedTuple):
    """The layers of a network without those that others have taken up.

    Attributes:
        layers: in the order of evaluation.
        sources: the values that each of them takes.
        around: by the names of convolutions, how far their images are padded around: above, below,
            left and right.
        images: by their names, the shapes of those images.
        minus: the names of layers whose negative follows.
    """

    layers: list[LayerSpec]
    sources: dict[str, tuple[str, ...]]
    around: dict[str, Widths]
    images: dict[str, Shape]
    minus: set[str]

    def sign(self, spec: LayerSpec) -> float:
        """-1 of a layer whose negative follows, else 1."""
        return -1.0 if spec.name in self.minus else 1.0

    def padding(self, spec: LayerSpec) -> list[int]:
        """How far a convolution's image is padded, with zeros or around."""
        around = self.around.get(spec.name, NONE)
        return [own + more for own, more in zip(spec.options["padding"], around, strict=True)]

    def wraps(self, spec: LayerSpec) -> tuple[bool, bool]:
        """Along which axes it is padded around."""
        around = self.around.get(spec.name, NONE)
        return any(around[:2]), any(around[2:])


def rows_of(network: Network) -> Rows:
    """The layers of a network, circular padding and minus signs taken up."""
    sources, shapes = dict(network.sources()), network.shapes()
    named = {spec.name: spec for spec in network.layers}
    taken, found = set[str](), Rows([], sources, {}, {}, set())
    for spec in network.layers:
        if _negates(network, spec) and _users(sources, sources[spec.name][0]) == 1:
            (own,) = sources[spec.name]
            if named.get(own, spec).kind in LINEAR:
                found.minus.add(own)
                taken.add(spec.name)
                for name, takes in sources.items():
                    sources[name] = tuple(own if n == spec.name else n for n in takes)
        if spec.kind != "conv2d":
            continue
        # In front of a convolution of one dimension a reshape makes images of one row.
        before = [sources[spec.name][0]]
        while before[-1] in named and named[before[-1]].kind == "reshape":
            before += sources[before[-1]]
        pad = named.get(before[-1])
        if pad is None or pad.kind != "take" or any(_users(sources, n) > 1 for n in before):
            continue
        (given,) = sources[pad.name]
        channels, *sides = shapes[given]
        image = (channels, *(sides if len(sides) == 2 else (1, *sides)))
        index = np.asarray(network.arrays[f"{pad.name}.index"]).reshape(shapes[before[0]])
        widths = circular_widths(index, image)
        if widths is not None:
            found.around[spec.name], found.images[spec.name] = widths, image
            sources[spec.name] = (given,)
            taken.update(before)
    found.layers.extend(spec for spec in network.layers if spec.name not in taken)
    return found


def _negates(network: Network, spec: LayerSpec) -> bool:
    """Whether a layer multiplies by -1 and does nothing else."""
    return _multiplies(network, spec) and bool(
        np.all(np.asarray(network.arrays[f"{spec.name}.weight"]) == -1.0)
    )


def is_factor(network: Network, spec: LayerSpec) -> bool:
    """Whether a layer multiplies by one number and does nothing else."""
    return (
        _multiplies(network, spec) and np.asarray(network.arrays[f"{spec.name}.weight"]).size == 1
    )


def _multiplies(network: Network, spec: LayerSpec) -> bool:
    more = [f"{spec.name}.{key}" in network.arrays for key in ("bias", "error")]
    known = f"{spec.name}.weight" in network.arrays
    return spec.kind == "elementwise" and known and not any(more)


def _users(sources: dict[str, tuple[str, ...]], name: str) -> int:
    return sum(given.count(name) for given in sources.values())
