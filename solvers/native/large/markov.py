"""A positive definite matrix with a block-tridiagonal inverse, read as a covariance.

Both matrices of an iteration are of that kind: the inverse ``P`` of the slack, and the completed
``Z``.  Such a matrix is the covariance of a Markov chain ``x_{k+1} = A_k x_k + noise``: with
``A_k = Z_{k+1,k} Z_kk^{-1}`` and ``N_{k+1} = Z_{k+1,k+1} - A_k Z_kk A_k'``, ``N_0 = Z_00``,

    Z = F N F',      F_ik = A_{i-1} ... A_k  for  i >= k.

Hence products of two of them with a band between keep a band that recursions over the layers find.
Let ``Z`` have gains A and noises N, ``P`` gains B and noises Q, and let D be a symmetric band:

    M_kk  = D_kk + D_k,k+1 B_k + A_k' (D_k+1,k + M_k+1 B_k)                     from the last k down
    Y_00  = N_0 M_0 Q_0,
    Y_k+1,k   = A_k Y_kk + N_k+1 (D_k+1,k + M_k+1 B_k) P_kk                      from the first k up
    Y_k,k+1   = Y_kk B_k' + Z_kk (D_k,k+1 + A_k' M_k+1) Q_k+1
    Y_k+1,k+1 = A_k Y_k,k+1 + N_k+1 (D_k+1,k + M_k+1 B_k) P_kk B_k' + N_k+1 M_k+1 Q_k+1

is the band of ``Y = Z D P``: 14 matrix products per layer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...phases import phase
from ...threads import blas_has_one_thread
from ..lmi.block_cholesky import Band, Cliques, Tensors, factorize_cliques
from . import even_markov


class Blocks(NamedTuple):
    """For two layers i, j: blocks (before i, before j), (before i, j), (i, before j), (i, j)."""

    before: Tensor
    upper: Tensor
    left: Tensor
    corner: Tensor


class Markov(NamedTuple):
    """Band, gains ``A_k`` and noises ``N_k`` of such a matrix."""

    band: Band
    gains: Tensors
    noises: Tensors

    def even(self) -> even_markov.Chain | None:
        """The same where all layers are of one width, each part in one tensor, on one thread."""
        d, a, n = self.band.diagonal, self.gains, self.noises
        if not blas_has_one_thread():
            return None
        if isinstance(d, Tensor) and isinstance(a, Tensor) and isinstance(n, Tensor):
            return even_markov.Chain(d.numpy(), a.numpy(), n.numpy())
        return None

    def same(self, k: int) -> Blocks:
        """The blocks of hidden layer k (from 0) with itself."""
        d, b = self.band.diagonal, self.band.lower
        return Blocks(d[k], b[k].T, b[k], d[k + 1])

    def next(self, k: int) -> Blocks:
        """The blocks of hidden layer k+1 (rows) with layer k."""
        d, b = self.band.diagonal, self.band.lower
        return Blocks(b[k], d[k + 1], self.gains[k + 1] @ b[k], b[k + 1])


def markov(band: Band, cliques: Cliques | None = None) -> Markov | None:
    """The chain of a band, ``None`` where a clique is not positive definite."""
    cliques = cliques or factorize_cliques(band)
    if cliques is None:
        return None
    first = band.diagonal[0]
    if isinstance(cliques.noises, Tensor):
        return Markov(band, cliques.gains, torch.cat([first[None], cliques.noises]))
    return Markov(band, cliques.gains, [first, *cliques.noises])


@phase("products")
def band_between(z: Markov, middle: Band, p: Markov) -> Band:
    """The band of ``(Y + Y') / 2``, ``Y = Z D P``."""
    first, last, (of_d, below_d) = z.even(), p.even(), middle
    if first and last and isinstance(of_d, Tensor) and isinstance(below_d, Tensor):
        return Band(*even_markov.band_between(first, of_d, below_d, last))
    inner, rows, columns = _accumulated(z, middle, p)
    here = z.noises[0] @ inner[0] @ p.noises[0]
    diagonal, lower = [here], []
    for k, (a, b) in enumerate(zip(z.gains, p.gains, strict=True)):
        below = z.noises[k + 1] @ (rows[k] @ p.band.diagonal[k])
        right = (z.band.diagonal[k] @ columns[k]) @ p.noises[k + 1]
        right.addmm_(here, b.T)
        turned = torch.mm(z.noises[k + 1], inner[k + 1]) @ p.noises[k + 1]
        turned.addmm_(below, b.T).addmm_(a, right)
        lower.append(below.addmm_(a, here).add_(right.T).mul_(0.5))
        here = turned
        diagonal.append(here)
    return Band([(d + d.T).mul_(0.5) for d in diagonal], lower)


def _accumulated(
    z: Markov, middle: Band, p: Markov
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """``M_k``, ``D_k+1,k + M_k+1 B_k`` and ``D_k,k+1 + A_k' M_k+1``."""
    inner, rows, columns = [middle.diagonal[-1]], [], []
    for k in range(len(z.gains) - 1, -1, -1):
        d, a, b = middle.lower[k], z.gains[k], p.gains[k]
        rows.append(torch.addmm(d, inner[-1], b))
        columns.append(torch.addmm(d.T, a.T, inner[-1]))
        inner.append(torch.addmm(middle.diagonal[k], d.T, b).addmm_(a.T, rows[-1]))
    return inner[::-1], rows[::-1], columns[::-1]
