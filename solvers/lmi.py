"""The one statement of the linear matrix inequality, and what follows from it.

For a chain with weights ``W_0 .. W_l``, slopes ``[alpha_k, beta_k]`` and diagonal multipliers
``T_k = diag(t_k) >= 0`` (``k = 1 .. l``), L bounds the l2 Lipschitz constant when the symmetric,
block-tridiagonal matrix ``M(L^2, W, T)`` is positive semidefinite:

    block (0, 0)         L^2 I  + 2 W_0' (alpha beta T)_1 W_0
    block (k, k)         2 T_k  + 2 W_k' (alpha beta T)_{k+1} W_k        0 < k < l
    block (l, l)         2 T_l
    block (l+1, l+1)     I
    block (k+1, k)       -((alpha + beta) T)_{k+1} W_k                   k < l
    block (l+1, l)       -W_l

For slopes [0, 1] this is Pauli et al. (2022), and optimal over T it is LipSDP-Neuron (Fazlyab et
al., 2019).  T is diagonal: the full-block multipliers of the 2019 paper prove too little (they
certify 0 for ``relu(x) - relu(x - 1)``), so they are not offered.

Two consequences are used everywhere:

* ``implied_bound``: the least L that a given T proves, by a backward block elimination.
* ``ball_tiles``: for fixed T and ``alpha <= 0``, ``M >= 0`` if and only if ``||B(W)||_2 <= 1`` for
  a matrix B whose tiles are the weights with scaled rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .dissipation import any_known, storage_bound
from .phases import phase
from .problem import Slopes
from .spectrum import WIDE, gram, is_below, top_eigenvalue


def lmi_blocks(
    weights: Sequence[Tensor],
    slopes: Sequence[Slopes],
    multiplier: Sequence[Tensor],
    lip_sq: float | Tensor,
) -> tuple[list[Tensor], list[Tensor]]:
    """Blocks of ``M(lip_sq, W, T)``: the diagonal ones and those below it.

    Chains of equal widths side by side have a leading dimension in every tensor.

    Returns:
        ``(diagonal, lower)`` with ``len(diagonal) == len(weights) + 1`` and ``lower[k]`` the block
        ``(k+1, k)``.
    """
    first = weights[0]
    eye = torch.eye(first.shape[-1], dtype=first.dtype, device=first.device)
    diagonal = [lip_sq * eye]
    lower = []
    for w, s, t in zip(weights, slopes, multiplier, strict=False):
        if bool((s.alpha * s.beta != 0).any()):
            diagonal[-1] = diagonal[-1] + 2.0 * w.mT @ ((s.alpha * s.beta * t)[..., None] * w)
        lower.append(-((s.alpha + s.beta) * t)[..., None] * w)
        diagonal.append(torch.diag_embed(2.0 * t))
    lower.append(-weights[-1])
    diagonal.append(torch.eye(weights[-1].shape[-2], dtype=first.dtype, device=first.device))
    return diagonal, lower


def eliminate_output(
    diagonal: Sequence[Tensor], lower: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Schur complement of the output block (the identity): block (l, l) becomes 2 T_l - W_l' W_l.

    The result is affine in ``(L^2, T)`` for fixed weights: the certification form.
    """
    w = lower[-1]
    return [*diagonal[:-2], diagonal[-2] - w.mT @ w], list(lower[:-1])


def assemble(diagonal: Sequence[Tensor], lower: Sequence[Tensor]) -> Tensor:
    """Dense symmetric matrix of block-tridiagonal parts."""
    sizes = [d.shape[0] for d in diagonal]
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    dense = torch.zeros(sum(sizes), sum(sizes), dtype=diagonal[0].dtype, device=diagonal[0].device)
    for i, n, d in zip(starts, sizes, diagonal, strict=True):
        dense[i : i + n, i : i + n] = d
    for k, block in enumerate(lower):
        rows = slice(starts[k + 1], starts[k + 1] + sizes[k + 1])
        cols = slice(starts[k], starts[k] + sizes[k])
        dense[rows, cols] = block
        dense[cols, rows] = block.T
    return dense


@phase("bound")
def implied_bound(
    weights: Sequence[Tensor], slopes: Sequence[Slopes], multiplier: Sequence[Tensor]
) -> float:
    """The least L for which ``M(L^2, W, T) >= 0``; ``inf`` where T proves nothing.

    Backward elimination, cost linear in depth::

        S_l = 2 T_l - W_l' W_l
        S_k = M_kk - M_{k+1,k}' S_{k+1}^{-1} M_{k+1,k}
        L^2 = lambda_max(M_10' S_1^{-1} M_10 - (M_00 - L^2 I))

    Every ``S_k`` must be positive definite, which its Cholesky factor decides: skipping that check
    gives numbers below the true constant.  The result is computed, not yet proven through
    rounding; ``admm_lip.verify`` does that.  Neurons whose slope is known exactly are substituted
    (``dissipation.py``); their multipliers are not read.
    """
    if any_known(slopes):
        return storage_bound(weights, slopes, multiplier)
    schur, definite = _eliminated(weights, slopes, multiplier)
    return math.sqrt(max(top_eigenvalue(-schur), 0.0)) if bool(definite) else float("inf")


def implied_bounds(
    weights: Sequence[Tensor], slopes: Sequence[Slopes], multiplier: Sequence[Tensor]
) -> Tensor:
    """:func:`implied_bound` of each of many chains of equal widths, none with a known slope."""
    schur, definite = _eliminated(weights, slopes, multiplier)
    sound = torch.where(definite[:, None, None], -schur, 0.0)
    lip = torch.linalg.eigvalsh(sound)[:, -1].clamp(min=0.0).sqrt()
    return torch.where(definite, lip, float("inf"))


def _eliminated(
    weights: Sequence[Tensor], slopes: Sequence[Slopes], multiplier: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """What is left of block (0, 0) at L = 0, and whether every ``S_k`` was positive definite."""
    # lambda_max over the inputs only sees the row space of W_0.
    first = weights[0]
    if first.shape[-1] > first.shape[-2]:
        first = torch.linalg.qr(first.mT, mode="r")[1].mT
    blocks = lmi_blocks([first, *weights[1:]], slopes, multiplier, 0.0)
    diagonal, lower = eliminate_output(*blocks)
    schur, definite = diagonal[-1], torch.ones((), dtype=torch.bool, device=first.device)
    for d, off in zip(reversed(diagonal[:-1]), reversed(lower), strict=True):
        factor, info = torch.linalg.cholesky_ex(schur)
        definite = definite & (info == 0)
        half = torch.linalg.solve_triangular(factor, off, upper=False)
        schur = d - half.mT @ half
    return schur, definite & torch.isfinite(schur).all(-1).all(-1)


@dataclass(frozen=True, eq=False)
class Tile:
    """One copy of a weight inside the scaled matrix B: ``row[:, None] * W_layer * col[None, :]``.

    ``lower`` and ``upper`` are the nodes (block indices) its rows and columns belong to.
    """

    layer: int
    row: Tensor
    col: Tensor
    lower: int
    upper: int


@dataclass(frozen=True, eq=False)
class Ball:
    """The scaled form of ``M(lip_sq, W, T) >= 0`` for fixed T: ``||B(W)||_2 <= 1``.

    Divide M by its diagonal blocks ``D_0 = L^2 I, D_k = 2 T_k, D_{l+1} = I`` from both sides. What
    is left is I minus a matrix with zero diagonal that links neighbouring layers only, so sorting
    the nodes into even and odd ones gives ``[[I, -B], [-B', I]]``.  Where ``alpha < 0`` the term
    ``-2 W_k' |alpha beta| T W_k`` is the Schur complement of one more node, a leaf at layer k+1.

    Attributes:
        tiles: the copies of the weights in B.
        places: per tile, its (rows, columns) slices in B and whether it stands transposed there.
        shape: shape of B, (total size of even nodes, total size of odd nodes).
    """

    tiles: tuple[Tile, ...]
    places: tuple[tuple[slice, slice, bool], ...]
    shape: tuple[int, int]

    def matrix(self, weights: Sequence[Tensor]) -> Tensor:
        """B(W), dense."""
        first = weights[0]
        b = torch.zeros(self.shape, dtype=first.dtype, device=first.device)
        for tile, (rows, cols, transposed) in zip(self.tiles, self.places, strict=True):
            c = tile.row[:, None] * weights[tile.layer] * tile.col[None, :]
            b[rows, cols] = c.T if transposed else c
        return b

    def norm(self, weights: Sequence[Tensor]) -> float:
        """``||B(W)||_2``: at most 1 exactly where ``M(lip_sq, W, T) >= 0``."""
        squares = torch.linalg.eigvalsh(gram(self.matrix(weights)))
        return math.sqrt(max(float(squares[-1]), 0.0))

    def norm_up_to_one(self, weights: Sequence[Tensor]) -> float:
        """The norm, or 1 where it is less and B so wide that one factorisation is cheaper."""
        wide = min(self.shape) >= WIDE
        return 1.0 if wide and is_below(gram(self.matrix(weights)), 1.0) else self.norm(weights)


def ball_tiles(
    slopes: Sequence[Slopes],
    multiplier: Sequence[Tensor],
    lip_sq: float,
    n_in: int,
    n_out: int,
) -> Ball:
    """The spectral ball of a multiplier: its tiles, and where they stand in B.

    Needs ``alpha <= 0`` (``ProjectProblem`` checks it).
    """
    if not multiplier:  # a single affine map: ||W_0|| <= L
        raise ValueError("multiplier: a single affine map has no hidden layer; clip its norm at L")
    sizes = [n_in, *(t.shape[0] for t in multiplier), n_out]
    parity = [k % 2 for k in range(len(sizes))]
    columns = [
        multiplier[0].new_full((n_in,), lip_sq**-0.5),
        *((2.0 * t) ** -0.5 for t in multiplier),
    ]
    tiles = []
    for k, (s, t) in enumerate(zip(slopes, multiplier, strict=True)):
        tiles.append(Tile(k, (s.alpha + s.beta) * (t / 2.0) ** 0.5, columns[k], k + 1, k))
        leaf = (-2.0 * s.alpha * s.beta * t).clamp(min=0.0) ** 0.5
        if bool((leaf > 0).any()):
            sizes.append(t.shape[0])
            parity.append((k + 1) % 2)
            tiles.append(Tile(k, leaf, columns[k], len(sizes) - 1, k))
    last = len(multiplier)
    tiles.append(Tile(last, multiplier[0].new_ones(n_out), columns[last], last + 1, last))
    return _arranged(tiles, sizes, parity)


def _arranged(tiles: list[Tile], sizes: list[int], parity: list[int]) -> Ball:
    """Sort the nodes into even (rows of B) and odd (columns of B) and place every tile."""
    slices, totals = [], [0, 0]
    for n, p in zip(sizes, parity, strict=True):
        slices.append(slice(totals[p], totals[p] + n))
        totals[p] += n
    places = []
    for tile in tiles:
        transposed = parity[tile.lower] == 1
        even, odd = (tile.upper, tile.lower) if transposed else (tile.lower, tile.upper)
        places.append((slices[even], slices[odd], transposed))
    return Ball(tuple(tiles), tuple(places), (totals[0], totals[1]))
