"""Symmetric block-tridiagonal matrices: factors, inverses and positive definite completions.

Two facts carry the whole solver.  Both cost O(D n^2) to set up and O(D^2 n) to write out densely,
where D is the total size and n the width of a block:

* ``S`` block tridiagonal and positive definite has ``S = L L'`` with L block bidiagonal, and
  ``P = S^{-1}`` follows block row by block row from the last one (``inverse``).
* Let only the band of ``Z`` be given, every clique ``[Z_kk, Z_k+1,k'; Z_k+1,k, Z_k+1,k+1]``
  positive definite.  Among the positive definite matrices with that band the one of largest
  determinant has a block-tridiagonal inverse, and ``Z_{k+1,j} = Z_{k+1,k} Z_kk^{-1} Z_{k,j}`` for
  ``j <= k`` (``completion``; R. Grone et al., Linear Algebra Appl. 58, 1984).

No function here raises for a matrix that is not positive definite: it returns ``None``.

Equal blocks may stand in one tensor each, of a leading dimension: then they are taken side by side
(``even_blocks.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ...phases import phase
from . import even_blocks, narrow

# Side of the tiles in which a dense matrix is transposed.
_TILE = 512


# One tensor per block, or equal blocks in one of three dimensions.
Tensors = list[Tensor] | Tensor


def each(function: Callable[..., Tensor], *given: Tensors) -> Tensors:
    """What a function that broadcasts gives for every block."""
    if all(isinstance(blocks, Tensor) for blocks in given):
        return function(*given)
    return [function(*one) for one in zip(*given, strict=True)]


class Band(NamedTuple):
    """Block-tridiagonal part of a symmetric matrix: blocks ``(k, k)`` and ``(k+1, k)``."""

    diagonal: Tensors
    lower: Tensors

    @property
    def size(self) -> int:
        """Order D of the matrix."""
        return sum(d.shape[0] for d in self.diagonal)

    def plus(self, step: float, other: Band) -> Band:
        """``self + step * other``."""
        return self._each(partial(torch.add, alpha=step), other)

    def times(self, scale: float) -> Band:
        """``scale * self``."""
        return self._each(lambda block: scale * block)

    def to(self, like: Tensor) -> Band:
        """The same in another precision."""
        return self._each(lambda block: block.to(like))

    def _each(self, function: Callable[..., Tensor], *others: Band) -> Band:
        return Band(*(each(function, *parts) for parts in zip(self, *others, strict=True)))

    def inner(self, other: Band) -> float:
        """Trace of the product, where one of the two vanishes outside the band."""
        diagonal, lower = self._each(torch.mul, other)
        return _total(diagonal) + 2.0 * _total(lower)


def _total(blocks: Tensors) -> float:
    if isinstance(blocks, Tensor):
        return float(blocks.sum())
    return sum(float(block.sum()) for block in blocks)


def block_slices(sizes: Sequence[int]) -> list[slice]:
    """Where blocks of these sizes stand when laid end to end."""
    slices, start = [], 0
    for n in sizes:
        slices.append(slice(start, start + n))
        start += n
    return slices


def cholesky(matrix: Tensor) -> Tensor | None:
    """Lower Cholesky factor, or ``None`` where there is none (NaN included)."""
    factor, definite = narrow.factors(matrix)
    return factor if bool(definite) else None


@dataclass(frozen=True, eq=False)
class Factor:
    """``S = L L'``: L has ``pivots[k]`` on its diagonal and ``below[k]`` at block ``(k+1, k)``."""

    pivots: Tensors
    below: Tensors

    @cached_property
    def inverses(self) -> Tensors:
        """``pivots[k]^{-1}``: many products follow."""
        return each(_inverses, self.pivots)

    @cached_property
    def gains(self) -> Tensors:
        """``G_k = below_k pivot_k^{-1}``."""
        return each(torch.matmul, self.below, self.inverses[:-1])

    @cached_property
    def logdet(self) -> float:
        """``logdet S``."""
        return 2.0 * _total(each(_log_diagonal, self.pivots))


def _log_diagonal(pivot: Tensor) -> Tensor:
    return torch.diagonal(pivot, dim1=-2, dim2=-1).log()


@phase("factorisation")
def factorize(band: Band) -> Factor | None:
    """Block Cholesky factor, from the first block on; ``None`` if not positive definite."""
    if isinstance(band.diagonal, Tensor) and isinstance(band.lower, Tensor):
        found = even_blocks.factors(band.diagonal, band.lower)
        return None if found is None else Factor(*found)
    pivots: list[Tensor] = []
    below: list[Tensor] = []
    schur = band.diagonal[0]
    for k in range(len(band.diagonal)):
        pivot = cholesky(schur)
        if pivot is None:
            return None
        pivots.append(pivot)
        if k < len(band.lower):
            half = narrow.right_solved(pivot, band.lower[k])
            below.append(half)
            schur = torch.addmm(band.diagonal[k + 1], half, half.T, alpha=-1.0)
    return Factor(pivots, below)


@phase("factorisation")
def inverse(factor: Factor) -> Tensor:
    """Dense ``P = S^{-1}``, from the last block row up.

    With ``G_k = below_k pivot_k^{-1}``: ``P_kj = -G_k' P_{k+1,j}`` for ``j > k`` and
    ``P_kk = (pivot_k pivot_k')^{-1} + G_k' P_{k+1,k+1} G_k``.
    """
    if isinstance(factor.inverses, Tensor) and isinstance(factor.gains, Tensor):
        return even_blocks.inverse(factor.inverses, factor.gains)
    at = block_slices([p.shape[0] for p in factor.pivots])
    dense = factor.pivots[0].new_empty(at[-1].stop, at[-1].stop)
    last = len(at) - 1
    corners = [i.T @ i for i in factor.inverses]
    dense[at[last], at[last]] = corners[last]
    for k in range(last - 1, -1, -1):
        gain = factor.gains[k]
        right = slice(at[k + 1].start, None)
        row = torch.mm(gain.T, dense[at[k + 1], right]).neg_()
        dense[at[k], right] = row
        dense[right, at[k]] = row.T
        dense[at[k], at[k]] = corners[k].addmm_(row[:, : gain.shape[0]], gain, alpha=-1.0)
    return dense


@phase("factorisation")
def inverse_band(factor: Factor) -> Band:
    """The block-tridiagonal part of ``S^{-1}`` alone, in O(D n^2)."""
    if isinstance(factor.inverses, Tensor) and isinstance(factor.gains, Tensor):
        return Band(*even_blocks.inverse_band(factor.inverses, factor.gains))
    diagonal = [factor.inverses[-1].T @ factor.inverses[-1]]
    lower: list[Tensor] = []
    for gain, inverse in zip(reversed(factor.gains), reversed(factor.inverses[:-1]), strict=True):
        lower.append(torch.mm(diagonal[-1], gain).neg_())
        diagonal.append(torch.mm(inverse.T, inverse).addmm_(gain.T, lower[-1], alpha=-1.0))
    return Band(diagonal[::-1], lower[::-1])


@dataclass(frozen=True, eq=False)
class Cliques:
    """Cholesky factors of neighbouring pairs of blocks of Z.

    ``[Z_kk, .; Z_k+1,k, Z_k+1,k+1] = K K'`` with ``K = [pivots[k], 0; below[k], rest[k]]``.
    """

    pivots: Tensors
    below: Tensors
    rest: Tensors

    @cached_property
    def pivot_inverses(self) -> Tensors:
        """``pivots[k]^{-1}``."""
        return each(_inverses, self.pivots)

    @cached_property
    def inverses(self) -> list[tuple[Tensor, Tensor]]:
        """``pivots[k]^{-1}`` and ``rest[k]^{-1}``."""
        return list(zip(self.pivot_inverses, each(_inverses, self.rest), strict=True))

    @cached_property
    def gains(self) -> Tensors:
        """``Z_{k+1,k} Z_kk^{-1}``."""
        return each(torch.matmul, self.below, self.pivot_inverses)

    @cached_property
    def noises(self) -> Tensors:
        """``Z_{k+1,k+1}`` less what ``Z_kk`` says of it."""
        return each(_square, self.rest)


@phase("factorisation")
def _inverses(pivot: Tensor) -> Tensor:
    return narrow.inverses(pivot)


def _square(rest: Tensor) -> Tensor:
    return rest @ rest.mT


@phase("factorisation")
def factorize_cliques(band: Band) -> Cliques | None:
    """Factors of all cliques; ``None`` where one is not positive definite."""
    if isinstance(band.diagonal, Tensor) and isinstance(band.lower, Tensor):
        *found, definite = even_blocks.clique_factors(
            band.diagonal[:-1], band.lower, band.diagonal[1:]
        )
        return Cliques(*found) if bool(definite.all()) else None
    pivots: list[Tensor] = []
    below: list[Tensor] = []
    rest: list[Tensor] = []
    for k, block in enumerate(band.lower):
        pivot = cholesky(band.diagonal[k])
        if pivot is None:
            return None
        half = narrow.right_solved(pivot, block)
        left = cholesky(torch.addmm(band.diagonal[k + 1], half, half.T, alpha=-1.0))
        if left is None:
            return None
        pivots.append(pivot)
        below.append(half)
        rest.append(left)
    return Cliques(pivots, below, rest)


def clique_matrices(band: Band) -> list[Tensor]:
    """The cliques written out, those of equal shape as one stack."""
    if isinstance(band.diagonal, Tensor) and isinstance(band.lower, Tensor):
        return [_cliques(band.diagonal[:-1], band.lower, band.diagonal[1:])]
    alike: dict[tuple[int, ...], list[int]] = {}
    for k, block in enumerate(band.lower):
        alike.setdefault(tuple(block.shape), []).append(k)
    found = []
    for places in alike.values():
        above, below = (torch.stack([band.diagonal[k + i] for k in places]) for i in (0, 1))
        found.append(_cliques(above, torch.stack([band.lower[k] for k in places]), below))
    return found


def _cliques(above: Tensor, corner: Tensor, below: Tensor) -> Tensor:
    rows = torch.cat([above, corner.mT], 2), torch.cat([corner, below], 2)
    return torch.cat(rows, 1)


@phase("factorisation")
def completion(band: Band, cliques: Cliques) -> Tensor:
    """The dense positive definite matrix with this band and largest determinant."""
    if isinstance(band.diagonal, Tensor) and isinstance(cliques.gains, Tensor):
        return even_blocks.completion(band.diagonal, cliques.gains)
    at = block_slices([d.shape[0] for d in band.diagonal])
    dense = band.diagonal[0].new_empty(at[-1].stop, at[-1].stop)
    dense[at[0], at[0]] = band.diagonal[0]
    for k, block in enumerate(band.lower):
        here, start = at[k + 1], at[k].start
        if start:
            row = torch.mm(cliques.gains[k], dense[at[k], :start])
            dense[here, :start] = row
            dense[:start, here] = row.T
        dense[here, at[k]] = block
        dense[at[k], here] = block.T
        dense[here, here] = band.diagonal[k + 1]
    return dense


def band_of(dense: Tensor, sizes: Sequence[int], even: bool = False) -> Band:
    """The block-tridiagonal part of a symmetric dense matrix (views).

    ``even`` blocks stand in one tensor.
    """
    if even:
        return Band(*(even_blocks.diagonal_of(dense, sizes[0], below) for below in (0, 1)))
    at = block_slices(sizes)
    return Band(
        [dense[s, s] for s in at],
        [dense[b, a] for a, b in pairwise(at)],
    )


@phase("products")
def completion_times(cliques: Cliques, first: Tensor, right: Tensor) -> Tensor:
    """``Z @ right`` for the completed Z, block by block: ``Z = F N F'`` with F unit bidiagonal.

    ``F^{-1}`` has ``-Z_{k+1,k} Z_kk^{-1}`` below its diagonal, and N the conditional covariances;
    ``first`` is the block ``Z_00``.
    """
    if isinstance(cliques.gains, Tensor) and isinstance(cliques.noises, Tensor):
        noises = torch.cat([first[None], cliques.noises])
        return even_blocks.completion_times(noises, cliques.gains, right)
    sizes = [first.shape[0], *(r.shape[0] for r in cliques.rest)]
    at = block_slices(sizes)
    gains = cliques.gains
    out = right.clone()
    for k in range(len(gains) - 1, -1, -1):
        out[at[k]].addmm_(gains[k].T, out[at[k + 1]])
    out[at[0]] = first @ out[at[0]]
    for k, noise in enumerate(cliques.noises):
        here = torch.mm(noise, out[at[k + 1]])
        out[at[k + 1]] = here.addmm_(gains[k], out[at[k]])
    return out


@phase("products")
def band_of_product(left: Tensor, right: Tensor, sizes: Sequence[int], even: bool = False) -> Band:
    """Block-tridiagonal part of ``(left @ right + right' @ left') / 2``; ``even`` as above."""
    if even:
        return Band(*even_blocks.band_of_product(left, right, sizes[0]))
    at = block_slices(sizes)
    diagonal, lower = [], []
    for k, s in enumerate(at):
        block = torch.mm(left[s], right[:, s])
        diagonal.append((block + block.T).mul_(0.5))
        if k + 1 < len(at):
            n = at[k + 1]
            below = torch.mm(left[n], right[:, s])
            lower.append(below.add_(torch.mm(left[s], right[:, n]).T).mul_(0.5))
    return Band(diagonal, lower)


def tiles(size: int) -> list[slice]:
    """Cuts of ``range(size)`` into pieces that a cache holds."""
    return [slice(i, min(i + _TILE, size)) for i in range(0, size, _TILE)]


def symmetrised(matrix: Tensor) -> Tensor:
    """``(matrix + matrix') / 2`` in its place, tile by tile."""
    cuts = tiles(matrix.shape[0])
    for a, i in enumerate(cuts):
        for j in cuts[: a + 1]:
            mean = (matrix[i, j] + matrix[j, i].T).mul_(0.5)
            matrix[i, j] = mean
            matrix[j, i] = mean.T
    return matrix
