"""Modules ``W1 phi(W0 x)``, slopes in [0, 1], as what is bounded together in a product of norms.

With one multiplier for all neurons the matrix inequality of a bound r is, for some b,

    b^2 A + B / b^2 <= 2 r I,        A = W0 W0',  B = W1' W1,

so that two layers count for r, which may be half as much as ``||W0|| ||W1||`` and is no more.  In
what follows the squared norms of both are replaced by ``r / b^2`` and ``r b^2``, of the same
product: with them the closed form of a product's multipliers is that of the modules.  NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Module(NamedTuple):
    """Two layers in one.

    Attributes:
        last: the place of the second of them.
        bound: r.
        square: ``b^2``.
    """

    last: int
    bound: float
    square: float


def module_bound(parts: Iterable[tuple[Any, Any]], squares: Sequence[float]) -> tuple[float, float]:
    """The least r that one of some ``b^2`` proves, computed, and that ``b^2``.

    Args:
        parts: the Hermitian matrices A and B of the module's docstring, ``(..., n, n)``.
        squares: to be tried.
    """
    tried = [s for s in squares if 0.0 < s < math.inf]
    most = [0.0] * len(tried)
    for a, b in parts:
        most = [max(_largest(s * a + b / s) / 2.0, r) for s, r in zip(tried, most, strict=True)]
    return min(zip(most, tried, strict=True), default=(math.inf, 1.0))


def _largest(matrices: Any) -> float:
    """The largest eigenvalue, infinite where something overflows."""
    if not np.isfinite(matrices).all():
        return math.inf
    return float(np.linalg.eigvalsh(matrices)[..., -1].max())


def in_modules(squares: Sequence[float], module: Callable[[int], Module | None]) -> list[float]:
    """Squared norms, those of some layers replaced by their modules': the least product there is.

    Args:
        squares: of layers, activations and whatever else is passed, from the input on.
        module: that begins at a place, if one does.
    """
    best: list[tuple[float, tuple[float, ...]]] = [(0.0, ())]
    best += [(math.inf, ())] * len(squares)
    for k, square in enumerate(squares):
        product, before = best[k]
        ways: list[tuple[int, tuple[float, ...]]] = [(k + 1, (square,))]
        found = module(k)
        if found is not None and 0.0 < found.bound < math.inf:
            first, second = found.bound / found.square, found.bound * found.square
            ways.append((found.last + 1, (first, *squares[k + 1 : found.last], second)))
        for end, own in ways:
            with np.errstate(divide="ignore"):
                whole = product + float(np.log(own).sum())
            if not best[end][1] or whole < best[end][0]:
                best[end] = whole, (*before, *own)
    return [*best[-1][1]]
