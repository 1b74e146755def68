"""A graph of stored layers as a chain of operators: what skips a layer is carried through it.

The chain is that of ``networks/lowering.py``, whose head has the mathematics, with one operator for
each of its matrices (``wired_operator.py``): its input is the state, the outputs of the layer
before; its outputs are what the next activations hear, then what is needed beside them, carried by
neurons whose activation is the identity.  Carried is what is narrower: the values, or the segments
of the state that they are made of.  Sorting pairs is a curve between two layers of ones and halves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import UnsupportedModule
from ..networks.joins import JOINS
from ..networks.layer_spec import CARRIED, INPUT, heard, sources_of
from ..networks.layers import AFFINE, AffineMap, Shape
from ..networks.lowering import changes_nothing, is_activation
from ..networks.max_pooling import expanded
from ..networks.network import LayerSpec, Network, SideBySide
from ..networks.sorting import HALF_ABS, SORTS, check_even, rotated, rotation_back
from ..networks.vector_functions import VECTOR_FUNCTIONS
from .activations import Curved
from .layers import Layer
from .wired_operator import Step, wired

# The scalar activations of one layer's neurons, with what they act on.
Parts = tuple[tuple[LayerSpec, int], ...]


@dataclass
class Lifting:
    """The chain while it is built.

    Args:
        network: with max pools and sorts written out (:func:`written_out`).
        affine: the layer that stands for one of the network's, without activation.
        parts: the scalar activations of one of its activations, refusing what has no curve.
    """

    network: Network
    affine: Callable[[Network, LayerSpec, Shape], Layer]
    parts: Callable[[Network, LayerSpec, Shape], Parts]
    held: tuple[str, ...] = (INPUT,)
    layers: list[Layer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shapes = self.network.shapes()
        self.sources = sources_of(self.network.layers)
        self.needed = heard(self.network.layers, self.network.output)

    def lifted(self) -> tuple[Layer, ...]:
        """All layers."""
        output, done = self.network.output, set[str]()
        while True:
            known = self._known()
            if output in known:
                self._close([], [output], known)
                return tuple(self.layers)
            acting = [s for s in self.needed if _acts(s) and s.name not in done]
            ready = [spec for spec in acting if self.sources[spec.name][0] in known]
            done |= {spec.name for spec in ready}
            later = {s.name for s in self.needed if s.name not in known} - done
            wanted = {name for late in later for name in self.sources[late]} & known.keys()
            self._close(ready, self._carried([n for n in known if n in wanted], known), known)

    def _known(self) -> dict[str, set[str]]:
        """What can be computed from the state, and of which of its segments."""
        known = {name: {name} for name in self.held}
        for spec in self.needed:
            given = self.sources[spec.name]
            if spec.name not in known and not _acts(spec) and all(n in known for n in given):
                known[spec.name] = set().union(*(known[n] for n in given))
        return known

    def _carried(self, wanted: Sequence[str], known: dict[str, set[str]]) -> list[str]:
        """The values, or the segments that they are made of, whichever are fewer numbers."""
        made_of = set().union(*(known[name] for name in wanted))
        segments = [name for name in self.held if name in made_of]
        fewer = sum(map(self._size, segments)) < sum(map(self._size, wanted))
        return segments if fewer else list(wanted)

    def _size(self, name: str) -> int:
        return math.prod(self.shapes[name])

    def _close(
        self, acting: Sequence[LayerSpec], carried: Sequence[str], known: dict[str, set[str]]
    ) -> None:
        """The next layer: these activations, and what is carried; the output for the last one."""
        outputs = [*(self.sources[spec.name][0] for spec in acting), *carried]
        steps = list(self._steps(outputs, known))
        number = {name: k for k, name in enumerate([*self.held, *(n for n, _, _ in steps)])}
        made = [replace(step, sources=tuple(number[n] for n in given)) for _, step, given in steps]
        segments = [self.shapes[name] for name in self.held]
        operator = wired(segments, made, [number[name] for name in outputs])
        if len(made) == 1 and operator is made[0].operator:
            errors = made[0].error, made[0].bias_error
        else:
            errors = operator.map.error, operator.map.bias_error  # type: ignore[attr-defined]
        names = [name for name, step, _ in steps if step.operator is not None]
        what = " and ".join(names) or "an identity between two activations"
        activation = self._activation(acting, carried) if acting else None
        self.layers.append(Layer(what, operator, activation, *errors))
        self.held = (*(spec.name for spec in acting), *carried)

    def _activation(self, acting: Sequence[LayerSpec], carried: Sequence[str]) -> Curved:
        shapes = [self.shapes[self.sources[spec.name][0]] for spec in acting]
        found = [
            p for s, at in zip(acting, shapes, strict=True) for p in self.parts(self.network, s, at)
        ]
        found += [(LayerSpec(CARRIED, name, {}), self._size(name)) for name in carried]
        return Curved(found[0][0] if len(found) == 1 else SideBySide(tuple(found)))

    def _steps(
        self, outputs: Sequence[str], known: dict[str, set[str]]
    ) -> Iterator[tuple[str, Step, tuple[str, ...]]]:
        """What leads from the state to some values: their names, steps, and sources."""
        asked = set(outputs) - set(self.held)
        for spec in reversed(self.needed):
            if spec.name in asked:
                asked |= set(self.sources[spec.name]) - set(self.held)
        for spec in self.needed:
            if spec.name in asked:
                given = self.sources[spec.name]
                yield spec.name, self._step(spec, self.shapes[given[0]]), given

    def _step(self, spec: LayerSpec, shape: Shape) -> Step:
        after = self.shapes[spec.name]
        if spec.kind in AFFINE:
            layer = self.affine(self.network, spec, shape)
            return Step((), after, layer.operator, "add", layer.error, layer.bias_error)
        return Step((), after, join=spec.kind if spec.kind in JOINS else "add")


def _acts(spec: LayerSpec) -> bool:
    return is_activation(spec) and not changes_nothing(spec)


def written_out(network: Network) -> Network:
    """The network with max pools as they are lowered, and sorts as a curve between two rotations.

    Raises:
        UnsupportedModule: by name, for a function of whole vectors.
    """
    for spec in network.layers:
        if spec.kind in VECTOR_FUNCTIONS and spec.kind != "max_pool2d":
            raise UnsupportedModule(
                f"{spec.name} ({spec.kind}): is supported as the last layer only, and there for a "
                "global certificate; leave it out (it does not change the class)"
            )
    layers, arrays, shapes = expanded(network.layers, network.arrays, network.shapes())
    found: list[LayerSpec] = []
    arrays = dict(arrays)
    for spec, given in zip(layers, sources_of(layers).values(), strict=True):
        if spec.kind in SORTS:
            found += _sort(spec, given, shapes[given[0]], arrays)
        else:
            found.append(replace(spec, inputs=given))
    return Network(tuple(found), arrays, network.input_shape)


def _sort(
    spec: LayerSpec, given: tuple[str, ...], shape: Shape, arrays: dict[str, Any]
) -> list[LayerSpec]:
    """Sums and differences of pairs, the fold, and back: entries 1 and 1/2, exact."""
    check_even(spec.name, spec.kind, shape)
    pairs = shape[:1]
    eye = AffineMap(np.eye(pairs[0]), np.zeros(pairs[0]), 0.0, pairs)
    turn = rotated(eye).matrix, rotation_back(SORTS[spec.kind], pairs).matrix.toarray()
    kind, options = ("linear", {}) if len(shape) == 1 else ("conv2d", _PLACE_BY_PLACE)
    before, fold = f"{spec.name}, sums and differences", f"{spec.name}, fold"
    for name, matrix in zip((before, spec.name), turn, strict=True):
        arrays[f"{name}.weight"] = matrix if len(shape) == 1 else matrix[:, :, None, None]
    return [
        LayerSpec(kind, before, options, given),
        LayerSpec(HALF_ABS, fold, {}, (before,)),
        LayerSpec(kind, spec.name, options, (fold,)),
    ]


_PLACE_BY_PLACE = {"stride": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1}
