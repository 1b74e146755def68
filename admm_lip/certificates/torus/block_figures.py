"""What residual blocks ``y = S x + G2 phi(G1 x)`` may grow on a torus, each taken as one.

Let phi have slopes in [0, 1], one multiplier t for all its channels, and a storage ``|x|^2 / p`` in
front.  With ``t = s Y`` the inequality of a storage ``Y |y|^2`` behind the block says, with ``r^2 =
1 / (p Y)``,

    [[r^2 - S^H S, -(s G1^H + S^H G2)],
     [ .         ,  2 s - G2^H G2    ]] >= 0,

and the least ``r^2`` for an s is the largest eigenvalue of ``S^H S + C^H (2 s - G2^H G2)^{-1} C``
for ``C = s G1 + G2^H S`` (:func:`least_square`). At ``s = (|S| + g1 g2) g2 / g1``, g1 and g2 the
norms, it is no more than ``(|S| + g1 g2)^2``.  A stride folds its aliases of x into columns.

Where S is I and G2 nearly ``-G1^H`` that inverse is none.  With ``E = G2 + G1^H`` and
``c >= ||G1||^2, ||G2||^2`` the inequality holds where

    1 / (p Y) - 1 >= ((s - 1) sqrt(c) + ||E||)^2 / (2 s - c),        2 s > c.

For ``G2 = -G1^H`` and ``s = max(1, c - 1)`` that is ``1 / Y = p max(1, c - 1)^2``: a block with
``||G1||^2 <= 2`` loses nothing.  There the slack ``2 T - T P T`` is next to singular, so that no
proof that inverts it comes near.

Other activations, sorted pairs among them, have slopes of size m at most: ``|phi(u)| <= m |u|``.
By norms alone, ``|S x + G2 v|^2 <= r (|S| |x|^2 + g2 / (m g1) |v|^2)`` for ``r = |S| + m g1 g2``,
so that the block grows nothing by more than r: the convex combination ``a x + (1 - a) g(x)`` of the
identity and a branch of norm 1 by nothing at all.  Multipliers ``t = span g2 r / g1 Y`` prove it
step by step, since ``2 T - T P T`` is far from singular.  NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...float64 import U, gamma
from ...networks.layers import Array
from .covariance import adjoint
from .hermitian import are_definite, largest, proven_largest, quiet, sizes_of
from .residual import Piece, Residual, below, pieces_of, with_levels
from .steps import Correlation, Index, Pair, TorusChain, half_of, symbol, symbol_error

# How far G2 may be from -G1^H, relatively: rounding, no more.
_NEAR = 1e-6
# How much the computed square of a block is raised until it is proven.
_INFLATIONS = (1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
# How many s are tried, how many octaves from the best of them others, and how far 2 s is above
# ``||G2||^2`` at least.
_SHARES = 5
_REFINED = (0.25, 0.125, 0.0625)
_ROOM = 2.0 * (1.0 - 1e-9)
# A branch that adds nothing counts as one of this norm, relatively: its multipliers are no zeros.
_NOTHING = 1e-6


class Figures(NamedTuple):
    """Of a block, whatever the frequency: ``s``, and what ``1 / (p Y)`` must be at least."""

    share: float
    square: float


def blocks_or_single(
    chain: TorusChain, untied: bool
) -> Iterator[tuple[Piece, Figures | None, Index, Pair]]:
    """The blocks with their figures, all of them or the tied ones, and every other step."""
    last, _ = half_of(chain.last_grid)
    for piece, frequencies, grid in with_levels(chain, pieces_of(chain.steps), last):
        known: Figures | None = None
        if isinstance(piece, Residual):
            level = frequencies, grid
            known = figures(piece, *level, untied) if piece.rises else by_norms(piece, *level)
        alone = piece.steps if isinstance(piece, Residual) and known is None else (piece,)
        level = frequencies, grid
        for step in alone:
            yield step, known, *level
            if isinstance(step, Correlation):
                level = below(*level, step.stride)


def figures_of(chain: TorusChain, pieces: Sequence[Piece]) -> dict[int, Figures | None]:
    """The figures of blocks at all frequencies, by their places among the pieces."""
    last, _ = half_of(chain.last_grid)
    return {
        k: figures(piece, frequencies, grid)
        for k, (piece, frequencies, grid) in enumerate(with_levels(chain, pieces, last))
        if isinstance(piece, Residual)
    }


@quiet
def figures(block: Residual, frequencies: Index, grid: Pair, untied: bool = True) -> Figures | None:
    """The figures of a block, proven at these frequencies; ``None`` where they are not.

    Args:
        block: to be taken as one; nothing is proven unless it ``rises``.
        frequencies, grid: of its level.
        untied: whether G2 may be far from ``-G1^H``.
    """
    if not block.rises:
        return None
    g1, g2, past, seen, own = _parts(block, frequencies, grid)
    error = np.full(len(g1), math.inf)
    if block.is_plain:
        error = (sizes_of(g2 + adjoint(g1)) + own) * (1.0 + 1e-9)
    if not (error <= _NEAR * sizes_of(g1)).all():
        return _untied(g1, g2, past, own) if untied else None
    gram = g1 @ adjoint(g1) if g1.shape[1] <= g1.shape[2] else adjoint(g1) @ g1
    square = proven_largest(gram)
    if square is None:
        return None
    square = square + gamma(16 * max(g1.shape[1:]) + 64) * sizes_of(g1) ** 2
    # Of the exact G1, and of G2, which is as far from it as E is large.
    c = ((np.sqrt(square) + seen + error) ** 2).max() * (1.0 + 8.0 * U)
    most = error.max()
    share = max(1.0, c - 1.0, c / 2.0 + most)
    rise = ((share - 1.0) * np.sqrt(c) + most) ** 2 / (2.0 * share - c)
    return Figures(float(share), float(1.0 + rise * (1.0 + 1e-9)) * (1.0 + 4.0 * U))


@quiet
def by_norms(block: Residual, frequencies: Index, grid: Pair) -> Figures | None:
    """The figures of a block by the norms of its layers, computed; ``None`` where it is constant.

    Args:
        block: of any activation.
        frequencies, grid: of its level.
    """
    g1, g2, past, *_ = _parts(block, frequencies, grid)
    first, second, beside = map(_norm, (g1, g2, past))
    steepest = max(float(np.abs(block.activation.alpha).max()), float(block.activation.beta.max()))
    if not 0.0 < min(first, steepest, beside) < math.inf:
        return None
    second = max(second, _NOTHING * beside / (steepest * first))
    most = beside + steepest * first * second
    found = Figures(second * most / first, most**2)
    return found if 0.0 < found.share < math.inf and found.square < math.inf else None


def _norm(symbols: Any) -> float:
    """The largest norm at all frequencies, computed."""
    wide = symbols.shape[1] <= symbols.shape[2]
    gram = symbols @ adjoint(symbols) if wide else adjoint(symbols) @ symbols
    finite = bool(np.isfinite(gram).all())
    return math.sqrt(max(float(largest(gram).max()), 0.0)) if finite else math.inf


def _parts(block: Residual, frequencies: Index, grid: Pair) -> tuple[Any, Any, Any, Array, Array]:
    """G1, G2 and S, how far G1 is from the exact one, and how far all of them are at most."""
    into, size, seen, level = _product(block.into, frequencies, grid)
    back, other, behind, _ = _product(block.back, *level)
    rows, passes = block.activation.rows, block.passes
    past = back[:, :, passes] @ into[:, passes]
    grown = (size + seen) * (other + behind) - size * other
    rounding = gamma(16 * len(passes) + 64) * size * other + 8.0 * U * (size + other + 1.0)
    own = np.maximum(np.maximum(seen, behind), grown) + rounding
    return into[:, rows], back[:, :, rows], past, seen, own * (1.0 + 1e-9)


def _product(
    steps: Sequence[Correlation], frequencies: Index, grid: Pair
) -> tuple[Any, Array, Array, tuple[Index, Pair]]:
    """The symbols of steps one after the other, aliases side by side.

    Returns:
        the matrices; bounds on their Frobenius norms, and on those of their distances from the
        exact ones; and the frequencies behind, with their torus.
    """
    found, size, grown = None, np.ones(1), np.ones(1)
    for step in steps:
        w = symbol(step, frequencies, grid)
        norms, off, aliases = sizes_of(w), symbol_error(step), math.prod(step.stride)
        size, grown = size * norms, grown * (norms + off + gamma(16 * w.shape[2] + 64) * norms)
        size, grown = (v.reshape(-1, aliases).max(axis=1) for v in (size, grown))
        found = folded(w if found is None else w @ found, aliases)
        frequencies, grid = below(frequencies, grid, step.stride)
    return found, size, (grown - size + 8.0 * U * size) * (1.0 + 1e-9), (frequencies, grid)


def folded(symbols: Any, aliases: int) -> Any:
    """The symbols of so many aliases in a row side by side, as they fold onto one frequency."""
    if aliases == 1:
        return symbols
    wide = symbols.reshape(-1, aliases, *symbols.shape[1:]).swapaxes(1, 2)
    return wide.reshape(*wide.shape[:2], -1) / math.sqrt(aliases)


def _untied(g1: Any, g2: Any, past: Any, off: Array) -> Figures | None:
    """The figures of any block, by the inequality of the module's docstring."""
    share, square = least_square(g1, g2, past)
    if not math.isfinite(square):
        return None
    for inflation in _INFLATIONS:
        own = square * (1.0 + inflation)
        if _holds(share, own, g1, g2, past, off):
            return Figures(share, own)
    return None


def _holds(share: float, square: float, g1: Any, g2: Any, past: Any, off: Array) -> bool:
    """Whether the inequality is proven, rows and columns scaled to a diagonal near 1.

    Args:
        share, square: s and ``r^2``.
        g1, g2, past: G1, G2 and S.
        off: how far each of them may be from the exact one.
    """
    width, root, inner = past.shape[2], math.sqrt(square), math.sqrt(2.0 * share)
    beside = np.concatenate((past / root, g2 / inner), axis=2)
    cross = g1 * (math.sqrt(0.5 * share) / root)
    n = beside.shape[2]
    y = -adjoint(beside) @ beside
    y[:, width:, :width] -= cross
    y[:, :width, width:] -= adjoint(cross)
    size, factor = sizes_of(beside), gamma(16 * n + 64)
    moved = off * (1.0 / root + 1.0 / inner)
    lost = 2.0 * size * moved + moved**2 + 2.0 * off * math.sqrt(0.5 * share) / root
    lost = lost + 2.0 * factor * (size**2 + 2.0 * sizes_of(cross) + 1.0)
    y[:, range(n), range(n)] += 1.0 - lost[:, None] * (1.0 + 1e-9)
    return are_definite(y)


@quiet
def least_square(g1: Any, g2: Any, past: Any = None) -> tuple[float, float]:
    """An s of the module's docstring that is good for all frequencies, and its ``r^2``, computed.

    Args:
        g1: ``(frequencies, hidden, channels)``.
        g2: ``(frequencies, outputs, hidden)``.
        past: S, ``(frequencies, outputs, channels)``; ``None`` is I.

    Returns:
        the pair; a square of infinity where there is none.
    """
    if past is None:
        past = np.eye(g1.shape[2])[None]
    if not all(np.isfinite(m).all() for m in (g1, g2, past)):
        return 1.0, math.inf
    inner = adjoint(g2) @ g2
    first, second, beside = map(_norm, (g1, g2, past))
    tried = [1.0]
    if min(first, second) > 0.0:
        most = (beside + first * second) * second / first
        tried += [most * 2.0 ** (-0.5 * k) for k in range(_SHARES)]

    def found(share: float) -> tuple[float, float]:
        """``r^2`` at an s, of which it is a convex function."""
        fits = _ROOM * share > second**2
        return _square(share, g1, g2, past, inner) if fits else math.inf, share

    best = min(map(found, tried))
    for octaves in _REFINED if min(first, second) > 0.0 else ():
        best = min(best, *(found(best[1] * 2.0**by) for by in (-octaves, octaves)))
    return best[1], best[0]


def _square(share: float, g1: Any, g2: Any, past: Any, inner: Any) -> float:
    slack = 2.0 * share * np.eye(len(inner[0])) - inner
    c = share * g1 + adjoint(g2) @ past
    found = adjoint(past) @ past + adjoint(c) @ np.linalg.solve(slack, c)
    return max(float(largest(found).max()), 0.0)
