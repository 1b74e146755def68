"""The same function in fewer rows, whatever wrote them: a reader's last step.

Exact changes only, so that what is written in several ways is one network:

* a row that multiplies by 1 and adds 0 is nothing;
* a constant that is added behind an affine layer without a bias is its bias;
* entries moved twice are moved once, whatever shape they have between.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .elementwise import changes_nothing
from .index_maps import ZERO, keeps_order
from .layer_spec import INPUT, LayerSpec, heard, plainly_wired
from .layers import RESHAPES, array_keys
from .network import Network


def simplified(network: Network) -> Network:
    """The network with what can be said in fewer rows said so; inputs and outputs are the same.

    Raises:
        NetworkError: where its shapes do not fit each other.
    """
    if not any(spec.inputs or spec.kind in _RULES for spec in network.layers):
        names = {spec.name for spec in network.layers}
        if all(key.rpartition(".")[0] in names for key in network.arrays):
            return network  # a path in which no rule has a say
    work = _Rows(network)
    for spec in network.layers:
        rule = _RULES.get(spec.kind)
        if rule is not None:
            rule(work, spec.name)
    return work.network()


class _Rows:
    """The rows while they change; one that is left out has another's output in its place."""

    def __init__(self, network: Network) -> None:
        self.input_shape, self.output = network.input_shape, network.output
        self.shapes, self.sources = network.shapes(), network.sources()
        self.rows = {spec.name: spec for spec in network.layers}
        self.arrays = dict(network.arrays)
        self.uses = Counter(name for given in self.sources.values() for name in given)
        self.uses[network.output] += 1
        self.instead: dict[str, str] = {}

    def given(self, name: str) -> tuple[str, ...]:
        """The inputs of a row."""
        return tuple(map(self._found, self.sources[name]))

    def _found(self, name: str) -> str:
        while name in self.instead:
            name = self.instead[name]
        return name

    def source(self, name: str) -> LayerSpec | None:
        """The row whose output a row takes, where nobody else takes it."""
        given = self.given(name)[0]
        return self.rows[given] if given != INPUT and self.uses[given] == 1 else None

    def has(self, name: str, key: str) -> bool:
        """Whether a row holds an array."""
        return f"{name}.{key}" in self.arrays

    def put(
        self, name: str, kind: str, options: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> None:
        """Another row of the same name and inputs."""
        spec = self.rows[name]
        for key in array_keys(spec.kind):
            self.arrays.pop(f"{name}.{key}", None)
        self.arrays |= {f"{name}.{key}": array for key, array in arrays.items()}
        self.rows[name] = replace(spec, kind=kind, options=options)

    def leave_out(self, name: str) -> None:
        """A row is left out: who takes its output takes its input."""
        (given,) = self.given(name)
        self.instead[name] = given
        self.uses[given] += self.uses[name] - 1
        del self.rows[name]

    def network(self) -> Network:
        """The rows as a network."""
        rows = [replace(spec, inputs=self.given(name)) for name, spec in self.rows.items()]
        layers = heard(rows, self._found(self.output))
        names = {spec.name for spec in layers}
        arrays = {k: v for k, v in self.arrays.items() if k.rpartition(".")[0] in names}
        return Network(tuple(plainly_wired(layers)), arrays, self.input_shape)


def _elementwise(work: _Rows, name: str) -> None:
    if changes_nothing(work.arrays, name):
        work.put(name, "identity", {}, {})
        return
    first = work.source(name)
    if work.has(name, "weight") or first is None or work.has(first.name, "bias"):
        return
    bias = work.arrays[f"{name}.bias"]
    if first.kind == "elementwise":
        work.arrays[f"{first.name}.bias"] = bias
        work.leave_out(name)
        return
    channels = work.shapes[first.name][0]
    per_channel = {"linear": (channels,), "conv2d": (channels, 1, 1)}.get(first.kind)
    if per_channel is not None and bias.shape in (per_channel, (1,), ()):
        work.arrays[f"{first.name}.bias"] = np.broadcast_to(bias.ravel(), (channels,)).copy()
        work.leave_out(name)


def _take(work: _Rows, name: str) -> None:
    index = np.asarray(work.arrays[f"{name}.index"]).astype(np.int64)
    while (first := work.source(name)) is not None and first.kind in (*RESHAPES, "take"):
        if first.kind == "take":
            inner = np.asarray(work.arrays[f"{first.name}.index"]).astype(np.int64).ravel()
            index = np.where(index == ZERO, ZERO, inner[index])
        work.leave_out(first.name)
    (given,) = work.given(name)
    if not keeps_order(index, math.prod(work.shapes[given])):
        work.put(name, "take", {}, {"index": index.astype(np.float64)})
    elif index.shape == work.shapes[given]:
        work.put(name, "identity", {}, {})
    else:
        work.put(name, "reshape", {"shape": [*index.shape]}, {})


_RULES: Mapping[str, Callable[[_Rows, str], None]] = {"elementwise": _elementwise, "take": _take}
