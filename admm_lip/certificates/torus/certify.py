"""The certificate of an image network: per channel up to a switch layer, per neuron from there on.

1. Every activation that can stand on a torus is put there, and a barrier method finds multipliers
   per channel for them, and per neuron for the head (``search.py``).
2. From every switch layer on that is small enough the head is a dense chain whose first matrix
   holds the covariance of what comes before, proven through rounding (``proof.py``); the solver
   finds its multipliers, and its proof is that of any chain.
3. The least bound that was proven is the certificate.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import CertificateError
from ...networks.joins import JOINS
from ...networks.layers import AFFINE, RESHAPES, Array
from ...networks.network import Network
from ...solvers.config import SolverConfig
from ...solvers.deadline import Deadline
from ..chain_bound import Task, prove
from ..norm_product import spectral_norm
from .check import head_matrices, proven_on_torus, torus_product
from .proof import NotProven, covariances, gathered, largest
from .read import NotShiftInvariant, torus_chain
from .search import search
from .steps import TorusChain

_log = logging.getLogger("admm_lip")

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
        lip: the bound.
        multiplier: per channel of the first ``switch`` activations, then per neuron.
        switch: how many activations are taken per channel.
        product: of the norms of all layers, for comparison.
        backend: that solved the head, ``""`` where none did.
    """

    lip: float
    multiplier: tuple[Array, ...]
    switch: int
    product: float
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
    best: OnTorus | None = None
    reason = ""
    for chain in reversed(chains):
        if best is not None and not _is_small(chain):
            break
        try:
            made = _proven(chain, found, later, config, deadline)
        except (NotProven, CertificateError) as error:
            reason = str(error)
            continue
        if best is None or made.lip < best.lip:
            best = made
        if not deadline.has_time():
            break
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
    if structure != "auto" or not plain or len(network.input_shape or ()) != 3:
        return structure == "torus"
    shapes = network.shapes()
    neurons = sum(math.prod(shapes[s.name]) for s in network.layers if s.kind not in _LINEAR)
    return neurons > EXACT_NEURONS and _stands_on_torus(network)


def _stands_on_torus(network: Network) -> bool:
    try:
        torus_chain(network, 1)
    except NotShiftInvariant:
        return False
    return True


def _chains(network: Network) -> list[TorusChain]:
    """The network switched after its first activation, its second, and so on while it can be."""
    found: list[TorusChain] = []
    for switch in range(1, len(network.layers) + 1):
        try:
            chain = torus_chain(network, switch)
        except NotShiftInvariant:
            if not found:
                raise
            break
        if not found or len(chain.activations) > len(found[-1].activations):
            found.append(chain)
    return found


def _is_small(chain: TorusChain) -> bool:
    """Whether the head can be solved neuron by neuron."""
    if chain.head is None:
        return True
    shapes = chain.head.shapes()
    neurons, entries, first = 0, 0, 0
    for spec in chain.head.layers:
        size = math.prod(shapes[spec.name])
        if spec.kind in ("linear", "conv2d") and not first:
            first = size
            entries = size * math.prod(chain.image)
        if spec.kind not in _LINEAR:
            neurons += size
    return neurons <= HEAD_NEURONS and entries <= _HEAD_ENTRIES


def _proven(
    chain: TorusChain,
    found: Sequence[Array],
    later: Sequence[Array],
    config: SolverConfig,
    deadline: Deadline,
) -> OnTorus:
    """The bound of one switch layer."""
    switch = len(chain.activations)
    multiplier = tuple(found[:switch])
    product = torus_product(chain)
    if chain.head is None:
        squared = max(float(largest(p).max()) for _, _, p in covariances(chain, multiplier))
        lip = math.sqrt(squared) * (1.0 + _INFLATION)
        reason = proven_on_torus(chain, multiplier, lip)
        if reason is not None:
            raise NotProven(reason)
        return OnTorus(lip, multiplier, switch, product, "")
    head = head_matrices(chain.head)
    first = gathered(chain, multiplier, head.weights[0], head.errors[0])
    seen = replace(head, weights=(first, *head.weights[1:]), errors=(0.0, *head.errors[1:]))
    norms = [spectral_norm(w) for w in seen.weights]
    names = [f"(matrix {k} of the head)" for k in range(len(norms))]
    known: Any = later if len(later) == len(head.slopes) and switch == len(found) else None
    proven = prove(Task(seen, seen, norms, names), config, deadline, known)
    return OnTorus(
        proven.candidate.lip,
        (*multiplier, *proven.candidate.multiplier),
        switch,
        product,
        proven.backend,
    )
