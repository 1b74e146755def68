"""Largest eigenvalues of large matrices, by Lanczos: a decomposition would be most of the work.

At order 6,272 an eigendecomposition takes 44 s where one elimination takes a few.  The iteration
(ARPACK's, restarted) starts from a fixed vector, so the same matrix gives the same digits.  What
comes back is computed, never a proof.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

Array = NDArray[np.float64]

# Up to this order a decomposition is as fast.
_DENSE = 1000
# Residual relative to the eigenvalue, whose own error is about its square over the relative gap.
_ACCURACY = 1e-7
_BASIS = 32
_RESTARTS = 20


def top_eigenpair(matrix: Tensor) -> tuple[float, Tensor]:
    """The largest eigenvalue of a symmetric matrix and its vector.

    Raises:
        torch.linalg.LinAlgError: for entries that are not finite.

    Example:
        >>> value, vector = top_eigenpair(torch.diag(torch.tensor([1.0, 3.0]).double()))
        >>> value, vector.abs().tolist()
        (3.0, [0.0, 1.0])
    """
    if matrix.shape[0] > _DENSE and matrix.device.type == "cpu":
        values = matrix.detach().numpy()
        found = _lanczos(lambda x: values @ x, len(values))
        if found is not None:
            return found[0], torch.from_numpy(found[1])
    top, vectors = torch.linalg.eigh(matrix)
    return float(top[-1]), vectors[:, -1]


def top_eigenvalue(matrix: Tensor) -> float:
    """The largest eigenvalue of a symmetric matrix."""
    if matrix.shape[0] > _DENSE and matrix.device.type == "cpu":
        return top_eigenpair(matrix)[0]
    return float(torch.linalg.eigvalsh(matrix)[-1])


def _lanczos(product: Callable[[Array], Array], order: int) -> tuple[float, Array] | None:
    """The largest eigenvalue and its vector; ``None`` where the iteration does not settle."""
    operator: Any = LinearOperator((order, order), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(order)
    if not np.any(product(start)):
        return 0.0, start / float(np.linalg.norm(start))
    try:
        values, vectors = eigsh(
            operator, k=1, which="LA", v0=start, ncv=_BASIS, tol=_ACCURACY, maxiter=_RESTARTS
        )
    except ArpackError:  # no convergence among them
        return None
    return float(values[0]), np.ascontiguousarray(vectors[:, 0])
