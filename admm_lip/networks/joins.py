"""Layers that take several values: the sum, and values put one after the other.

One row each: the shape, the value on samples, and the map that it becomes (``lowering.py``).
NumPy and SciPy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..errors import NetworkError
from ..float64 import U
from .layers import AffineMap, Array, Shape
from .sorting import exact_sum

# Covers the rounding of the error bounds themselves.
_SLACK = 1.01


@dataclass(frozen=True)
class Join:
    """One row of the table.

    Attributes:
        shape: checks the shapes of the inputs against each other, and gives that of the output.
        apply: the join of samples ``(batch, *shape)``.
        merge: the join of maps of one space.
    """

    shape: Callable[[str, Sequence[Shape]], Shape]
    apply: Callable[[Sequence[Array]], Array]
    merge: Callable[[Sequence[AffineMap], Shape], AffineMap]


def _equal(name: str, shapes: Sequence[Shape]) -> Shape:
    if len(set(shapes)) > 1:
        raise NetworkError(
            f"{name}: adds values of the shapes {', '.join(map(str, shapes))}, batch apart; "
            "expected equal ones"
        )
    return shapes[0]


def _end_to_end(name: str, shapes: Sequence[Shape]) -> Shape:
    if len({shape[1:] for shape in shapes}) > 1:
        raise NetworkError(
            f"{name}: puts values of the shapes {', '.join(map(str, shapes))} one after the other "
            "along their first axis; expected the other axes to agree"
        )
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _added(values: Sequence[Array]) -> Array:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def summed(maps: Sequence[AffineMap], shape: Shape) -> AffineMap:
    """The sum of maps; what rounding takes from the entries is bounded."""
    total = maps[0]
    for one in maps[1:]:
        matrix, lost = exact_sum(total.matrix, one.matrix)
        bias = total.bias + one.bias
        rounding = U * float(np.abs(bias).max(initial=0.0))
        error = _SLACK * (lost + total.error + one.error)
        off = _SLACK * (rounding + total.bias_error + one.bias_error)
        if not (np.isfinite(bias).all() and math.isfinite(error)):
            raise NetworkError("a sum of two values overflows; rescale the layers before it")
        total = AffineMap(matrix, bias, error, shape, off)
    return total


def stacked(maps: Sequence[AffineMap], shape: Shape) -> AffineMap:
    """The outputs of maps, one map's after the other's: nothing is rounded."""
    matrices = [m.matrix for m in maps]
    if all(sp.issparse(matrix) for matrix in matrices):
        rows = sp.csr_array(sp.vstack(matrices))
    else:
        rows = np.vstack([dense(matrix) for matrix in matrices])
    error = _SLACK * math.hypot(*(m.error for m in maps))
    bias = np.concatenate([m.bias for m in maps])
    return AffineMap(rows, bias, error, shape, max(m.bias_error for m in maps))


def dense(matrix: Any) -> Array:
    """A matrix that may be sparse as an array."""
    return np.asarray(matrix.toarray() if sp.issparse(matrix) else matrix)


JOINS: Mapping[str, Join] = {
    "add": Join(_equal, _added, summed),
    # Along the first axis: features, or channels.
    "concatenate": Join(_end_to_end, lambda values: np.concatenate([*values], axis=1), stacked),
}
