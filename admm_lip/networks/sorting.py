"""Activations that sort pairs, as activations that act per neuron between two rotations.

GroupSort2 and MaxMin put ``(x_0, x_1)`` in order.  With s the sum and d the difference of a pair,

    (max, min) = ((s + |d|) / 2, (s - |d|) / 2),

so sorting is a rotation (times sqrt 2), then a function of every number by itself, and the rotation
back.  The sum passes unchanged: its slope range is [1, 1].  The difference is folded: [-1, 1].  The
chain of a network (``network.py``) takes the rotations into its matrices, and then nothing that
reads slope ranges needs to know that anything was sorted.

As multipliers of a pair this gives all of ``lambda I + gamma 11'`` (P. Pauli et al., ICLR 2024),
and more: because the sums are known exactly they may be weighted jointly, by any symmetric matrix
in place of the ``gamma``; on random networks of seven layers that is a factor 2 in the bound.

The chain's neurons are all sums, then all differences: :data:`HALF_ABS`, itself a supported layer.
NumPy and SciPy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..errors import NetworkError
from ..float64 import U
from .activations import SlopeRange
from .layers import AffineMap, Array, Shape

Indices = npt.NDArray[np.intp]

HALF_ABS = "half_abs"
SUM, DIFFERENCE = SlopeRange(1.0, 1.0), SlopeRange(-1.0, 1.0)
# Covers the rounding of the error bounds themselves.
_SLACK = 1.01


@dataclass(frozen=True)
class Sort:
    """One row of the table: whether the larger of two comes first."""

    descending: bool


SORTS: Mapping[str, Sort] = {"group_sort2": Sort(False), "max_min": Sort(True)}
# Activations that act on pairs of features; they take no options.
PAIRED = (*SORTS, HALF_ABS)


@dataclass(frozen=True, eq=False)
class RotationBack(AffineMap):
    """From the sums and folded differences to the sorted pairs.

    Attributes:
        descending: whether the larger of two comes first.
    """

    descending: bool = True


def check_even(name: str, kind: str, shape: Shape) -> None:
    """Raise :class:`NetworkError` unless the features (or channels) come in pairs."""
    if not shape or shape[0] % 2:
        what = "channels" if len(shape) > 1 else "features"
        raise NetworkError(
            f"{name}: {kind} works on pairs of {what} and needs an even number of them, got "
            f"{shape[0] if shape else 0}; change the width of the layer before it"
        )


def paired_value(kind: str, x: Array) -> Array:
    """A sort of pairs, or :data:`HALF_ABS`, of samples ``(batch, features or channels, *)``."""
    if kind == HALF_ABS:
        same, folded = np.split(x, 2, axis=1)
        return np.concatenate([same, np.abs(folded)], axis=1)
    pairs = np.sort(x.reshape(len(x), x.shape[1] // 2, 2, -1), axis=2)
    return (pairs[:, :, ::-1] if SORTS[kind].descending else pairs).reshape(x.shape)


def half_abs_slopes(size: int) -> tuple[Array, Array]:
    """Slope ranges of ``size`` neurons, the sums first: arrays alpha and beta."""
    pairs = [SUM] * (size // 2) + [DIFFERENCE] * (size // 2)
    alpha, beta = np.array(pairs).T
    return np.ascontiguousarray(alpha), np.ascontiguousarray(beta)


def rotated(first: AffineMap) -> AffineMap:
    """``first``, then all sums and all differences of pairs of its outputs.

    Every entry is rounded once, often not at all; what was lost is computed exactly (D. Knuth's
    two-sum) and bounded in ``error``.
    """
    even, odd = _pair_rows(first.shape, first.matrix.shape[0])
    parts = [exact_sum(first.matrix[even], sign * first.matrix[odd]) for sign in (1.0, -1.0)]
    lost = math.hypot(*(off for _, off in parts))
    bias = np.concatenate([first.bias[even] + first.bias[odd], first.bias[even] - first.bias[odd]])
    matrix = _stacked([matrix for matrix, _ in parts])
    _check_finite(matrix, bias)
    rounding = U * float(np.abs(bias).max(initial=0.0))
    return AffineMap(
        matrix,
        bias,
        _SLACK * (lost + math.sqrt(2.0) * first.error),
        first.shape,
        _SLACK * (rounding + 2.0 * first.bias_error),
    )


def rotation_back(sort: Sort, shape: Shape) -> RotationBack:
    """The second rotation, exact: entries 1/2 and -1/2."""
    size = math.prod(shape)
    even, odd = _pair_rows(shape, size)
    total, fold = np.arange(size // 2), size // 2 + np.arange(size // 2)
    up = 0.5 if sort.descending else -0.5
    rows = np.concatenate([even, odd, even, odd])
    columns = np.concatenate([total, total, fold, fold])
    halves = np.repeat([0.5, 0.5, up, -up], size // 2)
    matrix = sp.csr_array((halves, (rows, columns)), shape=(size, size))
    return RotationBack(matrix, np.zeros(size), 0.0, shape, descending=sort.descending)


def after_rotation_back(second: AffineMap, first: RotationBack) -> AffineMap:
    """``second`` after the rotation back, its columns rounded once at most."""
    even, odd = _pair_rows(first.shape, math.prod(first.shape))
    columns = second.matrix.tocsc() if sp.issparse(second.matrix) else second.matrix
    up = 1.0 if first.descending else -1.0
    parts = [exact_sum(0.5 * columns[:, even], 0.5 * columns[:, odd])]
    parts.append(exact_sum(0.5 * up * columns[:, even], -0.5 * up * columns[:, odd]))
    lost = math.hypot(*(off for _, off in parts))
    matrix = _stacked([matrix for matrix, _ in parts], columns=True)
    _check_finite(matrix, second.bias)
    error = _SLACK * (lost + second.error) + _halving_error(second.matrix)
    return AffineMap(matrix, second.bias, error, second.shape, second.bias_error)


def _pair_rows(shape: Shape, size: int) -> tuple[Indices, Indices]:
    """Where the first and the second of all pairs stand in the flattened vector."""
    order = np.arange(size).reshape(shape[0] // 2, 2, -1)
    return order[:, 0].ravel(), order[:, 1].ravel()


def exact_sum(a: Any, b: Any) -> tuple[Any, float]:
    """``a + b`` and the Frobenius norm of what rounding took from it, dense or sparse."""
    total = a + b
    part = total - a
    lost = (a - (total - part)) + (b - part)
    values = lost.data if sp.issparse(lost) else lost.ravel()
    largest = float(np.abs(values).max(initial=0.0))
    scaled = float(np.linalg.norm(values / largest)) if largest > 0.0 else 0.0
    return total, _SLACK * largest * scaled


def _halving_error(matrix: Any) -> float:
    """What halving may take from numbers so small that they underflow."""
    size = np.abs(matrix.data if sp.issparse(matrix) else matrix.ravel())
    count = np.count_nonzero((size > 0.0) & (size < 2.0**-1020))
    return 2.0 * float(count) * 2.0**-1074


def _stacked(parts: list[Any], columns: bool = False) -> Any:
    if sp.issparse(parts[0]):
        return sp.csr_array(sp.hstack(parts) if columns else sp.vstack(parts))
    return np.ascontiguousarray(np.hstack(parts) if columns else np.vstack(parts))


def _check_finite(matrix: Any, bias: Array) -> None:
    values = matrix.data if sp.issparse(matrix) else matrix
    if not (np.isfinite(values).all() and np.isfinite(bias).all()):
        raise NetworkError("the sum of two weights overflows; rescale the layers around the sort")
