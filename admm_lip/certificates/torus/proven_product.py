"""The product of the norms of an image network's layers, as a bound with multipliers that prove it.

With ``P <= p I`` and m the steepest slope of an activation, ``t = span / (p m)`` gives
``P <= m^2 p I`` behind it: for ``[0, 1]`` and ``[-1, 1]`` alike, so that a network of sorted pairs
has the product of its norms on the torus, and of its head's, as a bound that these multipliers
prove.  A tied residual block has ``max(1, ||G1||^2 - 1)`` for a norm (``residual.py``).
"""

from __future__ import annotations

import math

import numpy as np

from ...networks.layers import Array
from ...solvers.deadline import Deadline
from ..chain_bound import Task, prove_product
from ..norm_product import spectral_norm
from .check import head_matrices, proven_on_torus, torus_norm, torus_product
from .hermitian import quiet
from .proof import NotProven, gathered
from .residual import tied_or_single
from .steps import Correlation, Pointwise, TorusChain

# How far inside the range that proves the product a multiplier stays, relatively.
_INSIDE = 1e-7
# How much the bound is raised, where no head follows, until it is proven.
_INFLATIONS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)


@quiet
def product_multiplier(chain: TorusChain) -> tuple[Array, ...]:
    """The multipliers of the module's docstring, per channel."""
    p, found = np.float64(1.0), list[Array]()
    for piece, tied, frequencies, grid in tied_or_single(chain):
        if isinstance(piece, Correlation):
            p *= np.square(torus_norm(piece, frequencies, grid)) * (1.0 + _INSIDE)
        elif isinstance(piece, Pointwise):
            steepest = _steepest(piece)
            span = np.where(piece.beta > piece.alpha, piece.beta - piece.alpha, 1.0)
            found.append(span / (p * (1.0 + _INSIDE) * steepest))
            p *= steepest**2 * (1.0 + 2.0 * _INSIDE)
        elif tied is not None:
            p *= (1.0 + float(tied.rise.max())) * (1.0 + _INSIDE)
            found.append(np.full(len(piece.activation.rows), float(tied.share.max()) / p))
    return tuple(found)


def _steepest(step: Pointwise) -> float:
    """The steepest slope of an activation, 1 at least where channels may pass."""
    return max(float(np.maximum(np.abs(step.alpha), np.abs(step.beta)).max()), 1e-30)


def proven_product(chain: TorusChain) -> tuple[float, tuple[Array, ...]]:
    """The product of norms as it is proven, and its multipliers, those of a head per neuron.

    Raises:
        NotProven: where rounding forbids the proof.
        CertificateError: where it forbids that of a head.
    """
    multiplier = product_multiplier(chain)
    if chain.head is not None:
        seen = gathered(chain, multiplier, head_matrices(chain.head))
        norms = [spectral_norm(w) for w in seen.weights]
        names = [f"(matrix {k} of the head)" for k in range(len(norms))]
        best = prove_product(Task(seen, seen, norms, names), Deadline(None)).candidate
        return best.lip, (*multiplier, *best.multiplier)
    product, reason = torus_product(chain), None
    for inflation in _INFLATIONS:
        lip = product * math.sqrt(1.0 + 4.0 * _INSIDE) ** len(chain.steps) * (1.0 + inflation)
        reason = proven_on_torus(chain, multiplier, lip)
        if reason is None:
            return lip, multiplier
    raise NotProven(reason)
