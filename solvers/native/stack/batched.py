"""Cholesky factors of many small matrices: one of them by LAPACK itself, more by torch in one call.

A call of torch costs several times the work on a matrix of order 20, twice SciPy's on one of order
128, and as much on one of order 200.  NumPy's factorisation tells of a stack only that one of its
matrices had no factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import lapack

from ...threads import blas_has_one_thread

# Of float64, or of float32 all through.
Array = NDArray[Any]
Mask = NDArray[np.bool_]
# A matrix of a larger order is factored by torch also where it is alone.
_SMALL, _SMALL_ON_THREADS = 150, 100


def _lapack(name: str, like: Array) -> Any:
    return getattr(lapack, ("s" if like.dtype == np.float32 else "d") + name)


def cholesky(matrices: Array) -> tuple[Array, Mask]:
    """Lower factors, and which of the matrices are positive definite.

    Example:
        >>> factors, definite = cholesky(np.array([[[4.0]], [[-1.0]]]))
        >>> float(factors[0, 0, 0]), definite.tolist()
        (2.0, [True, False])
    """
    most = _SMALL if blas_has_one_thread() else _SMALL_ON_THREADS
    if len(matrices) == 1 and matrices.shape[-1] <= most:
        upper, info = _lapack("potrf", matrices)(matrices[0].T, lower=0, clean=1)
        factors, failed = upper.T[None], np.array([info != 0])
    else:
        found, codes = torch.linalg.cholesky_ex(torch.from_numpy(matrices))
        factors, failed = found.numpy(), codes.numpy() != 0
    return factors, ~failed & np.isfinite(factors.trace(axis1=1, axis2=2))


def inverse(factors: Array) -> Array:
    """``(K K')^{-1}``."""
    return np.asarray(torch.cholesky_inverse(torch.from_numpy(factors)).numpy())


def solve(factors: Array, right: Array) -> Array:
    """``(K K')^{-1}`` times columns."""
    if len(factors) > 1:
        found = torch.cholesky_solve(torch.from_numpy(right), torch.from_numpy(factors))
        return np.asarray(found.numpy())
    found = _lapack("potrs", factors)(factors[0].T, right[0], lower=0)[0]
    return np.ascontiguousarray(found)[None]
