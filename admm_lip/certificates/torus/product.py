"""The certificate of an image network by the product of its layers' norms, nothing solved.

With ``P <= p I`` and m the steepest slope of an activation, ``t = span / (p m)`` gives
``P <= m^2 p I`` behind it: for ``[0, 1]`` and ``[-1, 1]`` alike, so that a network of sorted pairs
has the product of its norms on the torus, and of its head's, as a bound that these multipliers
prove.  Training that keeps every layer's norm ends in it.
"""

from __future__ import annotations

import math

import numpy as np

from ...errors import CertificateError
from ...networks.layers import Array
from ...networks.network import Network
from ...solvers.deadline import Deadline
from ..certificate import Certificate
from ..certifier import Order, stated
from ..chain_bound import Task, prove_product
from ..norm_product import spectral_norm
from ..sampled_slope import sampled_quotient
from .check import head_matrices, proven_on_torus, slopes_on_torus, torus_norm, torus_product
from .proof import NotProven, gathered
from .read import finished, stops
from .reading import NotShiftInvariant
from .steps import Correlation, Pointwise, TorusChain, half_of, levels_of

# How far inside the range that proves the product a multiplier stays, relatively.
_INSIDE = 1e-7
# How much the bound is raised, where no head follows, until it is proven.
_INFLATIONS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)


def certify_product(network: Network, requested: float | None = None) -> Certificate:
    """The proven product of norms; multipliers are per channel as far as a torus holds them.

    Raises:
        NotShiftInvariant: by name, where not even the first activation can stand on a torus.
        CertificateError: where rounding forbids the proof.
    """
    chain = deepest(network)
    try:
        lip, multiplier = _proven(chain)
    except NotProven as reason:
        raise CertificateError(f"the product of norms is not proven: {reason}") from None
    lower = min(sampled_quotient(network, Deadline(None)), lip)
    return Certificate(
        lip=lip,
        multiplier=tuple(tuple(t.tolist()) for t in multiplier),
        method="norm_product",
        requested=requested,
        norm_product=torus_product(chain),
        sampled_lower=lower,
        lower_lip=lower,
        kind="global",
        switch=len(chain.activations),
        **stated(network, slopes_on_torus(chain), Order(), set()),
    )


def deepest(network: Network) -> TorusChain:
    """The network with as many of its first activations on a torus as can stand there."""
    found = None
    try:
        for reading in stops(network):
            found = finished(reading)
    except NotShiftInvariant:
        if found is None:
            raise
    if found is None:
        raise NotShiftInvariant("structure: no single value leads on behind an activation")
    return found


def product_multiplier(chain: TorusChain) -> tuple[Array, ...]:
    """The multipliers of the module's docstring."""
    last, _ = half_of(chain.last_grid)
    p, found = 1.0, []
    for step, (frequencies, grid) in zip(chain.steps, levels_of(chain, last), strict=True):
        if isinstance(step, Correlation):
            p *= torus_norm(step, frequencies, grid) ** 2 * (1.0 + _INSIDE)
            continue
        steepest = _steepest(step)
        span = np.where(step.beta > step.alpha, step.beta - step.alpha, 1.0)
        found.append(span / (p * (1.0 + _INSIDE) * steepest))
        p *= steepest**2 * (1.0 + 2.0 * _INSIDE)
    return tuple(found)


def _steepest(step: Pointwise) -> float:
    """The steepest slope of an activation, 1 at least where channels may pass."""
    return max(float(np.maximum(np.abs(step.alpha), np.abs(step.beta)).max()), 1e-30)


def _proven(chain: TorusChain) -> tuple[float, tuple[Array, ...]]:
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
