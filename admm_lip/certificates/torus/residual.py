"""Residual blocks ``y = S x + G2 phi(G1 x)`` among the steps of a torus; S is I, or any layer.

Any steps in a row may be taken as one: which ones are is for tightness alone, not for the truth of
what is proven (``block_figures.py``).  NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...networks.layers import Array
from .steps import Correlation, Index, Pair, Pointwise, Rows, Step, TorusChain, levels_of


@dataclass(frozen=True, eq=False)
class Residual:
    """Steps that are one block; what ``passes`` beside G1 and G2 is all of S x.

    Attributes:
        into: what makes ``[S x; G1 x]`` of x, in any order of the rows, but for factors of S.
        activation: on the rows of G1.
        back: what makes y of it, one step after the other, without strides.
    """

    into: tuple[Correlation, ...]
    activation: Pointwise
    back: tuple[Correlation, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps, one by one."""
        return (*self.into, self.activation, *self.back)

    @property
    def passes(self) -> Rows:
        """The rows of S x."""
        return _passing(self.into, self.activation)

    @property
    def rises(self) -> bool:
        """Whether all slopes are in [0, 1]."""
        return bool(self.activation.alpha.min() >= 0.0 and self.activation.beta.max() <= 1.0)

    @property
    def is_plain(self) -> bool:
        """Whether S is I: rows and columns of 0 and 1 alone, so that nothing is rounded."""
        first = self.into[0]
        kept = np.isin(np.arange(len(first.kernel)), self.passes)[:, None, None, None]
        held = eye = np.eye(first.kernel.shape[1])
        for step in (replace(first, kernel=first.kernel * kept), *self.back):
            moved = None if step.error or len(self.into) > 1 else _moved(step, held)
            if moved is None or not np.isin(moved, (0.0, 1.0)).all():
                return False
            held = moved
        return np.array_equal(held, eye)


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
    place = next((k for k, step in enumerate(steps) if isinstance(step, Pointwise)), 0)
    into = tuple(step for step in steps[:place] if isinstance(step, Correlation))
    activation = steps[place]
    if not into or not isinstance(activation, Pointwise):
        return None
    passes = _passing(into, activation)
    if not len(passes) or not _begins(into, passes):
        return None
    through, back = np.eye(len(into[-1].kernel))[:, passes], list[Correlation]()
    for step in steps[place + 1 :]:
        moved = _moved(step, through) if isinstance(step, Correlation) else None
        if moved is None:
            return None
        assert isinstance(step, Correlation)
        through = moved
        back.append(step)
        if np.array_equal(through != 0.0, np.eye(len(passes)) != 0.0):
            return Residual(into, activation, tuple(back))
    return None


def _passing(into: Sequence[Correlation], activation: Pointwise) -> Rows:
    return np.setdiff1d(np.arange(len(into[-1].kernel)), activation.rows)


def _begins(into: Sequence[Correlation], passes: Rows) -> bool:
    """Whether what passes sees all channels in front of the first step, but of no later one."""
    seen: Any = np.isin(np.arange(len(into[-1].kernel)), passes)
    for step in reversed(into):
        seen = step.kernel[seen].any(axis=(0, 2, 3))
        if seen.all():
            return step is into[0]
    return len(into) == 1


def _moved(step: Correlation, held: Array) -> Array | None:
    """What a step makes of channels that are held in some rows; ``None`` unless it moves them.

    Each in a row of its own and times any factor.
    """
    if step.stride != (1, 1) or not (np.count_nonzero(held, axis=0) == 1).all():
        return None
    seen = np.einsum("oirc,ij->rcoj", step.kernel, held)
    if any(at >= size for at, size in zip(step.start, seen.shape[:2], strict=True)):
        return None
    found: Array = seen[step.start].copy()
    seen[step.start] = 0.0
    return None if seen.any() else found
