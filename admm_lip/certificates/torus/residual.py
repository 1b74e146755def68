"""Residual blocks ``y = x + G2 phi(G1 x)`` on a torus, each taken as one.

Let phi have slopes in [0, 1], one multiplier t for all its channels, and a storage ``|x|^2 / p`` in
front.  With ``t = s Y`` the inequality

    [[1/p - Y,  -t G1^H - Y G2    ],
     [ .     ,   2 t - Y G2^H G2  ]] >= 0

of a storage ``Y |y|^2`` behind the block says, with ``rise = 1 / (p Y) - 1 > 0``, that

    ||[G2; (s G1^H + G2) / sqrt(rise)]||^2 <= 2 s,

and the least rise for an s is the largest eigenvalue of ``C^H (2 s - G2^H G2)^{-1} C`` for ``C = s
G1 + G2^H`` (:func:`least_rise`). At ``s = (1 + g1 g2) g2 / g1``, g1 and g2 the norms, it is no more
than ``(1 + g1 g2)^2 - 1``.

Where G2 is nearly ``-G1^H`` that inverse is none.  With ``E = G2 + G1^H`` and
``c >= ||G1||^2, ||G2||^2`` the inequality holds where

    1 / (p Y) - 1 >= ((s - 1) sqrt(c) + ||E||)^2 / (2 s - c),        2 s > c.

For ``G2 = -G1^H`` and ``s = max(1, c - 1)`` that is ``1 / Y = p max(1, c - 1)^2``: a block with
``||G1||^2 <= 2`` loses nothing.  There the slack ``2 T - T P T`` is next to singular, so that no
proof that inverts it comes near.  NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...float64 import U, gamma
from ...networks.layers import Array
from .covariance import adjoint
from .hermitian import largest, proven_largest, quiet, sizes_of
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
# How much the computed rise of a block is raised until it is proven, and what it is at least.
_INFLATIONS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
_LEAST_RISE = 1e-12
# How many s are tried, how many octaves from the best of them others, and how far 2 s is above
# ``||G2||^2`` at least.
_SHARES = 5
_REFINED = (0.25, 0.125, 0.0625)
_ROOM = 2.0 * (1.0 - 1e-9)


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
    """Of a block, whatever the frequency: ``s``, and what ``1 / (p Y) - 1`` must be at least."""

    share: float
    rise: float


def blocks_or_single(
    chain: TorusChain, untied: bool
) -> Iterator[tuple[Piece, Figures | None, Index, Pair]]:
    """The blocks with their figures, all of them or the tied ones, and every other step."""
    last, _ = half_of(chain.last_grid)
    for piece, frequencies, grid in with_levels(chain, pieces_of(chain.steps), last):
        known = figures(piece, frequencies, grid, untied) if isinstance(piece, Residual) else None
        alone = piece.steps if isinstance(piece, Residual) and known is None else (piece,)
        for step in alone:  # of a block, which has no strides: on one level
            yield step, known, frequencies, grid


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
    # How far both are from the exact ones.
    inexact = symbol_error(block.into) + (grown - size) + 8.0 * U * (size + sizes_of(g1))
    error = (sizes_of(g2 + adjoint(g1)) + inexact) * (1.0 + 1e-9)
    if not (error <= _NEAR * sizes_of(g1)).all():
        return _untied(g1, g2, inexact * (1.0 + 1e-9)) if untied else None
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
    return Figures(float(share), float(rise * (1.0 + 1e-9)))


def _untied(g1: Any, g2: Any, off: Array) -> Figures | None:
    """The figures of any block, by the norm of the module's docstring."""
    share, rise = least_rise(g1, g2)
    if not math.isfinite(rise):
        return None
    for inflation in _INFLATIONS:
        own = rise * (1.0 + inflation) + _LEAST_RISE * share
        root = math.sqrt(own)
        whole = np.concatenate((g2, (share * adjoint(g1) + g2) / root), axis=1)
        wide = whole.shape[1] <= whole.shape[2]
        square = proven_largest(whole @ adjoint(whole) if wide else adjoint(whole) @ whole)
        if square is None:
            return None
        square = square + gamma(16 * max(whole.shape[1:]) + 64) * sizes_of(whole) ** 2
        rounded = 8.0 * U * (share * sizes_of(g1) + sizes_of(g2)) / root
        norm = np.sqrt(square) + off * (1.0 + (share + 1.0) / root) + rounded
        if (norm**2 * (1.0 + 16.0 * U) <= 2.0 * share).all():
            return Figures(share, own * (1.0 + 8.0 * U))
    return None


@quiet
def least_rise(g1: Any, g2: Any) -> tuple[float, float]:
    """An s of the module's docstring that is good for all frequencies, and its rise, computed.

    Args:
        g1: ``(frequencies, hidden, channels)``.
        g2: ``(frequencies, channels, hidden)``.

    Returns:
        the pair; a rise of infinity where there is none.
    """
    if not (np.isfinite(g1).all() and np.isfinite(g2).all()):
        return 1.0, math.inf
    inner = adjoint(g2) @ g2
    first, second = (
        math.sqrt(max(float(largest(m).max()), 0.0)) for m in (g1 @ adjoint(g1), inner)
    )
    tried = [1.0]
    if min(first, second) > 0.0:
        most = (1.0 + first * second) * second / first
        tried += [most * 2.0 ** (-0.5 * k) for k in range(_SHARES)]

    def risen(share: float) -> tuple[float, float]:
        """The rise at an s, of which it is a convex function."""
        fits = _ROOM * share > second**2
        return _rise(share, g1, g2, inner) if fits else math.inf, share

    best = min(map(risen, tried))
    for octaves in _REFINED if min(first, second) > 0.0 else ():
        best = min(best, *(risen(best[1] * 2.0**by) for by in (-octaves, octaves)))
    return best[1], best[0]


def _rise(share: float, g1: Any, g2: Any, inner: Any) -> float:
    slack = 2.0 * share * np.eye(len(inner[0])) - inner
    c = share * g1 + adjoint(g2)
    return max(float(largest(adjoint(c) @ np.linalg.solve(slack, c)).max()), 0.0)
