"""The certificate of an image network: per channel up to a switch layer, per neuron from there on.

1. Every activation that can stand on a torus is put there, and a barrier method finds multipliers
   per channel for them, and per neuron for the head (``search.py``).
2. From every switch layer on that is small enough the head is a dense chain whose first matrix
   holds the covariance of what comes before, proven through rounding (``proof.py``); the solver
   finds its multipliers, and its proof is that of any chain.
3. The least bound that was proven is the certificate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import CertificateError
from ...networks.joins import JOINS
from ...networks.layers import AFFINE, RESHAPES, Array
from ...networks.network import Network
from ...solvers.config import SolverConfig
from ...solvers.deadline import Deadline
from ..chain_bound import Task, prove
from ..norm_product import spectral_norm
from .check import head_matrices, proven_on_torus
from .proof import NotProven, covariances, gathered, largest
from .read import finished, stops
from .reading import NotShiftInvariant
from .search import search
from .steps import TorusChain

# Neurons of a head up to which its multipliers are sought one by one.
HEAD_NEURONS = 1000
# Neurons beyond which multipliers are sought per channel where nobody says.
EXACT_NEURONS = 3000
STRUCTURES = ("auto", "exact", "torus")
_LINEAR = (*AFFINE, *RESHAPES, *JOINS)
# Entries of a head's first matrix, unrolled.
_HEAD_ENTRIES = 2**25
# How much is added to what the torus says, where no head follows, and proven.
_INFLATION = 1e-9


@dataclass(frozen=True, eq=False)
class OnTorus:
    """A proven bound of an image network.

    Attributes:
        chain: what is taken per channel, and what follows.
        lip: the bound.
        multiplier: per channel of the activations of ``chain``, then per neuron.
        backend: that solved the head, ``""`` where none did.
    """

    chain: TorusChain
    lip: float
    multiplier: tuple[Array, ...]
    backend: str


def certified_on_torus(network: Network, config: SolverConfig, deadline: Deadline) -> OnTorus:
    """The least bound that is proven with the first activations on a torus.

    Raises:
        NotShiftInvariant: by name, where not even the first activation can stand on one.
        CertificateError: where nothing was proven.
    """
    chains = _chains(network)
    deepest = chains[-1]
    head = None if deepest.head is None else head_matrices(deepest.head)
    found, later = search(deepest, head, deadline)
    best, reason = None, ""
    for chain in reversed(chains):
        if best is not None and not (_is_small(chain) and deadline.has_time()):
            break
        try:
            made = _proven(chain, found, later if chain is deepest else None, config, deadline)
        except (NotProven, CertificateError) as error:
            reason = str(error)
            continue
        best = made if best is None or made.lip < best.lip else best
    if best is None:
        raise CertificateError(f"structure: no bound could be proven on a torus: {reason}")
    return best


def wants_torus(structure: str, network: Network, norm: str, units: Any) -> bool:
    """Whether a network is to be certified frequency by frequency.

    Raises:
        CertificateError: for an unknown structure, or one that does not go with norm or units.
    """
    if structure not in STRUCTURES:
        raise CertificateError(
            f"structure: expected one of {', '.join(STRUCTURES)}, got {structure!r}"
        )
    plain = norm == "l2" and units is None
    if structure == "torus" and not plain:
        raise CertificateError("structure: 'torus' goes with norm 'l2' and no units")
    if structure != "auto" or not plain:
        return structure == "torus"
    return neurons_of(network) > EXACT_NEURONS and _stands_on_torus(network)


def neurons_of(network: Network) -> int:
    """Hidden neurons, one per entry of a layer that is not linear."""
    shapes = network.shapes()
    return sum(math.prod(shapes[s.name]) for s in network.layers if s.kind not in _LINEAR)


def _stands_on_torus(network: Network) -> bool:
    try:
        return next(stops(network), None) is not None
    except NotShiftInvariant:
        return False


def _chains(network: Network) -> list[TorusChain]:
    """The network switched behind its first activation, its second, and so on while it can be."""
    found: list[TorusChain] = []
    try:
        for reading in stops(network):
            found.append(finished(reading))
    except NotShiftInvariant:
        if not found:
            raise
    if not found:
        raise NotShiftInvariant("structure: no single value leads on behind an activation")
    return found


def _is_small(chain: TorusChain) -> bool:
    """Whether the head can be solved neuron by neuron."""
    if chain.head is None:
        return True
    neurons = neurons_of(chain.head)
    return neurons <= HEAD_NEURONS and neurons * math.prod(chain.image) <= _HEAD_ENTRIES


def _proven(
    chain: TorusChain,
    found: Sequence[Array],
    later: Sequence[Array] | None,
    config: SolverConfig,
    deadline: Deadline,
) -> OnTorus:
    """The bound of one switch layer; ``later`` is what is known of its head's multipliers."""
    multiplier = tuple(found[: len(chain.activations)])
    if chain.head is None:
        squared = max(float(largest(p).max()) for _, _, p in covariances(chain, multiplier))
        lip = math.sqrt(squared) * (1.0 + _INFLATION)
        reason = proven_on_torus(chain, multiplier, lip)
        if reason is not None:
            raise NotProven(reason)
        return OnTorus(chain, lip, multiplier, "")
    seen = gathered(chain, multiplier, head_matrices(chain.head))
    norms = [spectral_norm(w) for w in seen.weights]
    names = [f"(matrix {k} of the head)" for k in range(len(norms))]
    proven = prove(Task(seen, seen, norms, names), config, deadline, later)
    best = proven.candidate
    return OnTorus(chain, best.lip, (*multiplier, *best.multiplier), proven.backend)
