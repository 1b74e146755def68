"""A max pool as the layers that it is made of (``vector_functions.py`` says which and why)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .affine import Array, Shape
from .index_maps import ZERO, positions
from .layer_spec import LayerSpec, sources_of
from .vector_functions import windows


def expanded(
    layers: Sequence[LayerSpec], arrays: Mapping[str, Any], shapes: Mapping[str, Shape]
) -> tuple[list[LayerSpec], Mapping[str, Any], Mapping[str, Shape]]:
    """The same network without max pools: layers, arrays and shapes."""
    if not any(spec.kind == "max_pool2d" for spec in layers):
        return [*layers], arrays, shapes
    work = _Expansion(dict(arrays), dict(shapes))
    for spec, given in zip(layers, sources_of(layers).values(), strict=True):
        if spec.kind == "max_pool2d":
            work.pool(spec, given[0])
        else:
            work.layers.append(replace(spec, inputs=given))
    return work.layers, work.arrays, work.shapes


@dataclass
class _Expansion:
    """The layers so far."""

    arrays: dict[str, Any]
    shapes: dict[str, Shape]
    layers: list[LayerSpec] = field(default_factory=list)

    def pool(self, spec: LayerSpec, source: str) -> None:
        """Rows, then columns: of each output the entries that it sees, halved until one is left."""
        for axis, seen in enumerate(windows(spec.name, spec.options, self.shapes[source]), 1):
            slots = [list(places) for places in seen]
            while any(len(places) > 1 for places in slots):
                source, slots = self._halved(spec, source, axis, slots)
            name = spec.name if axis == 2 else ""
            source = self._take(spec, source, axis, [places[0] for places in slots], name)

    def _halved(
        self, spec: LayerSpec, source: str, axis: int, slots: list[list[int]]
    ) -> tuple[str, list[list[int]]]:
        """The maxima of neighbouring pairs along an axis, and what is left over."""
        pairs = sorted({(s[k], s[k + 1]) for s in slots for k in range(0, len(s) - 1, 2)})
        singles = sorted({s[-1] for s in slots if len(s) % 2})
        first, second = ([pair[end] for pair in pairs] for end in (0, 1))
        upper = self._take(spec, source, axis, first)
        lower = self._take(spec, source, axis, second)
        shape = self.shapes[upper]
        minus = self._add(spec, "elementwise", (lower,), shape, {"weight": np.array(-1.0)})
        gap = self._add(spec, "add", (upper, minus), shape)
        more = self._add(spec, "relu", (gap,), shape)
        base = self._take(spec, source, axis, [*second, *singles])
        padded = self._take(spec, more, axis, [*range(len(pairs)), *[ZERO] * len(singles)])
        total = self._add(spec, "add", (base, padded), self.shapes[base])
        place = {pair: k for k, pair in enumerate(pairs)}
        alone = {single: len(pairs) + k for k, single in enumerate(singles)}
        left = [
            [place[s[k], s[k + 1]] for k in range(0, len(s) - 1, 2)]
            + ([alone[s[-1]]] if len(s) % 2 else [])
            for s in slots
        ]
        return total, left

    def _take(
        self, spec: LayerSpec, source: str, axis: int, entries: Sequence[int], name: str = ""
    ) -> str:
        """Entries along an axis, :data:`ZERO` for a zero."""
        index = np.take(positions(self.shapes[source]), np.array(entries), axis=axis)
        index = np.moveaxis(index, axis, 0)
        index[[k for k, entry in enumerate(entries) if entry == ZERO]] = ZERO
        index = np.moveaxis(index, 0, axis)
        arrays = {"index": index.astype(np.float64)}
        return self._add(spec, "take", (source,), index.shape, arrays, name)

    def _add(
        self,
        spec: LayerSpec,
        kind: str,
        inputs: tuple[str, ...],
        shape: Shape,
        arrays: Mapping[str, Array] | None = None,
        name: str = "",
    ) -> str:
        number = len(self.layers)
        name = name or f"{spec.name}, step {number}"
        while name != spec.name and name in self.shapes:
            name += "'"
        self.layers.append(LayerSpec(kind, name, {}, inputs))
        self.arrays.update({f"{name}.{key}": array for key, array in (arrays or {}).items()})
        self.shapes[name] = shape
        return name
