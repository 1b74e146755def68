"""A graph of layers as one chain of matrices: what skips a layer is carried through it.

Every value of a graph is an affine map of the outputs of the last hidden layer, the **state**.
Affine layers, sums and concatenations change the maps only.  When nothing more can be computed
without an activation, all activations whose inputs are known form the next hidden layer, and the
state is divided into their outputs, its segments.  The values that are still needed beside it are
carried: neurons ``phi(v) = v``, whose slope is known to be 1, stand beside the others.  The proof
and the solvers substitute such neurons (``dissipation_proof.py``), so nothing is lost: with the
inputs v and outputs w of all activations stacked, the chain's matrix inequality is the graph's,

    v = A w + B x,   w = phi(v),   f = C w + D x,   A strictly lower triangular,

    [[ L^2 I - D'D,       -B'T - D'C           ],
     [ .           , 2T - TA - A'T - C'C       ]] >= 0        (slopes in [0, 1]).

Carried is what is narrower: the values, or the segments of the state that they are made of.  A
graph that is a path has nothing to carry and gives the plain chain.  NumPy and SciPy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ..errors import NetworkError, UnsupportedModule
from ..float64 import U, gamma
from .activations import ACTIVATIONS
from .joins import JOINS, dense, stacked
from .layer_spec import (
    CARRIED,
    INPUT,
    LayerSpec,
    SideBySide,
    Slopes,
    heard,
    neuron_slopes,
    scalar_parts,
    sources_of,
)
from .layers import AFFINE, AffineMap, Array, Shape, check_size
from .max_pooling import expanded
from .sorting import (
    HALF_ABS,
    PAIRED,
    SORTS,
    RotationBack,
    after_rotation_back,
    half_abs_slopes,
    rotated,
    rotation_back,
)
from .vector_functions import VECTOR_FUNCTIONS

_SLACK = 1.01
# What part of a hidden layer: a layer's neurons, a value or a segment carried, and its name.
Key = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Chain:
    """The affine maps and activations of a network, neighbouring affine maps merged.

    Every activation acts per neuron; sorting pairs becomes ``half_abs`` between two rotations that
    the affine maps take in (``sorting.py``).

    Attributes:
        weights: ``(W_0, ..., W_l)``, float64, dense.
        biases: ``(b_0, ..., b_l)``, float64.
        slopes: one :class:`Slopes` per hidden layer (``l`` of them).
        errors: ``errors[k]`` bounds the Frobenius norm of the rounding error of ``W_k``; 0 where
            it is exactly the stored weights.
        bias_errors: ``bias_errors[k]`` bounds the rounding error of every entry of ``b_k``.
        names: per affine map, the names of the layers merged into it (none: the identity).
        activations: per hidden layer, its activation, or several side by side.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    slopes: tuple[Slopes, ...]
    errors: tuple[float, ...]
    bias_errors: tuple[float, ...]
    names: tuple[tuple[str, ...], ...]
    activations: tuple[LayerSpec | SideBySide, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """``(n_0, n_1, ..., n_l, n_{l+1})``."""
        return (self.weights[0].shape[1], *(w.shape[0] for w in self.weights))


@dataclass(frozen=True, eq=False)
class Value:
    """What a layer computes.

    Attributes:
        map: of one segment of the state or of all of it; ``None`` is the identity.
        segment: which segment; ``None`` is all of the state.
        shape: without the batch.
        names: the layers merged into the map.
    """

    map: AffineMap | None
    segment: int | None
    shape: Shape
    names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Its number of entries."""
        return math.prod(self.shape)


class Neurons(NamedTuple):
    """One activation, or one carried value, of a hidden layer: what it hears and what it hands on.

    ``parts`` are the scalar activations of its neurons; ``out`` is what follows the neurons at once
    (a rotation), ``None`` for nothing.
    """

    parts: tuple[tuple[LayerSpec, int], ...]
    heard: Value
    slopes: Slopes
    out: AffineMap | None = None


def lowered(
    layers: Sequence[LayerSpec], arrays: Mapping[str, Any], shapes: Mapping[str, Shape]
) -> Chain:
    """The chain of layers of which each takes the outputs of any layers before it.

    Args:
        layers: in an order in which they can be evaluated.
        arrays: of the network.
        shapes: of the input and of every layer's output.
    """
    for spec in layers:
        if spec.kind in VECTOR_FUNCTIONS and spec.kind != "max_pool2d":
            raise UnsupportedModule(
                f"{spec.name} ({spec.kind}): is supported as the last layer only, and there for a "
                "global certificate; leave it out (it does not change the class)"
            )
    layers, arrays, shapes = expanded(layers, arrays, shapes)
    work = _Lowering(arrays, shapes)
    sources = sources_of(layers)
    output = layers[-1].name if layers else INPUT
    waiting = heard(layers, output)
    while True:
        waiting = [spec for spec in waiting if not work.evaluated(spec, sources[spec.name])]
        if not waiting:
            return work.chain(output)
        ready = [s for s in waiting if is_activation(s) and sources[s.name][0] in work.values]
        later = [spec for spec in waiting if spec not in ready]
        wanted = {name for spec in later for name in sources[spec.name]} | {output}
        work.close(
            {spec.name: work.neurons(spec, sources[spec.name][0]) for spec in ready},
            [name for name in work.values if name in wanted],
        )
        waiting = later


class _Lowering:
    """The chain while it is being built: the sizes of the segments, and the known values."""

    def __init__(self, arrays: Mapping[str, Any], shapes: Mapping[str, Shape]) -> None:
        self.arrays, self.shapes = arrays, shapes
        self.sizes = [math.prod(shapes[INPUT])]
        self.values = {INPUT: Value(None, 0, shapes[INPUT])}
        self.maps: list[AffineMap] = []
        self.names: list[tuple[str, ...]] = []
        self.specs: list[LayerSpec | SideBySide] = []
        self.slopes: list[Slopes] = []

    def evaluated(self, spec: LayerSpec, inputs: Sequence[str]) -> bool:
        """Whether a layer could be computed without an activation; its value is then known."""
        if not all(name in self.values for name in inputs):
            return False
        given = [self.values[name] for name in inputs]
        if spec.kind in AFFINE:
            step = AFFINE[spec.kind].build(spec.name, spec.options, self.arrays, given[0].shape)
            value = _after(spec.name, step, given[0])
        elif spec.kind in JOINS:
            value = self._joined(spec, given)
        elif is_activation(spec):
            if not changes_nothing(spec):
                return False
            value = given[0]
        else:
            value = replace(given[0], shape=self.shapes[spec.name])
        self.values[spec.name] = value
        return True

    def _joined(self, spec: LayerSpec, given: Sequence[Value]) -> Value:
        names = tuple(dict.fromkeys([*(n for v in given for n in v.names), spec.name]))
        join, segments = JOINS[spec.kind], {v.segment for v in given}
        # Values of one segment are joined there: nothing is widened that need not be.
        alone = segments.pop() if len(segments) == 1 else None
        maps = [self._plain(v) if alone is not None else self._placed(v) for v in given]
        shape = join.shape(spec.name, [v.shape for v in given])
        return Value(join.merge(maps, shape), alone, shape, names)

    def neurons(self, spec: LayerSpec, source: str) -> Neurons:
        """An activation's neurons."""
        heard = self.values[source]
        if spec.kind in ACTIVATIONS:
            parts = scalar_parts(spec, self.arrays, heard.shape)
            return Neurons(parts, heard, neuron_slopes(parts))
        sort, out = SORTS.get(spec.kind), None
        if sort is not None:
            check_size(spec.name, heard.size, heard.size)
            plain = heard.map or _eye(heard.size, heard.shape)
            heard = replace(heard, map=rotated(replace(plain, shape=heard.shape)))
            out = rotation_back(sort, heard.shape)
        folded = ((LayerSpec(HALF_ABS, spec.name, {}), heard.size),)
        return Neurons(folded, heard, Slopes(*half_abs_slopes(heard.size)), out)

    def close(self, active: Mapping[str, Neurons], wanted: Sequence[str]) -> None:
        """The next hidden layer: these activations, and what carries the values ``wanted``."""
        # Keys are pairs: a layer may have any name.
        layer = {**{_key("layer", name): n for name, n in active.items()}, **self._carried(wanted)}
        self._affine([n.heard for n in layer.values()])
        slopes = zip(*(n.slopes for n in layer.values()), strict=True)
        self.slopes.append(Slopes(*(np.concatenate(part) for part in slopes)))
        parts = tuple(part for n in layer.values() for part in n.parts)
        self.specs.append(parts[0][0] if len(parts) == 1 else SideBySide(parts))
        places = {key: k for k, key in enumerate(layer)}
        kept = {name: self._moved(name, places) for name in wanted}
        outputs = {
            name: Value(n.out, places[_key("layer", name)], n.heard.shape)
            for name, n in active.items()
        }
        self.sizes = [n.heard.size for n in layer.values()]
        self.values = {**kept, **outputs}

    def _carried(self, wanted: Sequence[str]) -> dict[Key, Neurons]:
        """The values, or the segments that they are made of, whichever are fewer numbers."""
        values = {_key("value", name): self.values[name] for name in wanted}
        held = {v.segment for v in values.values() if v.segment is not None}
        known = all(v.segment is not None for v in values.values())
        if known and sum(self.sizes[s] for s in held) < sum(v.size for v in values.values()):
            whole = {s: Value(None, s, (self.sizes[s],)) for s in sorted(held)}
            values = {_key("segment", str(s)): value for s, value in whole.items()}
        return {key: _carry(" ".join(key), value) for key, value in values.items()}

    def _moved(self, name: str, places: Mapping[Key, int]) -> Value:
        """A carried value in the state that is next."""
        old = self.values[name]
        own = places.get(_key("value", name))
        if own is not None:
            return Value(None, own, old.shape)
        assert old.segment is not None  # segments are carried where every value is of one
        return replace(old, segment=places[_key("segment", str(old.segment))])

    def _affine(self, heard: Sequence[Value]) -> None:
        """The matrix of a layer whose parts hear these values."""
        names = tuple(dict.fromkeys(name for v in heard for name in v.names))
        what = " with ".join(names) or "an identity between two activations"
        check_size(what, sum(v.size for v in heard), sum(self.sizes))
        maps = [self._placed(v) for v in heard]
        self.maps.append(maps[0] if len(maps) == 1 else stacked(maps, ()))
        self.names.append(names)

    def _plain(self, value: Value) -> AffineMap:
        """The value as a map of its segment, or of all of the state where it has none."""
        if value.map is None:
            return _eye(value.size, value.shape)
        if isinstance(value.map, RotationBack):
            return AffineMap(value.map.matrix, value.map.bias, value.map.error, value.map.shape)
        return value.map

    def _placed(self, value: Value) -> AffineMap:
        """The value as a map of all of the state."""
        plain = self._plain(value)
        if value.segment is None or len(self.sizes) == 1:
            return plain
        before, after = (
            sum(part) for part in (self.sizes[: value.segment], self.sizes[value.segment + 1 :])
        )
        return widened(plain, before, after)

    def chain(self, output: str) -> Chain:
        """The chain, once ``output`` is known."""
        self._affine([self.values[output]])
        return Chain(
            weights=tuple(dense(m.matrix) for m in self.maps),
            biases=tuple(m.bias for m in self.maps),
            slopes=tuple(self.slopes),
            errors=tuple(m.error for m in self.maps),
            bias_errors=tuple(m.bias_error for m in self.maps),
            names=tuple(self.names),
            activations=tuple(self.specs),
        )


def is_activation(spec: LayerSpec) -> bool:
    """Whether a layer is not affine."""
    return spec.kind in ACTIVATIONS or spec.kind in PAIRED


def changes_nothing(spec: LayerSpec) -> bool:
    """Whether an activation is the identity (LeakyReLU of slope 1)."""
    if spec.kind not in ACTIVATIONS:
        return False
    alpha, beta = ACTIVATIONS[spec.kind].slopes(spec.options)
    return alpha == beta == 1.0


def _key(sort: str, name: str) -> Key:
    return sort, name


def _carry(name: str, value: Value) -> Neurons:
    ones = np.ones(value.size)
    return Neurons(((LayerSpec(CARRIED, name, {}), value.size),), value, Slopes(ones, ones))


def _after(name: str, step: AffineMap, value: Value) -> Value:
    """An affine layer of a value."""
    found = step if value.map is None else merged(step, value.map)
    return Value(found, value.segment, step.shape, (*value.names, name))


def merged(second: AffineMap, first: AffineMap) -> AffineMap:
    """``second`` after ``first``, with a bound on the error of the product.

    With sums of n products, ``fl(A B) = A B + E`` where ``|E| <= gamma_n |A| |B|`` in any order of
    summation and ``gamma_n = n u / (1 - n u)``; the maps' own errors a, b add
    ``a ||B|| + ||A|| b + a b``.  The factor 1.01 covers the rounding of this bound itself, and the
    last term underflow.  The bias ``A b_1 + b_2`` is bounded in the same way, entry by entry
    through ``|(A b)_i| <= ||A|| ||b||``.  Entries that are moved, or scaled by powers of two,
    lose nothing.
    """
    if isinstance(first, RotationBack):
        return after_rotation_back(second, first)
    inner = second.matrix.shape[1]
    product, moved = second.matrix @ first.matrix, second.matrix @ first.bias
    terms = _terms(second.matrix)
    left, right = frobenius(second.matrix), frobenius(first.matrix)
    error = gamma(terms) * left * right + second.error * (right + first.error) + left * first.error
    tiny = math.sqrt(product.shape[0] * product.shape[1]) * inner * 2.0**-1022
    if terms == 0 and not (_underflows(product) or _underflows(moved)):
        tiny = 0.0
    bias = moved + second.bias
    length, off = frobenius(first.bias), math.sqrt(inner) * first.bias_error
    size = left * length + float(np.abs(second.bias).max(initial=0.0))
    added = U if moved.any() and second.bias.any() else 0.0
    bias_error = 2.0 * (gamma(terms) + added) * size + second.bias_error + left * off
    bias_error += second.error * (length + off)
    if not (np.isfinite(bias).all() and math.isfinite(error) and math.isfinite(bias_error)):
        raise NetworkError("merging neighbouring affine layers overflows; rescale their weights")
    return AffineMap(product, bias, 1.01 * error + tiny, second.shape, 1.01 * bias_error + tiny)


def _terms(matrix: Any) -> int:
    """How many products an entry of ``matrix @ B`` sums; 0 where every one is exact by itself."""
    if not sp.issparse(matrix):
        return int(matrix.shape[1])
    rows = sp.csr_array(matrix)
    most = int(np.diff(rows.indptr).max(initial=0))
    halves = np.abs(np.frexp(rows.data)[0])
    return 0 if most <= 1 and bool(np.isin(halves, (0.0, 0.5)).all()) else most


def _underflows(matrix: Any) -> bool:
    """Whether a number that is not zero is so small that it may have lost digits."""
    size = np.abs(matrix.data if sp.issparse(matrix) else matrix)
    return bool(((size > 0.0) & (size < 2.0**-1020)).any())


def widened(plain: AffineMap, before: int, after: int) -> AffineMap:
    """A map that does not hear the numbers before and after its own."""
    rows = len(plain.bias)
    if sp.issparse(plain.matrix):
        empty = [sp.csr_array((rows, n)) for n in (before, after)]
        return replace(plain, matrix=sp.csr_array(sp.hstack([empty[0], plain.matrix, empty[1]])))
    zeros = [np.zeros((rows, n)) for n in (before, after)]
    return replace(plain, matrix=np.hstack([zeros[0], plain.matrix, zeros[1]]))


def _eye(size: int, shape: Shape) -> AffineMap:
    return AffineMap(sp.csr_array(sp.eye_array(size)), np.zeros(size), 0.0, shape)


def frobenius(matrix: Any) -> float:
    """Frobenius norm, rounded up."""
    data = (matrix if isinstance(matrix, np.ndarray) else matrix.data).ravel()
    largest = float(np.abs(data).max(initial=0.0))
    if largest == 0.0:
        return 0.0
    return largest * float(np.linalg.norm(data / largest)) * (1.0 + 1e-9)
