"""Batches of Hermitian matrices: sizes, largest eigenvalues, and what is proven definite.

What overflows is not finite and proves nothing; what underflows is covered by constants that are
far below what anything else loses.  NumPy only.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...float64 import SQUARED_AWAY, TINY, U, gamma
from ...networks.layers import Array
from ..definite import SLACK

# Around what may overflow.
quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore")


def largest(p: Any) -> Array:
    """The largest eigenvalues of Hermitian matrices, computed and not proven."""
    found: Array = np.linalg.eigvalsh(p)[:, -1]
    return found


def sizes_of(matrices: Any) -> Array:
    """Frobenius norms, not below the exact ones."""
    squares = (np.abs(matrices) ** 2).sum(axis=(-2, -1))
    return np.asarray(np.sqrt(squares) * (1.0 + 1e-10) + SQUARED_AWAY, dtype=np.float64)


@quiet
def is_below(p: Any, lip: float) -> bool:
    """Whether ``lip^2 I - P`` is proven definite."""
    n, (unit, power) = p.shape[1], math.frexp(lip)
    half = np.ldexp(1.0, -power)
    y = -(p * half * half) / (unit * unit)
    lost = 4.0 * U * SLACK * (sizes_of(y) + 2.0)
    y[:, range(n), range(n)] += 1.0 - lost[:, None]
    return are_definite(y)


def are_definite(y: Any) -> bool:
    """Whether Hermitian matrices of a diagonal near 1 are proven positive definite."""
    n = y.shape[1]
    factor = gamma(8 * n + 32)
    diagonal = np.einsum("fii->fi", y).real
    shift = factor / (1.0 - factor) * np.abs(diagonal).sum(axis=1)
    shift = SLACK * (shift + 4.0 * U * (1.0 + np.abs(diagonal).max()))
    lowered = y.copy()
    lowered[:, range(n), range(n)] -= shift[:, None]
    if not np.isfinite(lowered).all():
        return False
    try:
        pivots = np.einsum("fii->fi", np.linalg.cholesky(lowered)).real
    except np.linalg.LinAlgError:
        return False
    return bool(np.isfinite(pivots).all()) and bool((pivots > 0.0).all())


def proven_largest(p: Any) -> Array | None:
    """Proven upper bounds on the largest eigenvalues, close to them; ``None`` where none is."""
    if not np.isfinite(p).all():
        return None
    n = p.shape[1]
    top = largest(p) * (1.0 + 1e-9 + 8.0 * n * gamma(8 * n + 32)) + TINY
    return top if is_below(p / top[:, None, None], 1.0) else None
