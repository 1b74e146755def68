"""Whether a symmetric matrix is positive definite, proven by a Cholesky factorisation.

The last two steps of ``proof.py``, for any block tridiagonal matrix that was scaled to a diagonal
near 1 and whose distance from the exact one is bounded.  NumPy and SciPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg as sl

from ..float64 import FLOOR, U, gamma
from ..networks.layers import Array

# Covers the rounding of the bound itself, which sums some thousands of positive terms.
SLACK = 1.01


@dataclass(frozen=True, eq=False)
class ScaledLmi:
    """The assembled matrix F, scaled to a diagonal near 1, and how far it is from the exact one.

    Attributes:
        diagonal: the diagonal blocks; a vector stands for a diagonal matrix.
        lower: ``lower[k]`` is block ``(k+1, k)``.
        error: bound on the spectral norm of exact minus assembled.
    """

    diagonal: tuple[Array, ...]
    lower: tuple[Array, ...]
    error: float

    def shift(self) -> float:
        """The c of ``proof.py``: what must be taken off the diagonal before factoring."""
        sizes = [len(d) for d in self.diagonal]
        terms = max(a + b for a, b in zip([0, *sizes], sizes, strict=False)) + 4
        factor = gamma(terms)
        trace = sum(float(np.sum(_diag(d))) for d in self.diagonal)
        largest = max(float(np.max(np.abs(_diag(d)))) for d in self.diagonal)
        cholesky = factor / (1.0 - factor) * trace
        subtraction = 2.0 * U * (1.0 + largest)
        return SLACK * (self.error + cholesky + subtraction) + sum(sizes) * terms * FLOOR


def failing_block(lmi: ScaledLmi, shift: float) -> str | None:
    """Step 3: the Cholesky factorisation of ``F - shift I``, from the input to the output."""
    if not shift < 0.1:
        return f"the rounding margin is {shift:.2g}, too large for a proof in double precision"
    half: Array | None = None
    for k, block in enumerate(lmi.diagonal):
        if half is None and block.ndim == 1:  # a diagonal block of its own: its factor is known
            pivots = block - shift
            if not (np.isfinite(pivots).all() and pivots.min() > 0.0):
                return _not_definite(k)
            half = lmi.lower[0].T / np.sqrt(pivots)[:, None]
            continue
        schur: Array = np.diag(block) if block.ndim == 1 else block.copy()
        schur[np.diag_indices_from(schur)] -= shift
        if half is not None:
            schur = schur - half.T @ half
        factor = _cholesky(schur)
        if factor is None:
            return _not_definite(k)
        if k < len(lmi.lower):
            half = sl.solve_triangular(factor, lmi.lower[k].T, lower=True, check_finite=False)
    return None


def _cholesky(matrix: Array) -> Array | None:
    """Lower factor, or ``None`` unless every pivot is positive and every entry finite."""
    if not np.isfinite(matrix).all():
        return None
    try:
        factor = np.asarray(np.linalg.cholesky(matrix), dtype=np.float64)
    except np.linalg.LinAlgError:
        return None
    sound = bool(np.isfinite(factor).all()) and bool((np.diag(factor) > 0.0).all())
    return factor if sound else None


def _not_definite(k: int) -> str:
    return f"the matrix inequality does not hold through rounding (it fails in block {k})"


def inverse_root(values: Array) -> Array:
    """Powers of two s with ``s^2 values`` in [1/2, 2)."""
    return np.asarray(np.ldexp(1.0, -(np.frexp(values)[1] // 2)), dtype=np.float64)


def _diag(block: Array) -> Array:
    return block if block.ndim == 1 else np.diag(block)
