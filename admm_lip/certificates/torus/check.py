"""The check of a bound with multipliers per channel: the torus part, then the head's chain.

NumPy and SciPy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np

from ...networks.layers import Array
from ...networks.network import Network
from ..claim_matrices import Matrices
from ..document import LayerSlopes, chain_slopes
from ..norm_product import norm_product, scaled, spectral_norm
from ..proof import unproven
from .block_figures import blocks_or_single
from .hermitian import is_below
from .proof import NotProven, covariances, gathered
from .steps import INPUT_NORM, Correlation, Index, Pair, Pointwise, TorusChain, symbol


def head_matrices(head: Network) -> Matrices:
    """The matrices of what follows the torus."""
    return Matrices.of(head.chain())


def proven_on_torus(chain: TorusChain, multiplier: Sequence[Array], lip: float) -> str | None:
    """Why the multipliers do not prove the bound, ``None`` where they do."""
    switch = len(chain.activations)
    if len(multiplier) < switch:
        return (
            f"{switch} activations stand on the torus, but there are {len(multiplier)} multipliers"
        )
    try:
        if chain.head is None:
            if len(multiplier) > switch:
                return f"{switch} activations, but {len(multiplier)} multipliers"
            parts = (p for _, _, p in covariances(chain, multiplier))
            held = all(is_below(p, lip) for p in parts)
            return None if held else "the covariance at the output exceeds its square"
        seen = gathered(chain, multiplier[:switch], head_matrices(chain.head))
    except NotProven as error:
        return str(error)
    return unproven(seen, list(multiplier[switch:]), lip)


def slopes_on_torus(chain: TorusChain) -> tuple[LayerSlopes, ...]:
    """The slope ranges as a certificate states them: widened on the torus to hold 0."""
    own = tuple(
        LayerSlopes(step.kind, float(step.alpha.min()), float(step.beta.max()))
        for step in chain.activations
        if step.kind != INPUT_NORM
    )
    return own if chain.head is None else (*own, *chain_slopes(chain.head.chain()))


def torus_product(chain: TorusChain) -> float:
    """The product of the norms on the torus, of the steepest slopes, and of the head's norms."""
    product = front_product(chain)
    if chain.head is None:
        return product
    head = head_matrices(chain.head)
    return product * norm_product(head, [spectral_norm(w) for w in head.weights])


def front_product(chain: TorusChain) -> float:
    """The same of what stands in front of the head, and of a tied residual block its own bound."""
    product = 1.0
    for piece, tied, frequencies, grid in blocks_or_single(chain, untied=False):
        if tied is not None:
            product *= math.sqrt(tied.square)
        elif isinstance(piece, Correlation):
            product *= torus_norm(piece, frequencies, grid)
        elif isinstance(piece, Pointwise):
            passing = 0.0 if len(piece.rows) == _width(chain, piece) else 1.0
            product *= max(passing, float(np.abs(piece.alpha).max()), float(piece.beta.max()))
    return product


def _width(chain: TorusChain, activation: object) -> int:
    """Channels of the state at an activation."""
    width = chain.channels
    for step in chain.steps:
        if step is activation:
            break
        if isinstance(step, Correlation):
            width = len(step.kernel)
    return width


# The norms of steps that live, by their torus: three figures of one certificate want them.
_NORMS: WeakKeyDictionary[Correlation, dict[Pair, float]] = WeakKeyDictionary()


def torus_norm(step: Correlation, frequencies: Index, grid: Pair) -> float:
    """The largest norm of the folded symbols, at all frequencies of the torus ``grid``."""
    known = _NORMS.setdefault(step, {})
    if grid not in known:
        known[grid] = _torus_norm(step, frequencies, grid)
    return known[grid]


def _torus_norm(step: Correlation, frequencies: Index, grid: Pair) -> float:
    power = math.frexp(float(np.abs(step.kernel).max()))[1]  # so that no square under- or overflows
    w = symbol(replace(step, kernel=np.ldexp(step.kernel, -power)), frequencies, grid)
    aliases = step.stride[0] * step.stride[1]
    if aliases == 1 and w.shape[2] < w.shape[1]:
        gram = w.conj().swapaxes(1, 2) @ w
    else:
        gram = w @ w.conj().swapaxes(1, 2)
        gram = gram.reshape(-1, aliases, *gram.shape[1:]).mean(axis=1)
    return scaled(math.sqrt(max(0.0, float(np.linalg.eigvalsh(gram).max()))), power)
