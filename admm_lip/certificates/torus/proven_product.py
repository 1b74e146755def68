"""The product of the norms of an image network's layers or modules, with multipliers as its proof.

With ``P <= p I`` and m the steepest slope of an activation, ``t = span / (p m)`` gives
``P <= m^2 p I`` behind it: for ``[0, 1]`` and ``[-1, 1]`` alike, so that a network of sorted pairs
has the product of its norms on the torus, and of its head's, as a bound that these multipliers
prove.  Two layers may count as a module, for less than their product (``modules.py``).  A
residual block counts by itself (``block_figures.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...networks.layers import Array
from ...solvers.deadline import Deadline
from ..chain_bound import Task, prove_product
from ..claim_matrices import Matrices
from ..modules import Module, in_modules, module_bound
from ..norm_product import Norm, scaled, spectral_norm
from ..norm_product import product_multiplier as dense_multiplier
from .block_figures import Figures, blocks_or_single, folded
from .check import front_product, head_matrices, proven_on_torus, torus_norm
from .covariance import adjoint
from .hermitian import quiet
from .proof import NotProven, gathered
from .residual import Piece, Residual
from .steps import Correlation, Index, Pair, Pointwise, TorusChain, symbol

# How far inside the range that proves the product a multiplier stays, relatively.
_INSIDE = 1e-7
# How much the bound is raised, where no head follows, until it is proven.
_INFLATIONS = (0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
# Complex numbers in the largest batch of modules.
_ENTRIES = 2**22

# A piece, the figures of a block, its frequencies and their torus.
Passed = tuple[Piece, Figures | None, Index, Pair]


@quiet
def product_multiplier(chain: TorusChain) -> tuple[tuple[Array, ...], float]:
    """The multipliers of the module's docstring, per channel, and the square that they prove."""
    pieces = [*blocks_or_single(chain, untied=True)]
    squares = in_modules([*map(_square, pieces)], lambda k: _module(pieces[k : k + 3], k))
    p, found = np.float64(1.0), list[Array]()
    for (piece, block, _, _), square in zip(pieces, squares, strict=True):
        if isinstance(piece, Pointwise):
            found.append(_span(piece) / (p * (1.0 + _INSIDE) * _steepest(piece)))
        p *= square * (1.0 + _INSIDE * (2.0 if isinstance(piece, Pointwise) else 1.0))
        if block is not None:
            assert isinstance(piece, Residual)
            span = np.ones(len(piece.activation.rows)) if piece.rises else _span(piece.activation)
            found.append(span * (block.share / p))
    return tuple(found), float(p)


def _square(passed: Passed) -> float:
    """By how much ``P <= p I`` grows behind a piece, at most."""
    piece, block, frequencies, grid = passed
    if block is not None:
        return block.square
    if isinstance(piece, Correlation):
        return float(np.square(torus_norm(piece, frequencies, grid)))
    assert isinstance(piece, Pointwise)
    return _steepest(piece) ** 2


def _module(passed: Sequence[Passed], k: int) -> Module | None:
    """Of two correlations and the activation on all channels between them, if its slopes allow."""
    first, act, second = (*(piece for piece, *_ in passed), None, None, None)[:3]
    if not (isinstance(first, Correlation) and isinstance(second, Correlation)):
        return None
    if not isinstance(act, Pointwise) or act.alpha.min() < 0.0:
        return None
    if len(act.rows) != second.kernel.shape[1]:
        return None
    into, out = (first, *passed[0][2:]), (second, *passed[2][2:])
    sizes = torus_norm(*into), torus_norm(*out)
    squares = (1.0, sizes[1] / sizes[0] if min(sizes) > 0.0 else 1.0)
    parts = _side_by_side(into, out)
    return Module(k + 2, *module_bound(parts, squares))


def _side_by_side(
    first: tuple[Correlation, Index, Pair], second: tuple[Correlation, Index, Pair]
) -> Iterator[tuple[Any, Any]]:
    """``W0 W0^H`` and ``W1^H W1`` of all channels and aliases between two correlations.

    They come with the frequencies of their inputs, in batches of those of their outputs.
    """
    into, aliases = math.prod(first[0].stride), math.prod(second[0].stride)
    channels = second[0].kernel.shape[1]
    rows = max(1, _ENTRIES // (aliases * channels) ** 2)
    for k in range(0, len(second[1]) // aliases, rows):
        part = slice(k * aliases, (k + rows) * aliases)
        fine = slice(part.start * into, part.stop * into)
        w = symbol(first[0], first[1][fine], first[2])
        v = symbol(second[0], second[1][part], second[2])
        a = (w @ adjoint(w)).reshape(-1, aliases, into, channels, channels).mean(axis=2)
        whole = np.zeros((len(a), aliases, channels, aliases, channels), dtype=complex)
        whole[:, range(aliases), :, range(aliases)] = a.swapaxes(0, 1)
        wide = folded(v, aliases)
        yield whole.reshape(len(a), aliases * channels, -1), adjoint(wide) @ wide


def _steepest(step: Pointwise) -> float:
    """The steepest slope of an activation, 1 at least where channels may pass."""
    return max(float(np.maximum(np.abs(step.alpha), np.abs(step.beta)).max()), 1e-30)


def _span(step: Pointwise) -> Array:
    """How far the slopes of each channel are apart, 1 where they are not."""
    return np.where(step.beta > step.alpha, step.beta - step.alpha, 1.0)


class Product(NamedTuple):
    """A bound, its multipliers, and where they come from, as a certificate says it."""

    lip: float
    multiplier: tuple[Array, ...]
    method: str


def proven_product(chain: TorusChain) -> Product:
    """The product as it is proven, and its multipliers, those of a head per neuron.

    Raises:
        NotProven: where rounding forbids the proof.
        CertificateError: where it forbids that of a head.
    """
    multiplier, squared = product_multiplier(chain)
    method = "norm_product" if math.sqrt(squared) >= front_product(chain) else "closed_form"
    if chain.head is not None:
        seen = gathered(chain, multiplier, head_matrices(chain.head))
        norms = [spectral_norm(w) for w in seen.weights]
        names = [f"(matrix {k} of the head)" for k in range(len(norms))]
        known = _head_multiplier(seen, norms, squared)
        best = prove_product(Task(seen, seen, norms, names), Deadline(None), known).candidate
        method = best.method if method == "norm_product" else method
        return Product(best.lip, (*multiplier, *best.multiplier), method)
    reason = None
    for inflation in _INFLATIONS:
        lip = math.sqrt(squared) * (1.0 + inflation)
        reason = proven_on_torus(chain, multiplier, lip)
        if reason is None:
            return Product(lip, multiplier, method)
    raise NotProven(reason)


@quiet
def _head_multiplier(
    head: Matrices, norms: Sequence[Norm], squared: float
) -> tuple[Array, ...] | None:
    """That of the head's modules, where there are any; ``squared`` is P in front of it."""
    sizes = [scaled(*n) for n in norms]

    def module(k: int) -> Module | None:
        if k + 1 == len(sizes) or head.slopes[k].alpha.min() < 0.0:
            return None
        w, v = head.weights[k], head.weights[k + 1]
        # The first matrix holds the root of P, which is no part of its own scale.
        squares = (squared**-0.5 if k == 0 else 1.0, sizes[k + 1] / sizes[k])
        return Module(k + 1, *module_bound([(w @ w.T, v.T @ v)], squares))

    alone = [n * n for n in sizes]
    if not all(0.0 < square < math.inf for square in (*alone, squared)):
        return None
    found = in_modules(alone, module)
    return None if found == alone else dense_multiplier(head, [math.sqrt(s) for s in found])
