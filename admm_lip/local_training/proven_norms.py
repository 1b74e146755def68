"""Proven upper bounds of the norms of masked layers.

The rows and columns of constant units are taken out, and the Gram matrix G on the smaller side is
formed.  With c a little above its largest eigenvalue a Cholesky factorisation of
``c I - G - (errors) I`` that runs to completion proves ``||A||^2 <= c`` (S. Rump, Verification of
positive definiteness, BIT 46, 2006; ``rounding.py`` has the terms).  An iteration only finds
the c to try; what it returns is never trusted.

For a convolution G is sparse, and with the pixels ordered row by row it is banded, so that its
factor costs ``n b^2`` for a band of b.  Where that is too much, the norm of the unmasked layer
stands in, itself proven the same way, on a torus (``torus.py``) or by ``sqrt(||A||_1 ||A||_inf)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg as sl
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import ArpackError, eigsh
from torch import Tensor

from ..networks.chain import reader_of
from ..networks.layers import AFFINE, Window, conv_matrix
from ..rounding import SLACK, TINY, gamma, proven_norms
from .boxes import Masks
from .operators import Shape
from .stages import Stage
from .torus import torus_norm

Array = npt.NDArray[np.float64]
# Multiplications that one factorisation may cost (a second or two), and entries of its band.
_WORK = 2e10
_BAND = 2**27
# Entries of a sparse matrix, were it dense.
_ENTRIES = 2**33
# Relative excess over the eigenvalue found that a proof is tried with.
_EXCESS = (1e-6, 1e-4, 1e-2, 1e-1)


class ProvenNorms:
    """Upper bounds of the norms of a network's layers, masked or not.

    Args:
        stages: the network, in float64 on the CPU.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._layers = [_layer(stage) for stage in stages]
        self.whole = [layer.whole() for layer in self._layers]

    def masked(self, k: int, masks: Masks) -> Tensor:
        """Bounds for layer k, ``(batch,)``, never above the layer's own.

        Args:
            k: number of the layer.
            masks: ``(batch, *)``; at least one of them is not ``None``.
        """
        count = len(masks.rows if masks.rows is not None else masks.columns)  # type: ignore[arg-type]
        rows, columns = (
            [None] * count if m is None else list(m.flatten(1).bool())
            for m in (masks.rows, masks.columns)
        )
        layer = self._layers[k]
        found = [layer.norm(r, c) for r, c in zip(rows, columns, strict=True)]
        return torch.tensor([min(n, self.whole[k]) for n in found], dtype=torch.float64)


class _Dense:
    """A ``Linear`` layer."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def whole(self) -> float:
        return self.norm(None, None)

    def norm(self, rows: Tensor | None, columns: Tensor | None) -> float:
        part = self.weight if rows is None else self.weight[rows]
        part = part if columns is None else part[:, columns]
        if part.numel() == 0:
            return 0.0
        if not bool(torch.isfinite(part).all()):
            return math.inf
        return float(proven_norms(part[None])[0])


class _Sparse:
    """A convolution or a pool, its rows and columns ordered by pixel row, channel, column."""

    def __init__(
        self,
        matrix: Any,
        error: float,
        shape_in: Shape,
        shape_out: Shape,
        on_torus: Callable[[], float],
    ) -> None:
        self.on_torus = on_torus
        self.rows, self.columns = _by_pixel_row(shape_out), _by_pixel_row(shape_in)
        self.error = error
        ordered = sp.csr_array(matrix[self.rows][:, self.columns])
        largest = float(np.abs(ordered.data).max(initial=0.0))
        self.finite = bool(np.isfinite(ordered.data).all())
        # A power of two, so that nothing is rounded; squares neither overflow nor vanish.
        self.scale = math.ldexp(1.0, -max(-1000, min(1000, math.frexp(largest)[1])))
        self.matrix = ordered * self.scale
        self.fallback = math.inf

    def whole(self) -> float:
        """The norm itself where it can be factored, else the least of the cheaper bounds."""
        if not self.finite:
            return math.inf
        size = abs(self.matrix)
        sums = float(size.sum(axis=0).max()) * float(size.sum(axis=1).max())
        self.fallback = self._unscaled(sums)
        if not math.isfinite(square := proven_square(self.matrix)):
            self.fallback = min(self.fallback, self.on_torus())
        else:
            self.fallback = min(self.fallback, self._unscaled(square))
        return self.fallback

    def _unscaled(self, square: float) -> float:
        return math.sqrt(square) * SLACK / self.scale + self.error + TINY

    def norm(self, rows: Tensor | None, columns: Tensor | None) -> float:
        if not self.finite:
            return math.inf
        part = self.matrix
        if rows is not None:
            part = part[np.flatnonzero(rows.numpy()[self.rows])]
        if columns is not None:
            part = part.copy() if part is self.matrix else part
            part.data *= columns.numpy()[self.columns][part.indices]
            part.eliminate_zeros()
        return min(self._unscaled(proven_square(part)), self.fallback)


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
        return float(eigsh(gram, k=1, which="LA", tol=1e-7, v0=start, return_eigenvectors=False)[0])
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


def _by_pixel_row(shape: Shape) -> npt.NDArray[np.intp]:
    """Where the entries of (row, channel, column) order stand in (channel, row, column) order."""
    return np.arange(math.prod(shape)).reshape(shape).transpose(1, 0, 2).ravel()


def _layer(stage: Stage) -> _Dense | _Sparse:
    """The matrix of a layer."""
    operator, layer = stage.operator, stage.operator.layer
    reader = reader_of(stage.name, layer)
    if reader.kind == "linear":
        return _Dense(layer.weight.detach())
    shapes = operator.shape_in, operator.shape_out
    options = reader.options(layer)
    if reader.kind == "conv2d":
        weight = layer.weight.detach().numpy()
        window = Window.of(options, weight.shape[2:], operator.shape_in, stage.name)
        matrix = conv_matrix(
            weight, operator.shape_in, window, layer.groups, stage.name, limit=_ENTRIES
        )
        padding = window.padding[0], window.padding[2]
        return _Sparse(matrix, 0.0, *shapes, lambda: torus_norm(layer, operator.shape_in, padding))
    found = AFFINE[reader.kind].build(stage.name, options, {}, operator.shape_in)
    return _Sparse(found.matrix, found.error, *shapes, lambda: math.inf)
