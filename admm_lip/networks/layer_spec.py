"""One layer of a network as data: its kind, its name, its options, and whose outputs it takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import NetworkError, UnsupportedModule
from .activations import ACTIVATIONS, Options, check_activation, label_of_kind, values_of
from .joins import JOINS
from .layers import KINDS, Array, Shape, check_options
from .sorting import PAIRED

# The network's input, as a source of a layer.
INPUT = "input"
# Neurons whose activation is the identity, beside others: only in a chain, never in a file.
CARRIED = "carried"
# Every kind by its name, and those without options.
_KNOWN = dict.fromkeys((*KINDS, *PAIRED, *JOINS))
_PLAIN = frozenset((*PAIRED, *JOINS, CARRIED))


@dataclass(frozen=True)
class LayerSpec:
    """One layer: its kind, its qualified name (the prefix of its arrays) and its options.

    Kinds: ``linear``, ``conv2d``, ``avg_pool2d``, ``flatten``, ``identity``, the activations of
    :data:`admm_lip.networks.activations.ACTIVATIONS`, ``group_sort2``, ``max_min`` and
    ``half_abs``, ``add`` and ``concatenate``.

    Attributes:
        inputs: names of the layers whose outputs it takes, ``"input"`` for the network's input;
            none means the layer before it.

    Raises:
        UnsupportedModule: for an unknown kind, or options the kind does not take.
    """

    kind: str
    name: str
    options: Options
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in _KNOWN and self.kind != CARRIED:
            raise UnsupportedModule(
                f"{self.name}: layer kind {self.kind!r} is not supported; "
                f"supported: {', '.join(_KNOWN)}"
            )
        plain = self.kind in _PLAIN
        if plain and self.options:
            raise UnsupportedModule(
                f"{self.name}: {self.kind} takes no options, got {sorted(self.options)}"
            )
        if self.kind in JOINS and len(self.inputs) < 2:
            raise UnsupportedModule(
                f"{self.name}: {self.kind} takes two inputs or more, got {list(self.inputs)}"
            )
        if self.kind not in JOINS and len(self.inputs) > 1:
            raise UnsupportedModule(
                f"{self.name}: {self.kind} takes one input, got {list(self.inputs)}"
            )
        if not plain:
            check = check_activation if self.kind in ACTIVATIONS else check_options
            check(self.kind, self.name, self.options)

    @property
    def label(self) -> str:
        """The kind as a certificate states it."""
        return label_of_kind(self.kind, self.options)


@dataclass(frozen=True)
class SideBySide:
    """Several activations in one hidden layer, each with its number of neurons, in their order."""

    parts: tuple[tuple[LayerSpec, int], ...]

    @property
    def kind(self) -> str:
        """The kinds, for a person."""
        return " + ".join(spec.kind for spec, _ in self.parts)

    @property
    def label(self) -> str:
        """The kinds as a certificate states them."""
        return " + ".join(spec.label for spec, _ in self.parts)

    @property
    def name(self) -> str:
        """The names, for a person."""
        return " + ".join(spec.name for spec, _ in self.parts)


def runs_of(spec: LayerSpec | SideBySide, size: int) -> list[tuple[slice, LayerSpec]]:
    """The activations of a hidden layer of ``size`` neurons, each with where its neurons stand."""
    parts = spec.parts if isinstance(spec, SideBySide) else ((spec, size),)
    ends = list(itertools.accumulate(count for _, count in parts))
    return [(slice(end - n, end), one) for end, (one, n) in zip(ends, parts, strict=True)]


class Slopes(NamedTuple):
    """Slope range of one hidden layer, per neuron: float64 arrays of shape ``(n,)``."""

    alpha: Array
    beta: Array


def scalar_parts(
    spec: LayerSpec, arrays: Mapping[str, Any], shape: Shape
) -> tuple[tuple[LayerSpec, int], ...]:
    """An activation's neurons in their order: the scalar activation of each run, and its length.

    One run, but where neurons differ (PReLU with a slope per channel).
    """
    parts, size = ACTIVATIONS[spec.kind].parts, math.prod(shape)
    if parts is None:
        return ((replace(spec, inputs=()) if spec.inputs else spec, size),)
    runs = parts(values_of(spec.kind, spec.options, arrays, spec.name, shape))
    return tuple((LayerSpec(kind, spec.name, options), count) for kind, options, count in runs)


def neuron_slopes(parts: Sequence[tuple[LayerSpec, int]]) -> Slopes:
    """The slope range of every neuron of such runs."""
    ranges = [ACTIVATIONS[spec.kind].slopes(spec.options) for spec, _ in parts]
    counts = [count for _, count in parts]
    return Slopes(*(np.repeat(ends, counts) for ends in zip(*ranges, strict=True)))


def sources_of(layers: Sequence[LayerSpec]) -> dict[str, tuple[str, ...]]:
    """Whose outputs every layer takes: those it names, or that of the layer before it.

    Raises:
        NetworkError: for a name that no layer before has, which covers cycles.
    """
    known, before, found = {INPUT}, INPUT, {}
    for spec in layers:
        found[spec.name] = spec.inputs or (before,)
        for name in found[spec.name]:
            if name not in known:
                raise NetworkError(
                    f"{spec.name}: takes the output of {name!r}, which is no layer before it"
                )
        known.add(spec.name)
        before = spec.name
    return found


def heard(layers: Sequence[LayerSpec], output: str) -> list[LayerSpec]:
    """The layers that lead to the one named."""
    sources, needed = sources_of(layers), {output}
    for spec in reversed(layers):
        if spec.name in needed:
            needed.update(sources[spec.name])
    return [spec for spec in layers if spec.name in needed]


def plainly_wired(layers: Sequence[LayerSpec]) -> list[LayerSpec]:
    """The layers with no input named where it is the layer before."""
    before = [INPUT, *(spec.name for spec in layers)]
    return [
        replace(spec, inputs=()) if spec.inputs == (name,) else spec
        for name, spec in zip(before, layers, strict=False)
    ]
