"""From a network to a proven certificate: candidates for the multiplier, the least one proven.

1. The layers are brought near norm 1 by powers of two (``layer_scales.py``).
2. Candidates: LipSDP's multiplier from a solver, one that the caller knows, the closed form that
   reproduces the product of norms, and, where these leave something to gain, the best closed form
   of the solver's starts.
3. The least bound that is proven through rounding (``least_proven.py``) becomes the certificate,
   with the comparison figures beside it.

The time limit covers all of it.  The solver gets what is left less what the proof will need, which
a pass over the same layers tells.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CertificateError
from ..foreign.open import network_of
from ..networks.layers import Array, Shape
from ..networks.network import Chain, Network
from ..solvers.closed_form import closed_form
from ..solvers.config import SolverConfig
from ..solvers.deadline import Deadline
from ..solvers.errors import SolveFailed
from ..solvers.problem import CertifyProblem
from ..solvers.problem import Slopes as TensorSlopes
from ..solvers.solution import CertifySolution
from ..solvers.solve import solve_certify
from ..units import Units
from .certificate import Certificate
from .claim_matrices import Matrices, measured
from .document import LayerSlopes, chain_slopes
from .last_layer import bounded, split
from .layer_scales import LayerScales
from .least_proven import Candidate, Claim, Search
from .norm_product import Norm, norm_product, product_multiplier, spectral_norm
from .proof import is_constant
from .sampled_slope import sampled_quotient, sampled_slope
from .torus.certify import OnTorus, certified_on_torus, wants_torus
from .torus.check import slopes_on_torus
from .torus.read import torus_chain

_log = logging.getLogger("admm_lip")

# Passes over the layers kept for after the solver: its answer is measured, perhaps tempered, and
# offered to a proof or two, which cost as much.
_PASSES_AFTER = 4
# Passes without which a solver, or the search for a closed form, does not come to an end at all.
_PASSES_OF_SOLVER = 5
_PASSES_OF_CLOSED_FORM = 6
# How far above the bound it implies a proven one may stand before a closed form is tried as well.
_CLOSE = 1.0 + 1e-6


@dataclass(frozen=True, eq=False)
class Order:
    """What the caller of :func:`admm_lip.certify` asked for, whatever the kind."""

    norm: str = "l2"
    units: Units | None = None
    solver: str | SolverConfig = "auto"

    def config(self, tol: float) -> SolverConfig:
        """The solver's settings; a bare name gets ``tol``."""
        if isinstance(self.solver, str):
            return SolverConfig(self.solver, tol=tol)
        return self.solver


@dataclass(frozen=True, eq=False)
class Proven:
    """A candidate that passed the proof, and what it is compared with.

    Attributes:
        candidate: with its bound, for the chain as it is.
        backend: the backend that found the multiplier, ``""`` where it was none.
        dual_bound: the solver's lower bound on the LipSDP optimum, 0 where there is none.
        product: of the layers' norms.
    """

    candidate: Candidate
    backend: str
    dual_bound: float
    product: float

    def lower_bounds(self, found: float) -> dict[str, Any]:
        """The lower bounds beside the proven one, which rounding alone can put above it."""
        sampled = min(found, self.candidate.lip)
        return {"sampled_lower": sampled, "lower_lip": max(sampled, self.dual_bound)}

    @property
    def multiplier(self) -> tuple[tuple[float, ...], ...]:
        """The multiplier as a certificate keeps it."""
        return tuple(tuple(t.tolist()) for t in self.candidate.multiplier)


def certify_global(
    model: nn.Module | Network,
    input_shape: Shape | None = None,
    *,
    norm: str = "l2",
    units: Units | None = None,
    solver: str | SolverConfig = "auto",
    requested: float | None = None,
    multiplier: Sequence[Any] | None = None,
    structure: str | None = None,
) -> Certificate:
    """What :func:`admm_lip.certify` does for the global kind; arguments are as there."""
    order = Order(norm, units, solver)
    config = order.config(1e-6)
    deadline = Deadline(config.time_limit)
    network = network_of(model, input_shape)
    inner, last = split(network)
    asked = structure or "auto"
    # A constant behind the last layer is multiplied neuron by neuron only.
    if (last is None or asked != "auto") and wants_torus(asked, network, norm, units):
        made = certified_on_torus(network, config, deadline)
        found = sampled_quotient(network, deadline)
        return _on_torus(network, made, order, requested, found)
    chain = inner.chain()
    matrices = bounded(measured(chain, order.norm, order.units), last, order.units)
    if is_constant(chain):
        proven = constant(matrices)
    else:
        norms = [spectral_norm(w) for w in matrices.weights]
        names = names_of(chain, matrices)
        proven = prove(Task(matrices, matrices, norms, names), config, deadline, multiplier)
    lip, found = proven.candidate.lip, 0.0
    if lip > 0.0 and last is None:
        seen = matrices.weights[-len(chain.weights) :]
        found = sampled_slope(network, chain, seen, norm=order.norm, deadline=deadline)
    return Certificate(
        lip=lip,
        multiplier=proven.multiplier,
        method=proven.candidate.method,
        requested=requested,
        norm_product=proven.product,
        **proven.lower_bounds(found),
        kind="global",
        **stated(network, chain_slopes(chain), order, {proven.backend}),
    )


def _on_torus(
    network: Network, made: OnTorus, order: Order, requested: float | None, found: float
) -> Certificate:
    """The certificate of a bound with multipliers per channel."""
    lower = min(found, made.lip)
    slopes = slopes_on_torus(torus_chain(network, made.switch))
    return Certificate(
        lip=made.lip,
        multiplier=tuple(tuple(t.tolist()) for t in made.multiplier),
        method="torus",
        requested=requested,
        norm_product=made.product,
        sampled_lower=lower,
        lower_lip=lower,
        kind="global",
        switch=made.switch,
        **stated(network, slopes, order, {made.backend}),
    )


def names_of(chain: Chain, matrices: Matrices) -> list[str]:
    """What a person calls each of the matrices."""
    names = [" and ".join(map(repr, merged)) or "(identity)" for merged in chain.names]
    return [*["(input norm)"] * (len(matrices.weights) - len(names)), *names]


def stated(
    network: Network, slopes: tuple[LayerSlopes, ...], order: Order, backends: set[str]
) -> dict[str, Any]:
    """The fields that every kind of certificate has, but the kind."""
    used = sorted(backends - {""})
    return {
        "slopes": slopes,
        "digest": network.digest(),
        "input_shape": network.input_shape or (),
        "solver": ", ".join(used),
        "solver_version": ", ".join(_version(name) for name in used),
        "norm": order.norm,
        "units": order.units,
        "package_version": _version("admm-lip"),
    }


def constant(matrices: Matrices) -> Proven:
    """The certificate of what does not depend on the input."""
    ones = tuple(np.ones(len(s.alpha)) for s in matrices.slopes)
    return Proven(Candidate("constant", ones, 0.0), "", 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Task:
    """A chain that is not constant, whose l2 constant is to be bounded.

    Attributes:
        matrices: what the proof is about.
        solved: a chain with the same implied bounds, what the solver gets.
        norms: spectral norm of each of the matrices.
        names: what a person calls them.
    """

    matrices: Matrices
    solved: Matrices
    norms: Sequence[Norm]
    names: Sequence[str]

    def claim(self, deadline: Deadline) -> Claim:
        """The same with its layers' scales taken out (step 1)."""
        scales = LayerScales(tuple(n.power for n in self.norms))
        problem = _problem(scales.unit(self.solved))
        return Claim(self.matrices, scales, problem, self.names, deadline)


def prove(
    task: Task, config: SolverConfig, deadline: Deadline, known: Sequence[Any] | None = None
) -> Proven:
    """Steps 1 to 3.

    Args:
        task: what is to be proven.
        config: of the solver; what ``deadline`` leaves binds instead of its own time limit.
        deadline: of everything.
        known: a multiplier to try as well, and to start from.

    Raises:
        CertificateError: when nothing could be proven through rounding.
    """
    claim = task.claim(deadline)
    warm = None
    if known is not None:
        warm = claim.scales.unit_multiplier(_checked(task.matrices, known))
    product, search = _product(task, claim), Search(claim)
    solution = _solved(claim, config, warm) if task.matrices.slopes else None
    candidates = [product]
    if warm is not None:
        candidates.append(Candidate("given", warm, claim.implied(warm)))
    if solution is not None:
        candidates.append(Candidate("lipsdp", _arrays(solution.multiplier), solution.lip))
    search.offer(candidates, safe=product)
    implied = min(candidate.lip for candidate in candidates)
    search.offer(_closed(claim, search, implied if solution is not None else 0.0))
    if search.best is None:
        raise CertificateError(f"no bound could be proven through rounding: {search.reason}")
    lower = claim.scales.lip(solution.lower_lip) if solution is not None else 0.0
    return Proven(
        candidate=search.best,
        backend=solution.backend if solution and search.best.method == "lipsdp" else "",
        dual_bound=min(lower, search.best.lip),
        product=norm_product(task.matrices, task.norms),
    )


def _product(task: Task, claim: Claim) -> Candidate:
    """The candidate that proves the product of norms, at least."""
    shares = [n.share for n in task.norms]
    multiplier = product_multiplier(task.matrices, shares)
    product = norm_product(task.matrices, [n._replace(power=0) for n in task.norms])
    implied = claim.implied(multiplier) if multiplier else math.inf
    return Candidate("norm_product", multiplier, min(implied, product))


def _closed(claim: Claim, search: Search, implied: float) -> list[Candidate]:
    """The solver's best closed form, where there is no other or the proof of others lost much.

    The native solver starts from it, so there is nothing to gain where its own answer was proven.
    """
    near = search.best is not None and search.best.lip <= _CLOSE * claim.scales.lip(implied)
    if (
        near
        or not claim.problem.slopes
        or not claim.deadline.has_time(passes=_PASSES_OF_CLOSED_FORM)
    ):
        return []
    found = claim.deadline.timed("closed forms", lambda: closed_form(claim.problem))
    return [] if found is None else [Candidate("closed_form", _arrays(found[0]), found[1])]


def _solved(
    claim: Claim, config: SolverConfig, warm: Sequence[Array] | None
) -> CertifySolution | None:
    """The solver's answer; ``None``, with a warning, where all failed or there is no time."""
    deadline = claim.deadline
    if not deadline.has_time(passes=_PASSES_OF_SOLVER + _PASSES_AFTER):
        _log.warning("time_limit: too short for a solver here; a closed form is certified instead")
        return None
    reserve = _PASSES_AFTER * deadline.seconds_of("passes")
    limited = replace(config, time_limit=deadline.limit(reserve))
    start = None if warm is None else tuple(torch.from_numpy(t) for t in warm)
    try:
        return solve_certify(claim.problem, limited, start)
    except SolveFailed as error:
        if not config.fallback:
            raise
        _log.warning("%s; what closed forms prove is certified instead", error)
        return None


def _problem(chain: Matrices) -> CertifyProblem:
    return CertifyProblem(
        tuple(torch.from_numpy(w) for w in chain.weights),
        tuple(TensorSlopes(*(torch.from_numpy(v) for v in s)) for s in chain.slopes),
    )


def _checked(chain: Matrices, known: Sequence[Any]) -> list[Array]:
    """A multiplier that the caller gave, as arrays."""
    given = [torch.as_tensor(t, dtype=torch.float64) for t in known]
    expected = [s.alpha.shape for s in chain.slopes]
    if [tuple(t.shape) for t in given] != expected:
        raise CertificateError(
            f"multiplier: expected shapes {expected}, one entry per hidden neuron, "
            f"got {[tuple(t.shape) for t in given]}"
        )
    return list(_arrays(given))


def _arrays(multiplier: Sequence[Tensor]) -> tuple[Array, ...]:
    return tuple(t.detach().cpu().numpy() for t in multiplier)


def _version(package: str) -> str:
    """Version of a backend's package; the native one is this package's."""
    try:
        return importlib.metadata.version("admm-lip" if package == "native" else package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
