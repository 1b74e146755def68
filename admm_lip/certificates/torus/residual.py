"""Residual blocks ``y = x + G2 phi(G1 x)`` on a torus, taken as one where G2 is nearly ``-G1^H``.

Let phi have slopes in [0, 1], one multiplier t for all its channels, and a storage ``|x|^2 / p`` in
front.  With ``E = G2 + G1^H``, ``c >= ||G1||^2, ||G2||^2`` and ``t = s Y``, the inequality

    [[1/p - Y,  -(t - Y) G1^H - Y E],
     [ .     ,   2 t - Y G2^H G2   ]] >= 0

of a storage ``Y |y|^2`` behind the block holds where

    1 / (p Y) - 1 >= ((s - 1) sqrt(c) + ||E||)^2 / (2 s - c),        2 s > c.

For ``G2 = -G1^H`` and ``s = max(1, c - 1)`` that is ``1 / Y = p max(1, c - 1)^2``: a block with
``||G1||^2 <= 2`` loses nothing.  There the slack ``2 T - T P T`` is next to singular, so that no
proof that inverts it comes near.  NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...float64 import U, gamma
from ...networks.layers import Array
from .covariance import adjoint
from .hermitian import proven_largest, quiet, sizes_of
from .steps import (
    Correlation,
    Index,
    Pair,
    Pointwise,
    Step,
    TorusChain,
    half_of,
    levels_of,
    symbol,
    symbol_error,
)

# How far G2 may be from -G1^H, relatively: rounding, no more.
_NEAR = 1e-6


@dataclass(frozen=True, eq=False)
class Residual:
    """Steps that are one block; what passes beside G1 and G2 is all of x, untouched.

    Attributes:
        into: ``[x; G1 x]``, in any order of the rows.
        activation: on the rows of G1.
        back: what makes y of it, one step after the other.
    """

    into: Correlation
    activation: Pointwise
    back: tuple[Correlation, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps, one by one."""
        return (self.into, self.activation, *self.back)


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


def _block(steps: Sequence[Step]) -> Residual | None:
    """The block that steps begin with."""
    into, activation = (*steps[:2], None, None)[:2]
    if not isinstance(into, Correlation) or not isinstance(activation, Pointwise):
        return None
    width = into.kernel.shape[1]
    passing = np.setdiff1d(np.arange(len(into.kernel)), activation.rows)
    if activation.alpha.min() < 0.0 or activation.beta.max() > 1.0 or len(passing) != width:
        return None
    own = Correlation(into.kernel[passing], into.start, into.stride, into.error)
    found = _passed(own, np.eye(width))
    if found is None or not np.array_equal(found, np.eye(width)):
        return None
    through = np.eye(len(into.kernel))[:, passing]
    for k, step in enumerate(steps[2:], 3):
        found = _passed(step, through) if isinstance(step, Correlation) else None
        if found is None:
            return None
        through = found
        if np.array_equal(through, np.eye(width)):
            return Residual(into, activation, tuple(steps[2:k]))  # type: ignore[arg-type]
    return None


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
    """Of a block, at every frequency: ``s``, and what ``1 / (p Y) - 1`` must be at least."""

    share: Array
    rise: Array


def tied_or_single(
    chain: TorusChain,
) -> Iterator[tuple[Piece, Figures | None, Index, Pair]]:
    """At all frequencies the tied blocks with their figures, and every other step by itself."""
    last, _ = half_of(chain.last_grid)
    for piece, frequencies, grid in with_levels(chain, pieces_of(chain.steps), last):
        tied = figures(piece, frequencies, grid) if isinstance(piece, Residual) else None
        alone = piece.steps if isinstance(piece, Residual) and tied is None else (piece,)
        for step in alone:  # of a block, which has no strides: on one level
            yield step, tied, frequencies, grid


@quiet
def figures(block: Residual, frequencies: Index, grid: Pair) -> Figures | None:
    """The figures of a block, proven; ``None`` where G2 is not next to ``-G1^H``."""
    into = symbol(block.into, frequencies, grid)
    g1 = into[:, block.activation.rows]
    after, size, grown = None, np.ones(len(into)), np.ones(len(into))
    for step in block.back:
        w = symbol(step, frequencies, grid)
        norms, off = sizes_of(w), symbol_error(step)
        size, grown = size * norms, grown * (norms + off + gamma(16 * w.shape[2] + 64) * norms)
        after = w if after is None else w @ after
    assert after is not None
    g2 = after[:, :, block.activation.rows]
    error = sizes_of(g2 + adjoint(g1)) + symbol_error(block.into) + (grown - size)
    error = (error + 8.0 * U * (size + sizes_of(g1))) * (1.0 + 1e-9)
    if not (error <= _NEAR * sizes_of(g1)).all():
        return None
    gram = g1 @ adjoint(g1) if g1.shape[1] <= g1.shape[2] else adjoint(g1) @ g1
    square = proven_largest(gram)
    if square is None:
        return None
    square = square + gamma(16 * max(g1.shape[1:]) + 64) * sizes_of(g1) ** 2
    # Of the exact G1, and of G2, which is as far from it as E is large.
    c = (np.sqrt(square) + symbol_error(block.into) + error) ** 2 * (1.0 + 8.0 * U)
    share = np.maximum(np.maximum(1.0, c - 1.0), c / 2.0 + error)
    rise = ((share - 1.0) * np.sqrt(c) + error) ** 2 / (2.0 * share - c)
    return Figures(share, rise * (1.0 + 1e-9))
