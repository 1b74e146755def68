"""What an affine layer is: its matrix, its row in the table, its stored arrays.

Vectors are flattened in torch's (channel, row, column) order.  NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NetworkError, UnsupportedModule
from .activations import Options

Array = npt.NDArray[np.float64]
Shape = tuple[int, ...]

# A dense float64 matrix of this many entries takes 1 GiB.
MAX_ENTRIES = 2**27
# No stride, padding or divisor of a network is larger; what is computed of them stays exact.
_MAX_INT = 2**31 - 1


@dataclass(frozen=True, eq=False)
class AffineMap:
    """``x -> matrix x + bias`` on flattened inputs.

    Attributes:
        matrix: dense or sparse float64, shape ``(outputs, inputs)``.
        bias: float64, shape ``(outputs,)``.
        error: bound on the Frobenius norm of ``matrix`` minus the map it stands for.
        shape: shape of the output before flattening, without the batch.
        bias_error: bound on every entry of ``bias`` minus the bias it stands for.
    """

    matrix: Any
    bias: Array
    error: float
    shape: Shape
    bias_error: float = 0.0


@dataclass(frozen=True)
class AffineKind:
    """One row of the table.

    Attributes:
        options: from an option's name to whether a value of it is admitted.
        shape: checks a layer against the shape of its input, and gives that of its output.
        build: the layer's matrix.
        apply: the layer on samples ``(batch, *shape)``, in float64: what ``build`` is the matrix
            of, without forming it.
        terms: how many products every output sums, of a layer on an input of some shape.
        arrays: which it may hold; ``error`` bounds the rounding of the two before it.
        spatial: whether it works on channels, rows and columns.
    """

    options: Mapping[str, Callable[[Any], bool]]
    shape: Callable[[str, Options, Mapping[str, Array], Shape], Shape]
    build: Callable[[str, Options, Mapping[str, Array], Shape], AffineMap]
    apply: Callable[[str, Options, Mapping[str, Array], Array], Array]
    terms: Callable[[str, Options, Mapping[str, Array], Shape], int]
    arrays: tuple[str, ...] = ("weight", "bias", "error")
    spatial: bool = False


def is_int(least: int) -> Callable[[Any], bool]:
    """Whether a value is a whole number, not too small."""
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= _MAX_INT


def are_ints(count: int, least: int) -> Callable[[Any], bool]:
    """Whether a value is so many whole numbers, none too small."""
    check = is_int(least)
    return lambda v: isinstance(v, list | tuple) and len(v) == count and all(map(check, v))


def is_bool(value: Any) -> bool:
    """Whether a value is true or false."""
    return isinstance(value, bool)


def check_size(name: str, rows: int, columns: int, limit: int = MAX_ENTRIES) -> None:
    """Refuse a matrix too large to be held densely."""
    if rows * columns > limit:
        raise UnsupportedModule(
            f"{name}: its matrix would be {rows} x {columns}, above the limit of {limit} entries "
            f"({limit / 2**27:g} GiB); use a smaller input, a larger stride or fewer channels"
        )


def stored_array(name: str, arrays: Mapping[str, Array], key: str, ndim: int) -> Array:
    """A stored array as float64, of so many dimensions."""
    array = arrays.get(f"{name}.{key}")
    if array is None:
        raise NetworkError(f"{name}: its {key} is missing; expected an array {name}.{key}")
    if array.ndim != ndim or 0 in array.shape:
        raise NetworkError(
            f"{name}.{key}: expected a non-empty array of {ndim} dimensions, "
            f"got shape {array.shape}"
        )
    return np.asarray(array, dtype=np.float64)


def stored_bias(name: str, arrays: Mapping[str, Array], size: int) -> Array:
    """The stored bias, or zeros."""
    if f"{name}.bias" not in arrays:
        return np.zeros(size)
    bias = stored_array(name, arrays, "bias", 1)
    if bias.shape != (size,):
        raise NetworkError(f"{name}.bias: expected shape {(size,)}, got {bias.shape}")
    return bias


def stored_errors(name: str, arrays: Mapping[str, Array]) -> tuple[float, float]:
    """What ``<name>.error`` says: how far weight and bias are from those they stand for.

    Constants of a file that no float64 holds are kept rounded; the first of the two numbers bounds
    the Frobenius norm of the weight's error, the second every entry of the bias's.
    """
    if f"{name}.error" not in arrays:
        return 0.0, 0.0
    errors = stored_array(name, arrays, "error", 1)
    if errors.shape != (2,) or errors.min() < 0.0:
        raise NetworkError(f"{name}.error: expected two bounds >= 0, got {errors.tolist()!r:.60}")
    return float(errors[0]), float(errors[1])
