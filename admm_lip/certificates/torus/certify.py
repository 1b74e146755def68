"""The certificate of an image network: per channel up to a switch layer, per neuron from there on.

1. Every activation that can stand on a torus is put there, and an interior point method finds
   multipliers per channel for them, per neuron for the head, and what none can beat
   (``search.py``), from there those per channel and phase (``phases.py``), if they are not too
   many; then with one activation less there, as long as the head is small enough.
2. A head is a dense chain whose first matrix holds the covariance of what comes before, proven
   through rounding (``proof.py``); its proof is that of any chain.
3. The least bound that was proven is the certificate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ...errors import CertificateError
from ...networks.joins import JOINS
from ...networks.layers import AFFINE, RESHAPES, Array
from ...networks.network import Network
from ...solvers.config import SolverConfig
from ...solvers.deadline import Deadline
from ...solvers.threads import one_thread_of_blas
from ..chain_bound import Task, prove
from ..claim_matrices import Matrices
from ..norm_product import spectral_norm
from .check import head_matrices, proven_on_torus, torus_product
from .every_size import every_size_chain
from .hermitian import largest
from .path import Found
from .phases import affordable, in_phases, repeated
from .proof import NotProven, covariances, gathered
from .proven_product import proven_product
from .read import chains_of, stops
from .reading import NotShiftInvariant
from .search import search
from .steps import TorusChain

# Neurons of a head up to which its multipliers are sought one by one.
HEAD_NEURONS = 1000
# Those up to which that is done together with the multipliers per channel, again for each switch.
TOGETHER = 150
# Up to so many neurons in all, the gap of L^2 that the multipliers are brought to.
_TOLERANCES = ((20_000, 1e-4), (math.inf, 1e-2))
# Neurons beyond which multipliers are sought per channel where nobody says.
EXACT_NEURONS = 3000
STRUCTURES = ("auto", "exact", "torus", "every_size")
# The share of the time left that a search may take; the proof, and a head's solver, need the rest.
_SEARCH = 0.7
_LINEAR = (*AFFINE, *RESHAPES, *JOINS)
# A search per phase may take so many times as long as that per channel, or so many seconds.
_TIMES, _SECONDS = 3, 10.0
# Entries of a head's first matrix, unrolled.
_HEAD_ENTRIES = 2**25
# How much is added to what the torus says, where no head follows, and proven.
_INFLATION = 1e-9
# Up to this much above the product of norms a bound is left as it is.
_CLOSE = 1.0 + 1e-7


@dataclass(frozen=True, eq=False)
class OnTorus:
    """A proven bound of an image network.

    Attributes:
        chain: what is taken per channel, and what follows.
        lip: the bound.
        dual_bound: what no multipliers of this form go below, as far as that is known.
        multiplier: per channel of the activations of ``chain``, then per neuron.
        backend: that solved the head, ``""`` where none did.
        phases: of ``chain`` (``phases.py``).
    """

    chain: TorusChain
    lip: float
    dual_bound: float
    multiplier: tuple[Array, ...]
    backend: str
    phases: int = 1


@one_thread_of_blas()
def certified_on_torus(
    network: Network,
    config: SolverConfig,
    deadline: Deadline,
    measure: Callable[[TorusChain], TorusChain] = lambda chain: chain,
    headed: bool = False,
) -> OnTorus:
    """The least bound that is proven with the first activations on a torus.

    Args:
        network: of images.
        config: of the solver of what stands behind.
        deadline: of everything.
        measure: how inputs and outputs are measured (``measure.py``).
        headed: with a matrix behind them, which single outputs can be read off.

    Raises:
        NotShiftInvariant: by name, where not even the first activation can stand on one.
        CertificateError: where nothing was proven.
    """
    best, found, reason = None, None, ""
    chains = [c for c in chains_of(network) if c.head is not None or not headed]
    if not chains:
        raise CertificateError(
            "structure: the outputs stand on the torus themselves; single ones need "
            "structure='exact', or a dense layer in front of them"
        )
    tol = max(config.tol, _tolerance(network))
    for plain in reversed(chains):
        if best is not None and not (_is_small(plain) and deadline.has_time()):
            break
        chain = measure(plain)
        head = None if chain.head is None else head_matrices(chain.head)
        try:
            if found is None or _is_tiny(head):
                found = deadline.timed(
                    "search", partial(search, chain, head, deadline.share(_SEARCH), tol)
                )
            else:
                # The head's own solver finds the rest, for the multipliers that are known.
                found = Found(found.multiplier[: len(chain.activations)], math.inf, 0.0)
            made = _proven(chain, head, found, config, deadline)
            if math.isfinite(found.squared) and deadline.has_time(search=_TIMES):
                made = _or_in_phases(made, plain, found, measure, config, deadline, tol)
        except (NotProven, CertificateError) as error:
            reason = str(error)
            continue
        best = made if best is None or made.lip < best.lip else best
    best, reason = _or_product(measure(chains[-1]), best, reason)
    if best is None:
        raise CertificateError(f"structure: no bound could be proven on a torus: {reason}")
    return best


def _or_in_phases(
    made: OnTorus,
    plain: TorusChain,
    found: Found,
    measure: Callable[[TorusChain], TorusChain],
    config: SolverConfig,
    deadline: Deadline,
    tol: float,
) -> OnTorus:
    """The bound with multipliers per phase as well, where they are not too many and it is less."""
    phases = affordable(plain)
    if phases == 1:
        return made
    chain = measure(in_phases(plain, phases))
    head = None if chain.head is None else head_matrices(chain.head)
    near = repeated(found.multiplier, chain)
    seconds = max(_SECONDS, _TIMES * deadline.seconds_of("search"))
    left = _SEARCH * deadline.seconds_left
    try:
        found = search(chain, head, Deadline(min(seconds, left)), tol, near)
        other = _proven(chain, head, found, config, deadline)
    except (NotProven, CertificateError):
        return made
    return replace(other, phases=phases) if other.lip < made.lip else made


def _or_product(chain: TorusChain, best: OnTorus | None, reason: str) -> tuple[OnTorus | None, str]:
    """The product of norms where a search, cut short perhaps, ended above it."""
    if best is not None and best.lip <= torus_product(chain) * _CLOSE:
        return best, reason
    try:
        lip, multiplier, _ = proven_product(chain)
    except (NotProven, CertificateError) as error:
        return best, reason or str(error)
    if best is not None and best.lip <= lip:
        return best, reason
    lower = 0.0 if best is None else min(best.dual_bound, lip)
    return OnTorus(chain, lip, lower, multiplier, ""), reason


@one_thread_of_blas()
def certified_at_every_size(network: Network, config: SolverConfig, deadline: Deadline) -> OnTorus:
    """A bound that holds for images of every size, from a grid of frequencies.

    Raises:
        NotShiftInvariant: by name, for a network that is no chain of convolutions without stride.
        CertificateError: where nothing was proven.
    """
    chain, best, reason = every_size_chain(network), None, ""
    try:
        tol = max(config.tol, _tolerance(network))
        found = search(chain, None, deadline.share(_SEARCH), tol)
        best = _proven(chain, None, found, config, deadline)
    except NotProven as error:
        reason = str(error)
    best, reason = _or_product(chain, best, reason)
    if best is None:
        raise CertificateError(f"structure: no bound could be proven for every size: {reason}")
    return best


def _tolerance(network: Network) -> float:
    """The gap that the multipliers of a network are brought to, at least."""
    return next(tol for neurons, tol in _TOLERANCES if neurons_of(network) <= neurons)


def wants_torus(structure: str, network: Network, norm: str, units: Any) -> bool:
    """Whether a network is to be certified frequency by frequency.

    Raises:
        CertificateError: for an unknown structure, or sizes at once in another norm or units.
    """
    if structure not in STRUCTURES:
        raise CertificateError(
            f"structure: expected one of {', '.join(STRUCTURES)}, got {structure!r}"
        )
    shape = network.input_shape or ()
    if structure == "every_size" and not (norm == "l2" and units is None):
        raise CertificateError(f"structure: {structure!r} goes with norm 'l2' and no units")
    if structure in ("torus", "every_size") and len(shape) != 3:
        raise NotShiftInvariant(
            f"structure: expected images (channels, rows, columns), got {shape}"
        )
    if structure != "auto":
        return structure != "exact"
    large = len(shape) == 3 and neurons_of(network) > EXACT_NEURONS
    return large and _stands_on_torus(network)


def neurons_of(network: Network) -> int:
    """Hidden neurons, one per entry of a layer that is not linear."""
    shapes = network.shapes()
    return sum(math.prod(shapes[s.name]) for s in network.layers if s.kind not in _LINEAR)


def _stands_on_torus(network: Network) -> bool:
    try:
        return next(stops(network), None) is not None
    except NotShiftInvariant:
        return False


def _is_small(chain: TorusChain) -> bool:
    """Whether the head can be solved neuron by neuron."""
    if chain.head is None:
        return True
    neurons = neurons_of(chain.head)
    return neurons <= HEAD_NEURONS and neurons * math.prod(chain.image) <= _HEAD_ENTRIES


def _is_tiny(head: Matrices | None) -> bool:
    """Whether its multipliers are sought together with those on the torus."""
    return head is None or max(head.widths[1], sum(head.widths[1:-1])) <= TOGETHER


def _proven(
    chain: TorusChain,
    head: Matrices | None,
    found: Found,
    config: SolverConfig,
    deadline: Deadline,
) -> OnTorus:
    """The bound of one switch layer."""
    switch, lower = len(chain.activations), math.sqrt(found.lower)
    multiplier = tuple(found.multiplier[:switch])
    if head is None:
        squared = max(float(largest(p).max()) for _, _, p in covariances(chain, multiplier))
        lip = math.sqrt(squared) * (1.0 + _INFLATION)
        reason = proven_on_torus(chain, multiplier, lip)
        if reason is not None:
            raise NotProven(reason)
        return OnTorus(chain, lip, min(lower, lip), multiplier, "")
    seen = gathered(chain, multiplier, head)
    norms = [spectral_norm(w) for w in seen.weights]
    names = [f"(matrix {k} of the head)" for k in range(len(norms))]
    known = found.multiplier[switch:] or None
    proven = prove(Task(seen, seen, norms, names), config, deadline, known)
    lip, behind = proven.candidate.lip, proven.candidate.multiplier
    return OnTorus(chain, lip, min(lower, lip), (*multiplier, *behind), proven.backend)
