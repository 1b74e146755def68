"""Largest eigenvalues of large matrices: a decomposition would be most of the work.

The largest one by Lanczos: at order 6,272 an eigendecomposition takes 44 s where one elimination
takes a few.  The iteration (ARPACK's, restarted) starts from a fixed vector, so the same matrix
gives the same digits.

Those above a level where a matrix nearby was seen before, with its leading vectors Q of q columns
(:func:`eigenpairs_above`).  A Chebyshev polynomial that is at most 1 up to the least of their
Rayleigh quotients lets those above outgrow the rest, and a projection onto what it leaves gives
eigenvalues and vectors:

    Q+ = orth(T_d(2 M / b - I) Q),      b = min_i q_i' M q_i,      Q+' M Q+ = R diag(theta) R'.

Of order 266, with 30 above, that takes a sixth of a decomposition.  An eigenvector orthogonal to Q
is missed: who needs all of them measures what comes of it (:func:`is_below`).  What comes back is
computed, never a proof.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk, ssyrk
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

Array = NDArray[np.float64]

# Up to this order a decomposition is as fast.
_DENSE = 1000
# Residual relative to the eigenvalue, whose own error is about its square over the relative gap.
_ACCURACY = 1e-7
_BASIS = 32
_RESTARTS = 20
# From this order on vectors are refined, as long as they are at most this share of all; how many
# are kept beyond those above the level, and how far at most the damped part reaches towards it.
WIDE, _SHARE, _BESIDE, _DAMPED = 128, 0.4, 12, 0.85
# How far above the Rayleigh quotients the largest eigenvalue is looked for, relatively.
DEGREE = 6
_ROOMS = (1e-9, 1e-7, 1e-6, 1e-5, 1e-4)


_SYRK = {torch.float64: dsyrk, torch.float32: ssyrk}


def gram(matrix: Tensor) -> Tensor:
    """The smaller of A'A and AA', of a square matrix A'A.

    Of wide matrices one triangle is computed and mirrored, which torch does not offer.
    """
    tall = matrix if matrix.shape[1] <= matrix.shape[0] else matrix.T
    syrk = _SYRK.get(matrix.dtype)
    if tall.shape[1] < WIDE or syrk is None or matrix.device.type != "cpu":
        return tall.T @ tall
    values = tall.detach().numpy()
    if values.flags.c_contiguous:
        half = torch.from_numpy(syrk(1.0, values.T, lower=True))
    else:
        half = torch.from_numpy(syrk(1.0, values, trans=True, lower=True))
    both = half + half.T
    both.diagonal().mul_(0.5)
    return both


class Leading(NamedTuple):
    """Eigenvalues above a level in rising order, their vectors, and with them a few of those below.

    ``basis`` is what the search in a matrix nearby begins from; ``None`` where that does not pay.
    """

    values: Tensor
    vectors: Tensor
    basis: Tensor | None


def eigenpairs_above(matrix: Tensor, level: float, basis: Tensor | None = None) -> Leading:
    """All eigenvalues of a symmetric matrix above a level, as far as ``basis`` shows them.

    Args:
        matrix: symmetric, its eigenvalues at least 0.
        level: positive.
        basis: of a matrix nearby; without one that fits the matrix is decomposed.

    Example:
        >>> found = eigenpairs_above(torch.diag(torch.tensor([1.0, 3.0]).double()), 2.0)
        >>> found.values.tolist(), found.vectors.abs().tolist()
        ([3.0], [[0.0], [1.0]])
    """
    if basis is not None and len(basis) == len(matrix):
        values, vectors = _refined(matrix, basis, _DAMPED * level)
        if float(values[0]) < level:
            return _leading(values, vectors, level)
    values, vectors = torch.linalg.eigh(matrix)
    return _leading(values, vectors, level)


def top_within(matrix: Tensor, basis: Tensor | None) -> float:
    """What the largest eigenvalue of a symmetric matrix is within, or itself without a basis.

    It is a Rayleigh quotient raised until a Cholesky factorisation succeeds.
    """
    if basis is not None and len(basis) == len(matrix):
        top = float(_refined(matrix, basis, math.inf)[0][-1])
        finest = 16 * torch.finfo(matrix.dtype).eps
        for room in _ROOMS:
            if room > finest and is_below(matrix, (1.0 + room) * top):
                return (1.0 + room) * top
    return top_eigenvalue(matrix)


def is_below(matrix: Tensor, level: float) -> bool:
    """Whether all eigenvalues of a symmetric matrix are below a level, by one factorisation."""
    slack = -matrix
    slack.diagonal().add_(level)
    return int(torch.linalg.cholesky_ex(slack)[1]) == 0


def _leading(values: Tensor, vectors: Tensor, level: float) -> Leading:
    order, columns = vectors.shape
    first = int(torch.searchsorted(values, level, right=True))
    beside = order // _BESIDE
    pays = order >= WIDE and columns - first + beside <= _SHARE * order
    basis = vectors[:, max(0, first - beside) :] if pays else None
    return Leading(values[first:], vectors[:, first:], basis)


def _refined(matrix: Tensor, basis: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues in rising order and vectors, within the filtered span of a basis."""
    image = matrix @ basis
    edge = min(float((basis * image).sum(0).min()), most)
    before, now = basis, (2.0 / edge) * image - basis
    for _ in range(DEGREE - 1):
        before, now = now, torch.addmm(now, matrix, now, beta=-2.0, alpha=4.0 / edge).sub_(before)
    span = torch.linalg.qr(now / torch.linalg.vector_norm(now, dim=0))[0]
    values, turn = torch.linalg.eigh(span.T @ (matrix @ span))
    return values, span @ turn


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
