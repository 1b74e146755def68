"""A network's matrices as exact rationals: every stored float is a dyadic one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedModule
from ..networks.activations import ACTIVATIONS, promised_only
from ..networks.index_maps import ZERO
from ..networks.layer_spec import scalar_parts
from ..networks.layers import RESHAPES, Array, Shape, Window
from ..networks.network import LayerSpec, Network, reshaped
from ..networks.sorting import HALF_ABS, SORTS

Whole = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Rational:
    """A matrix of rationals: whole numbers (Python's, of any length) over one denominator > 0."""

    over: Whole
    under: int

    @staticmethod
    def of(values: Array) -> Rational:
        """Finite floats, exactly."""
        fraction, exponent = np.frexp(np.asarray(values, dtype=np.float64))
        whole = np.ldexp(fraction, 53).astype(np.int64).astype(object)
        power = exponent.astype(np.int64) - 53
        least = int(min(power[fraction != 0.0].min(initial=0), 0))
        shifts = np.where(fraction != 0.0, power - least, 0).astype(object)
        return Rational(whole * 2**shifts, 2**-least)

    def __matmul__(self, other: Rational) -> Rational:
        return Rational(self.over.dot(other.over), self.under * other.under)

    def __mul__(self, other: Rational) -> Rational:
        return Rational(self.over * other.over, self.under * other.under)

    def __add__(self, other: Rational) -> Rational:
        under = math.lcm(self.under, other.under)
        a, b = under // self.under, under // other.under
        return Rational(self.over * a + other.over * b, under)

    def __neg__(self) -> Rational:
        return Rational(-self.over, self.under)

    @property
    def T(self) -> Rational:
        """The transpose."""
        return Rational(self.over.T, self.under)

    def rows(self) -> Rational:
        """A vector as a column, to scale the rows of a matrix."""
        return Rational(self.over[:, None], self.under)


def exact_chain(network: Network) -> tuple[list[Rational], list[LayerSpec]]:
    """The matrices ``W_0, ..., W_l`` without any rounding, and the activations between them.

    Raises:
        UnsupportedModule: for a layer that was read from constants that no float64 holds, and for
            a network that is no path of layers.
    """
    _refuse_inexact(network)
    shape, size = network.input_shape or (), network.size_in
    weights: list[Rational] = []
    activations: list[LayerSpec] = []
    current: Rational | None = None  # since the last activation; None is the identity
    for spec in network.layers:
        if spec.kind in _MATRICES:
            matrix, shape = _MATRICES[spec.kind](network, spec, shape)
            current = matrix if current is None else matrix @ current
            size = matrix.over.shape[0]
        elif spec.kind in RESHAPES:
            shape = reshaped(spec, shape)
        elif spec.kind in (*SORTS, HALF_ABS):
            if spec.kind in SORTS:
                turn = _rotation(shape)
                current = turn if current is None else turn @ current
            activations.append(LayerSpec(HALF_ABS, spec.name, {}))
            weights.append(identity(size) if current is None else current)
            current = _rotation_back(spec.kind, shape) if spec.kind in SORTS else None
        elif (scalar := _scalar(network, spec, shape)) is not None:
            activations.append(scalar)
            weights.append(identity(size) if current is None else current)
            current = None
    return [*weights, identity(size) if current is None else current], activations


def _refuse_inexact(network: Network) -> None:
    for spec in network.layers:
        if f"{spec.name}.error" in network.arrays:
            raise UnsupportedModule(
                f"{spec.name}: its constants are no floating-point numbers, so its matrix is not "
                "known exactly; verify the certificate without --exact"
            )
    if not network.is_path:
        raise UnsupportedModule(
            "network: has skip connections or branches, which the exact check does not handle; "
            "verify the certificate without --exact"
        )


def _scalar(network: Network, spec: LayerSpec, shape: Shape) -> LayerSpec | None:
    """The one function that an activation applies to each neuron; ``None`` of the identity."""
    several = ""
    if spec.kind in ACTIVATIONS:
        if not ACTIVATIONS[spec.kind].known:
            raise promised_only(spec.options)
        (scalar, _), *others = scalar_parts(spec, network.arrays, shape)
        if not others:
            slopes = ACTIVATIONS[scalar.kind].slopes(scalar.options)
            return None if set(slopes) == {1.0} else scalar
        several = " with several slopes"
    raise UnsupportedModule(
        f"{spec.name}: the exact check does not handle {spec.kind}{several}; verify the "
        "certificate without --exact"
    )


def identity(size: int) -> Rational:
    """The unit matrix."""
    return Rational(np.array(np.eye(size, dtype=np.int64), dtype=object), 1)


def diagonal(values: Rational) -> Rational:
    """A diagonal matrix."""
    return Rational(identity(len(values.over)).over * values.over, values.under)


def _rotation(shape: Shape) -> Rational:
    """Sums, then differences, of the pairs of neighbouring features or channels."""
    size = math.prod(shape)
    order = np.arange(size).reshape(shape[0] // 2, 2, -1)
    even, odd = order[:, 0].ravel(), order[:, 1].ravel()
    unit = identity(size).over
    return Rational(np.concatenate([unit[even] + unit[odd], unit[even] - unit[odd]]), 1)


def _rotation_back(kind: str, shape: Shape) -> Rational:
    """From the sums and the folded differences to the sorted pairs."""
    turn = _rotation(shape).over.T
    half = turn.shape[1] // 2
    sign = 1 if SORTS[kind].descending else -1
    return Rational(np.concatenate([turn[:, :half], sign * turn[:, half:]], axis=1), 2)


def _linear(network: Network, spec: LayerSpec, shape: Shape) -> tuple[Rational, Shape]:
    weight = network.arrays[f"{spec.name}.weight"]
    return Rational.of(weight), weight.shape[:1]


def _conv2d(network: Network, spec: LayerSpec, shape: Shape) -> tuple[Rational, Shape]:
    weight = network.arrays[f"{spec.name}.weight"]
    outputs, per_group = weight.shape[:2]
    window = Window.of(spec.options, weight.shape[2:], shape, spec.name)
    kernel, group = Rational.of(weight), outputs // spec.options["groups"]
    full = (outputs, *window.out)
    matrix = np.zeros((*full, *shape), dtype=object)
    for out, row, column, y, x, a, b in _places(window, shape, outputs):
        first = (out // group) * per_group
        matrix[out, row, column, first : first + per_group, y, x] = kernel.over[out, :, a, b]
    return Rational(matrix.reshape(math.prod(full), math.prod(shape)), kernel.under), full


def _avg_pool2d(network: Network, spec: LayerSpec, shape: Shape) -> tuple[Rational, Shape]:
    options = {**spec.options, "dilation": [1, 1]}
    window = Window.of(options, tuple(options["kernel_size"]), shape, spec.name)
    full = (shape[0], *window.out)
    matrix = np.zeros((*full, *shape), dtype=object)
    for channel, row, column, y, x, _, _ in _places(window, shape, shape[0]):
        matrix[channel, row, column, channel, y, x] = 1
    matrix = matrix.reshape(math.prod(full), math.prod(shape))
    counts = [math.prod(window.kernel)] * len(matrix)
    if options["divisor_override"] is not None:
        counts = [options["divisor_override"]] * len(matrix)
    elif not options["count_include_pad"]:
        counts = [int(count) for count in matrix.sum(axis=1)]
    under = math.lcm(*counts)
    return Rational(matrix * np.array([[under // c] for c in counts], dtype=object), under), full


def _places(window: Window, shape: Shape, channels: int) -> Any:
    """Every (channel, output row and column, input row and column, kernel row and column)."""
    for out, row, column, a, b in np.ndindex(channels, *window.out, *window.kernel):
        y = row * window.stride[0] - window.padding[0] + a * window.dilation[0]
        x = column * window.stride[1] - window.padding[2] + b * window.dilation[1]
        if 0 <= y < shape[1] and 0 <= x < shape[2]:
            yield out, row, column, y, x, a, b


def _elementwise(network: Network, spec: LayerSpec, shape: Shape) -> tuple[Rational, Shape]:
    weight = network.arrays.get(f"{spec.name}.weight", np.ones(()))
    return diagonal(Rational.of(np.broadcast_to(weight, shape).ravel())), shape


def _take(network: Network, spec: LayerSpec, shape: Shape) -> tuple[Rational, Shape]:
    index = network.arrays[f"{spec.name}.index"]
    matrix = np.zeros((index.size, math.prod(shape)), dtype=object)
    for row, column in enumerate(index.ravel()):
        if column != ZERO:
            matrix[row, int(column)] = 1
    return Rational(matrix, 1), index.shape


def _sum(network: Network, spec: LayerSpec, shape: Shape) -> tuple[Rational, Shape]:
    axes, keep = spec.options["axes"], spec.options["keep"]
    unit = identity(math.prod(shape)).over.reshape(*shape, -1)
    matrix = unit.sum(axis=tuple(axes), keepdims=keep)
    return Rational(matrix.reshape(-1, math.prod(shape)), 1), matrix.shape[:-1]


_MATRICES: dict[str, Callable[[Network, LayerSpec, Shape], tuple[Rational, Shape]]] = {
    "linear": _linear,
    "conv2d": _conv2d,
    "avg_pool2d": _avg_pool2d,
    "elementwise": _elementwise,
    "take": _take,
    "sum": _sum,
}
