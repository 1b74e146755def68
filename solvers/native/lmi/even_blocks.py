"""Block-tridiagonal matrices of equal blocks: all layers in one call, where none waits for another.

The formulas are those of ``block_cholesky.py``, which calls these where the blocks of a
:class:`~.block_cholesky.Band` stand in one tensor, ``diagonal`` of shape ``(blocks, n, n)`` and
``lower`` of ``(blocks - 1, n, n)``.  What is small waits for Python in the other form: of 32 blocks
of 16 a factor takes a quarter of the time here, a dense inverse a third.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from . import narrow

# Numbers between the end of a row of a dense matrix and the next row: rows a power of two apart
# share the lines of a cache.
_GAP = 8


def factors(diagonal: Tensor, lower: Tensor) -> tuple[Tensor, Tensor] | None:
    """Blocks of the Cholesky factor, diagonal and below it; ``None`` where there is none.

    LAPACK's form of a band has the entries of a column from the diagonal down next to each other.
    Row c of ``tall[k]`` holds column c of block column k and n zeros more, so these are its entries
    from c on.
    """
    count, n, _ = diagonal.shape
    tall = diagonal.new_zeros(count, n, 3 * n)
    torch.triu(diagonal, out=tall[:, :, :n])
    tall[:-1, :, n : 2 * n] = lower.mT
    columns = tall.as_strided((count, n, 2 * n), (3 * n * n, 3 * n + 1, 1))
    band = columns.reshape(count * n, 2 * n).numpy().T
    factor, info = _lapack("pbtrf", diagonal)(band, lower=1, overwrite_ab=1)
    if info != 0 or not np.isfinite(factor[0].sum()):
        return None
    columns.copy_(torch.from_numpy(factor.T).view(count, n, 2 * n))
    return tall[:, :, :n].mT, tall[:-1, :, n : 2 * n].mT


def _lapack(name: str, like: Tensor) -> Any:
    return getattr(lapack, ("s" if like.dtype == torch.float32 else "d") + name)


def clique_factors(
    above: Tensor, corner: Tensor, below: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``pivots``, ``below`` and ``rest`` of ``[above, .; corner, below]``, and whether definite.

    Of one clique, or of many side by side with leading dimensions.
    """
    pivots, outer = narrow.factors(above)
    half = narrow.right_solved(pivots, corner)
    rest, inner = narrow.factors(below - half @ half.mT)
    return pivots, half, rest, outer & inner


def inverse_band(inverses: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
    """The band of ``S^{-1}``, from the inverses of the pivots and ``gains = below pivots^{-1}``."""
    diagonal = inverses.mT @ inverses
    each, lower = diagonal.numpy(), np.empty(gains.shape, diagonal.numpy().dtype)
    forth, back = (-gains).numpy(), gains.mT.numpy()
    for k in range(len(lower) - 1, -1, -1):
        np.matmul(each[k + 1], forth[k], out=lower[k])
        each[k] -= back[k] @ lower[k]
    return diagonal, torch.from_numpy(lower)


def inverse(inverses: Tensor, gains: Tensor) -> Tensor:
    """``S^{-1}`` written out: ``P_kj = -G_k' P_{k+1,j}`` for ``j > k``."""
    dense, n = _with_diagonal(inverse_band(inverses, gains)[0]), gains.shape[-1]
    each, steps = dense.numpy(), (-gains.mT).numpy()
    for k in range(len(steps) - 1, -1, -1):
        here, after = slice(k * n, k * n + n), slice(k * n + n, None)
        row = np.matmul(steps[k], each[k * n + n : k * n + 2 * n, after], out=each[here, after])
        each[after, here] = row.T
    return dense


def completion(diagonal: Tensor, gains: Tensor) -> Tensor:
    """The completed matrix written out: ``Z_{k+1,j} = A_k Z_kj`` for ``j <= k``."""
    dense, n = _with_diagonal(diagonal), gains.shape[-1]
    each, steps = dense.numpy(), gains.numpy()
    for k in range(len(steps)):
        here, before = slice(k * n + n, k * n + 2 * n), slice(0, k * n + n)
        row = np.matmul(steps[k], each[k * n : k * n + n, before], out=each[here, before])
        each[before, here] = row.T
    return dense


def _with_diagonal(diagonal: Tensor) -> Tensor:
    """A dense matrix with these blocks on its diagonal, and nothing yet beside them."""
    size = diagonal.shape[0] * diagonal.shape[1]
    dense = diagonal.new_empty(size, size + _GAP)[:, :size]
    diagonal_of(dense, diagonal.shape[1]).copy_(diagonal)
    return dense


def diagonal_of(dense: Tensor, n: int, below: int = 0) -> Tensor:
    """The diagonal blocks of a dense matrix, or those ``below`` them by so many (a view)."""
    row, column = dense.stride()
    count = len(dense) // n - below
    strides = (n * (row + column), row, column)
    return dense.as_strided((count, n, n), strides, dense.storage_offset() + below * n * row)


def band_of_product(left: Tensor, right: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The band of ``(left @ right + right' @ left') / 2``."""
    rows = left.view(-1, n, left.shape[1])
    columns = right.view(len(right), -1, n).movedim(1, 0)
    diagonal, lower = rows @ columns, rows[1:] @ columns[:-1]
    lower.baddbmm_(columns[1:].mT, rows[:-1].mT).mul_(0.5)
    return (diagonal + diagonal.mT).mul_(0.5), lower


def completion_times(noises: Tensor, gains: Tensor, right: Tensor) -> Tensor:
    """``Z @ right`` for the completed Z; the first of the ``noises`` is ``Z_00``."""
    out = right.clone(memory_format=torch.contiguous_format)
    out = out.view(-1, gains.shape[-1], right.shape[1])
    parts, steps = out.unbind(), gains.unbind()
    for k in range(len(steps) - 1, -1, -1):
        parts[k].addmm_(steps[k].T, parts[k + 1])
    out = noises @ out
    parts = out.unbind()
    for k, step in enumerate(steps):
        parts[k + 1].addmm_(step, parts[k])
    return out.flatten(0, 1)
