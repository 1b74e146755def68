"""Proven upper bounds of the norms of layers whose rows and columns are scaled, sample by sample.

Rows and columns of units that are constant on a ball are scaled by 0 and taken out, others by the
steepest slope, and the Gram matrix G on the smaller side is formed.  With c a little above its
largest eigenvalue a Cholesky factorisation of ``c I - G - (errors) I`` that runs to completion
proves ``||A||^2 <= c`` (S. Rump, Verification of positive definiteness, BIT 46, 2006;
``rounding.py`` has the terms).  An iteration only finds the c to try; it is never trusted.

For a convolution G is sparse, and with the pixels ordered row by row it is banded, so that its
factor costs ``n b^2`` for a band of b.  Where that is too much, the norm of the unmasked layer
stands in, itself proven the same way, on a torus (``torus_norm.py``) or by
``sqrt(||A||_1 ||A||_inf)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg as sl
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import ArpackError, eigsh
from torch import Tensor

from ..float64 import TINY
from ..rounding import SLACK, gamma, proven_norms
from .convolutions import Convolution
from .linear_operator import Operator, Shape
from .operators import ScaledInputs
from .torus_norm import torus_norm

Array = npt.NDArray[np.float64]
# Multiplications that one factorisation may cost (a second or two), and entries of its band.
_WORK = 2e10
_BAND = 2**27
# Entries of a sparse matrix, were it dense.
_ENTRIES = 2**33
# Entries of a dense matrix of which many samples' are factored together, and of all of these.
_TOGETHER = 2**15
_BATCH = 2**22
# Relative excess over the eigenvalue found that a proof is tried with.
_EXCESS = (1e-6, 1e-4, 1e-2, 1e-1)
# Scaling rounds every entry twice.
_SCALED = 1.0 + 1e-12


class ScaledNorms:
    """Upper bounds of ``||diag(r) W diag(c)||``, in float64 on the CPU."""

    @cached_property
    def whole(self) -> float:
        """Of the layer itself; inf where it has entries that are not finite."""
        return self._norm(None, None)

    def scaled(self, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        """Bounds of each sample, ``(batch,)``, never above what the layer's own norm gives.

        Args:
            rows: r >= 0, ``(batch, size_out)``; ``None`` is 1.
            columns: c >= 0, ``(batch, size_in)``; at least one of the two is given.
        """
        given = [part for part in (rows, columns) if part is not None]
        most = torch.ones(len(given[0]), dtype=torch.float64)
        for part in given:
            most = most * part.amax(dim=1) * _SCALED
        return torch.minimum(self._each(rows, columns), most * self.whole)

    def _each(self, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        count = next(len(part) for part in (rows, columns) if part is not None)
        sides = [[None] * count if part is None else list(part) for part in (rows, columns)]
        found = [self._norm(r, c) for r, c in zip(*sides, strict=True)]
        return torch.tensor(found, dtype=torch.float64)

    def _norm(self, rows: Tensor | None, columns: Tensor | None) -> float:
        raise NotImplementedError


class _DenseNorms(ScaledNorms):
    """Of a matrix."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def _each(self, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        if self.weight.numel() > _TOGETHER:
            return super()._each(rows, columns)
        count = next(len(part) for part in (rows, columns) if part is not None)
        parts, size = [], max(1, _BATCH // self.weight.numel())
        for start in range(0, count, size):
            part = slice(start, start + size)
            matrices = self.weight if rows is None else rows[part, :, None] * self.weight
            matrices = matrices if columns is None else matrices * columns[part, None]
            parts.append(proven_norms(matrices) * _SCALED)
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def _norm(self, rows: Tensor | None, columns: Tensor | None) -> float:
        part = self.weight
        if rows is not None:
            part = part[rows > 0.0] * rows[rows > 0.0, None]
        if columns is not None:
            part = part[:, columns > 0.0] * columns[columns > 0.0]
        if part.numel() == 0:
            return 0.0
        if not bool(torch.isfinite(part).all()):
            return math.inf
        return float(proven_norms(part[None])[0]) * _SCALED


class _SparseNorms(ScaledNorms):
    """Of a convolution or a pool, its rows and columns ordered by pixel row, channel, column."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        matrix, self.error = operator.matrix(_ENTRIES)
        self.rows, self.columns = (
            _by_pixel_row(operator.shapes_out),
            _by_pixel_row(operator.shapes_in),
        )
        ordered = sp.csr_array(matrix)[self.rows][:, self.columns]
        largest = float(np.abs(ordered.data).max(initial=0.0))
        self.finite = bool(np.isfinite(ordered.data).all())
        # A power of two, so that nothing is rounded; squares neither overflow nor vanish.
        self.scale = math.ldexp(1.0, -max(-1000, min(1000, math.frexp(largest)[1])))
        self.matrix = ordered * self.scale

    @cached_property
    def whole(self) -> float:
        """The norm itself where it can be factored, else the least of the cheaper bounds."""
        if not self.finite:
            return math.inf
        size = abs(self.matrix)
        sums = self._unscaled(float(size.sum(axis=0).max()) * float(size.sum(axis=1).max()), 1.0)
        if math.isfinite(square := proven_square(self.matrix)):
            return min(sums, self._unscaled(square, 1.0))
        return min(sums, _on_torus(self.operator))

    def _unscaled(self, square: float, most: float) -> float:
        return math.sqrt(square) * SLACK / self.scale + self.error * most + TINY

    def _norm(self, rows: Tensor | None, columns: Tensor | None) -> float:
        if not self.finite:
            return math.inf
        part, most = self.matrix, 1.0
        if rows is not None:
            r = rows.numpy()[self.rows]
            kept = np.flatnonzero(r)
            part = part[kept]
            if not (r[kept] == 1.0).all():
                part = sp.csr_array(sp.diags_array(r[kept]) @ part)
            most *= float(r.max(initial=0.0))
        if columns is not None:
            c = columns.numpy()[self.columns]
            part = part.copy() if part is self.matrix else part
            part.data *= c[part.indices]
            part.eliminate_zeros()
            most *= float(c.max(initial=0.0))
        return self._unscaled(proven_square(part), most)


def scaled_norms(operator: Operator) -> ScaledNorms:
    """The bounds of an operator whose weights do not change any more."""
    if operator.is_matrix:
        return _DenseNorms(operator.dense())
    return _SparseNorms(operator)


def _on_torus(operator: Operator) -> float:
    """The torus' bound of a convolution, inf for other operators."""
    if isinstance(operator, ScaledInputs):
        return _on_torus(operator.inner) * float(operator.factors.abs().max()) * SLACK
    return torus_norm(operator) if isinstance(operator, Convolution) else math.inf


def proven_square(matrix: Any) -> float:
    """An upper bound of ``||A||^2`` for a sparse matrix with entries of size about 1, or inf.

    Args:
        matrix: ``csr_array``; where its Gram matrix is banded the proof is cheap.
    """
    total = float(np.sum(matrix.data**2)) * SLACK + 4.0 * TINY
    tall = matrix.shape[0] > matrix.shape[1]
    gram = sp.csr_array(matrix.T @ matrix if tall else matrix @ matrix.T)
    used = np.flatnonzero(gram.diagonal() > 0.0)
    if not len(used):
        return total
    gram = gram[used][:, used].tocoo()
    n, band = len(used), int(np.abs(gram.row - gram.col).max(initial=0))
    if float(n) * (band + 1) ** 2 > _WORK or n * (band + 1) > _BAND:
        return math.inf
    top = _top(gram.tocsr(), n)
    lower = _banded(gram, n, band)
    for excess in _EXCESS:
        bound = top * (1.0 + excess) + 4.0 * TINY
        error = gamma(max(matrix.shape)) * total + 2.0 * gamma(n + 4) * n * bound + TINY
        if _is_definite(lower, bound - error * SLACK):
            return min(bound, total)
    return total


def _top(gram: Any, n: int) -> float:
    """The largest eigenvalue, from below."""
    if n <= 32:
        return float(np.linalg.eigvalsh(gram.toarray())[-1])
    start = np.random.default_rng(0).standard_normal(n)
    try:
        return float(eigsh(gram, k=1, which="LA", tol=1e-4, v0=start, return_eigenvectors=False)[0])
    except ArpackError:
        return float(abs(gram).sum(axis=1).max())  # a bound already


def _banded(gram: Any, n: int, band: int) -> Array:
    """The lower triangle, diagonal by diagonal."""
    lower = np.zeros((band + 1, n))
    under = gram.row >= gram.col
    rows, columns = gram.row[under], gram.col[under]
    lower[rows - columns, columns] = gram.data[under]
    return lower


def _is_definite(lower: Array, shift: float) -> bool:
    """Whether ``shift I - G`` has a Cholesky factor."""
    shifted = -lower
    shifted[0] += shift
    if not (np.isfinite(shifted).all() and shifted[0].min() > 0.0):
        return False
    try:
        factor = sl.cholesky_banded(shifted, overwrite_ab=True, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return False
    return bool(np.isfinite(factor[0]).all())


def _by_pixel_row(shapes: Sequence[Shape]) -> npt.NDArray[np.intp]:
    """Where entries ordered by row, then channel, stand among images one behind the other.

    Images of other heights are laid over each other, so that what is near stays near.
    """
    found, heights, start = [], [], 0
    for shape in shapes:
        places = start + np.arange(math.prod(shape)).reshape(shape)
        rows = shape[1] if len(shape) == 3 else 1
        found.append(places.transpose(1, 0, 2).ravel() if len(shape) == 3 else places.ravel())
        heights.append(np.repeat((np.arange(rows) + 0.5) / rows, places.size // rows))
        start += places.size
    order = np.argsort(np.concatenate(heights), kind="stable")
    ordered: npt.NDArray[np.intp] = np.concatenate(found)[order]
    return ordered
