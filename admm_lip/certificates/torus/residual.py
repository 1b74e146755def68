"""Residual blocks ``y = S x + G2 phi(G1 x)`` on a torus, each taken as one; S is I, or any layer.

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
proof that inverts it comes near.  NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ...float64 import U, gamma
from ...networks.layers import Array
from .covariance import adjoint
from .hermitian import are_definite, largest, proven_largest, quiet, sizes_of
from .steps import (
    Correlation,
    Index,
    Pair,
    Pointwise,
    Rows,
    Step,
    TorusChain,
    half_of,
    levels_of,
    symbol,
    symbol_error,
)

# How far G2 may be from -G1^H, relatively: rounding, no more.
_NEAR = 1e-6
# How much the computed square of a block is raised until it is proven.
_INFLATIONS = (1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
# How many s are tried, how many octaves from the best of them others, and how far 2 s is above
# ``||G2||^2`` at least.
_SHARES = 5
_REFINED = (0.25, 0.125, 0.0625)
_ROOM = 2.0 * (1.0 - 1e-9)


@dataclass(frozen=True, eq=False)
class Residual:
    """Steps that are one block; what ``passes`` beside G1 and G2 is all of S x.

    Attributes:
        into: ``[S x; G1 x]``, in any order of the rows.
        activation: on the rows of G1.
        back: what makes y of it, one step after the other, without strides.
    """

    into: Correlation
    activation: Pointwise
    back: tuple[Correlation, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps, one by one."""
        return (self.into, self.activation, *self.back)

    @property
    def passes(self) -> Rows:
        """The rows of S x."""
        return np.setdiff1d(np.arange(len(self.into.kernel)), self.activation.rows)

    @property
    def is_plain(self) -> bool:
        """Whether S is I."""
        own = Correlation(
            self.into.kernel[self.passes], self.into.start, self.into.stride, self.into.error
        )
        width = self.into.kernel.shape[1]
        return len(own.kernel) == width and _leads(own, np.eye(width))


Piece = Step | Residual


def pieces_of(steps: Sequence[Step]) -> list[Piece]:
    """The steps, with those of every residual block as one."""
    found: list[Piece] = []
    k = 0
    while k < len(steps):
        block = _block(steps[k:])
        found.append(steps[k] if block is None else block)
        k += 1 if block is None else len(block.steps)
    return found


def with_levels(
    chain: TorusChain, pieces: Sequence[Piece], last: Index
) -> Iterator[tuple[Piece, Index, Pair]]:
    """Every piece with the frequencies of its input and their torus."""
    levels, k = levels_of(chain, last), 0
    for piece in pieces:
        yield piece, *levels[k]
        k += len(piece.steps) if isinstance(piece, Residual) else 1


def below(frequencies: Index, grid: Pair, stride: Pair) -> tuple[Index, Pair]:
    """The frequencies that those of a finer torus fold onto, and their torus."""
    return frequencies[:: math.prod(stride)], (grid[0] // stride[0], grid[1] // stride[1])


def _block(steps: Sequence[Step]) -> Residual | None:
    """The block that steps begin with."""
    into, activation = (*steps[:2], None, None)[:2]
    if not isinstance(into, Correlation) or not isinstance(activation, Pointwise):
        return None
    found = Residual(into, activation, ())
    if activation.alpha.min() < 0.0 or activation.beta.max() > 1.0 or not len(found.passes):
        return None
    through = np.eye(len(into.kernel))[:, found.passes]
    for k, step in enumerate(steps[2:], 3):
        moved = _passed(step, through) if isinstance(step, Correlation) else None
        if moved is None:
            return None
        through = moved
        if np.array_equal(through, np.eye(len(found.passes))):
            return replace(found, back=tuple(steps[2:k]))  # type: ignore[arg-type]
    return None


def _leads(step: Correlation, held: Array) -> bool:
    """Whether a step leaves channels that are held in some rows as they are."""
    found = _passed(step, held)
    return found is not None and np.array_equal(found, held)


def _passed(step: Correlation, held: Array) -> Array | None:
    """What a step makes of channels that are held in some rows; ``None`` unless it moves them.

    Rows and columns of 0 and 1 alone, so that nothing is rounded.
    """
    if step.stride != (1, 1) or step.error or not (np.count_nonzero(held, axis=0) == 1).all():
        return None
    seen = np.einsum("oirc,ij->rcoj", step.kernel, held)
    if any(at >= size for at, size in zip(step.start, seen.shape[:2], strict=True)):
        return None
    found: Array = seen[step.start].copy()
    seen[step.start] = 0.0
    return found if not seen.any() and np.isin(found, (0.0, 1.0)).all() else None


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
        known = figures(piece, frequencies, grid, untied) if isinstance(piece, Residual) else None
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
        block: to be taken as one.
        frequencies, grid: of its level.
        untied: whether G2 may be far from ``-G1^H``.
    """
    into = folded(symbol(block.into, frequencies, grid), math.prod(block.into.stride))
    g1, past = into[:, block.activation.rows], into[:, block.passes]
    frequencies, grid = below(frequencies, grid, block.into.stride)
    after, size, grown = None, np.ones(len(into)), np.ones(len(into))
    for step in block.back:
        w = symbol(step, frequencies, grid)
        norms, off = sizes_of(w), symbol_error(step)
        size, grown = size * norms, grown * (norms + off + gamma(16 * w.shape[2] + 64) * norms)
        after = w if after is None else w @ after
    assert after is not None
    g2 = after[:, :, block.activation.rows]
    # How far all of them are from the exact ones.
    inexact = symbol_error(block.into) + (grown - size) + 8.0 * U * (size + sizes_of(into))
    error, own = np.full(len(g1), math.inf), inexact * (1.0 + 1e-9)
    if block.is_plain:
        error = (sizes_of(g2 + adjoint(g1)) + inexact) * (1.0 + 1e-9)
    if not (error <= _NEAR * sizes_of(g1)).all():
        return _untied(g1, g2, past, own) if untied else None
    gram = g1 @ adjoint(g1) if g1.shape[1] <= g1.shape[2] else adjoint(g1) @ g1
    square = proven_largest(gram)
    if square is None:
        return None
    square = square + gamma(16 * max(g1.shape[1:]) + 64) * sizes_of(g1) ** 2
    # Of the exact G1, and of G2, which is as far from it as E is large.
    c = ((np.sqrt(square) + symbol_error(block.into) + error) ** 2).max() * (1.0 + 8.0 * U)
    most = error.max()
    share = max(1.0, c - 1.0, c / 2.0 + most)
    rise = ((share - 1.0) * np.sqrt(c) + most) ** 2 / (2.0 * share - c)
    return Figures(float(share), float(1.0 + rise * (1.0 + 1e-9)) * (1.0 + 4.0 * U))


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
    grams = (g1 @ adjoint(g1), inner, past @ adjoint(past))
    first, second, beside = (math.sqrt(max(float(largest(m).max()), 0.0)) for m in grams)
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
