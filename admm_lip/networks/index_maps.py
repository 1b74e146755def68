"""Entries moved, repeated, left out or put to zero, and sums over axes: matrices of ones and zeros.

Whatever a permutation, a slice, a pad by zeros or a broadcast does, it does to the array of
positions as well: :func:`positions` goes through NumPy's function, and what comes out is the index
of a ``take`` layer.  Nothing is rounded.  NumPy and SciPy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..errors import NetworkError
from .activations import Options
from .affine import AffineKind, AffineMap, Array, Shape, is_bool

Indices = npt.NDArray[np.int64]
# In place of a position: a zero.
ZERO = -1


def positions(shape: Shape) -> Indices:
    """Where every entry of a sample stands in the flattened vector.

    Example:
        >>> positions((2, 2)).T.tolist()
        [[0, 2], [1, 3]]
    """
    return np.arange(math.prod(shape), dtype=np.int64).reshape(shape)


def keeps_order(index: npt.NDArray[Any], size: int) -> bool:
    """Whether an index takes all of a vector as it is, so that only its shape changes."""
    return index.size == size and bool((index.ravel() == np.arange(size)).all())


def padded(x: npt.NDArray[Any], widths: Sequence[tuple[int, int]]) -> npt.NDArray[Any]:
    """Zeros (:data:`ZERO`) before and after along every axis; less than none leaves entries out.

    Example:
        >>> padded(np.array([5, 6]), [(-1, 2)]).tolist()
        [6, -1, -1]
    """
    for axis, (before, after) in enumerate(widths):
        end = x.shape[axis] + min(after, 0)
        x = x[(slice(None),) * axis + (slice(max(-before, 0), max(end, 0)),)]
    grown = [(max(before, 0), max(after, 0)) for before, after in widths]
    return np.pad(x, grown, constant_values=ZERO)


def wrapped(shape: Shape, widths: Sequence[int]) -> Indices:
    """Positions in an image padded around: so far above, below, to the left and to the right.

    Example:
        >>> wrapped((1, 1, 3), (0, 0, 1, 0)).tolist()
        [[[2, 0, 1, 2]]]
    """
    top, bottom, left, right = widths
    grown = ((0, 0), (top, bottom), (left, right))
    return np.pad(positions(shape), grown, mode="wrap")


def _index(name: str, arrays: Mapping[str, Array], shape: Shape) -> Indices:
    index = arrays.get(f"{name}.index")
    if index is None or index.size == 0:
        raise NetworkError(f"{name}: expected a non-empty array {name}.index")
    whole = np.asarray(index, dtype=np.float64)
    size = math.prod(shape)
    if (whole != np.floor(whole)).any() or whole.min() < ZERO or whole.max() >= size:
        raise NetworkError(
            f"{name}.index: expected whole numbers from {ZERO} to {size - 1}, positions in a value "
            f"of shape {shape}"
        )
    return whole.astype(np.int64)


def _take_shape(name: str, options: Options, arrays: Mapping[str, Array], shape: Shape) -> Shape:
    return _index(name, arrays, shape).shape


def _take(name: str, options: Options, arrays: Mapping[str, Array], shape: Shape) -> AffineMap:
    index = _index(name, arrays, shape)
    rows = np.flatnonzero(index.ravel() != ZERO)
    columns = index.ravel()[rows]
    size = (index.size, math.prod(shape))
    matrix = sp.csr_array((np.ones(len(rows)), (rows, columns)), shape=size)
    return AffineMap(matrix, np.zeros(index.size), 0.0, index.shape)


def _apply_take(name: str, options: Options, arrays: Mapping[str, Array], x: Array) -> Array:
    index = _index(name, arrays, x.shape[1:])
    taken = x.reshape(len(x), -1)[:, index]
    return np.where(index == ZERO, 0.0, taken)


def _axes(name: str, options: Options, shape: Shape) -> tuple[int, ...]:
    axes = options["axes"]
    if len(set(axes)) != len(axes) or max(axes) >= len(shape):
        raise NetworkError(
            f"{name}: sums over the axes {list(axes)} of a value of shape {shape}, batch apart; "
            "expected different ones that it has"
        )
    return tuple(axes)


def _sum_shape(name: str, options: Options, arrays: Mapping[str, Array], shape: Shape) -> Shape:
    axes, keep = _axes(name, options, shape), options["keep"]
    kept = ((1 if k in axes else n) for k, n in enumerate(shape) if keep or k not in axes)
    return tuple(kept)


def _sum(name: str, options: Options, arrays: Mapping[str, Array], shape: Shape) -> AffineMap:
    out = _sum_shape(name, options, arrays, shape)
    kept = _sum_shape(name, {**options, "keep": True}, arrays, shape)
    rows = np.broadcast_to(positions(kept), shape).ravel()
    size = (math.prod(out), math.prod(shape))
    matrix = sp.csr_array((np.ones(rows.size), (rows, np.arange(rows.size))), shape=size)
    return AffineMap(matrix, np.zeros(size[0]), 0.0, out)


def _apply_sum(name: str, options: Options, arrays: Mapping[str, Array], x: Array) -> Array:
    axes = tuple(1 + k for k in _axes(name, options, x.shape[1:]))
    return np.asarray(x.sum(axis=axes, keepdims=options["keep"]))


def _are_axes(value: Any) -> bool:
    whole = isinstance(value, list | tuple) and all(type(k) is int and k >= 0 for k in value)
    return whole and 0 < len(value) <= 32


TAKE = AffineKind({}, _take_shape, _take, _apply_take, lambda *layer: 0, arrays=("index",))
SUM = AffineKind(
    {"axes": _are_axes, "keep": is_bool},
    _sum_shape,
    _sum,
    _apply_sum,
    lambda name, options, arrays, shape: math.prod(shape[k] for k in _axes(name, options, shape)),
    arrays=(),
)
