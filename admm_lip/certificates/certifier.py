"""From a network to a proven certificate: candidates for the multiplier, and the least inflation.

1. Candidates: LipSDP's multiplier from a solver, one that the caller knows, and the closed form
   that reproduces the product of norms.
2. In the order of the bounds they imply, each is offered to the proof through rounding
   (``proof.py``), inflated by as little as makes it succeed.
3. The first that is proven becomes the certificate, with the comparison figures beside it.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CertificateError
from ..networks.layers import Array, Shape
from ..networks.network import Chain, Network
from ..networks.storage import network_of
from ..solvers.config import SolverConfig
from ..solvers.errors import SolveFailed
from ..solvers.lmi import implied_bound
from ..solvers.problem import CertifyProblem
from ..solvers.problem import Slopes as TensorSlopes
from ..solvers.solution import CertifySolution
from ..solvers.solve import solve_certify
from .certificate import Certificate
from .document import MODEL_UNITS, RAW_UNITS, chain_slopes
from .norm_product import norm_product, product_multiplier, spectral_norm
from .proof import is_constant, rounding_margin, unproven
from .restate import Matrices, measured
from .sampled_slope import sampled_slope

_log = logging.getLogger("admm_lip")

# Largest relative inflation of the bound at which the proof is tried.
_LARGEST_INFLATION = 0.1


@dataclass(frozen=True, eq=False)
class Order:
    """What the caller of :func:`admm_lip.certify` asked for, whatever the kind."""

    norm: str = "l2"
    input_scale: Any = None
    solver: str | SolverConfig = "auto"

    def config(self, tol: float) -> SolverConfig:
        """The solver's settings; a bare name gets ``tol``."""
        if isinstance(self.solver, str):
            return SolverConfig(self.solver, tol=tol)
        return self.solver

    def scale_of(self, network: Network) -> tuple[float, ...] | None:
        """One scale per input feature, in the order of the flattened input."""
        if self.input_scale is None:
            return None
        given = self.input_scale
        values = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
        if values.size == 1:
            values = np.full(network.size_in, values)
        return tuple(values.astype(np.float64).ravel().tolist())


@dataclass(frozen=True, eq=False)
class Candidate:
    """A multiplier and the bound it implies in exact arithmetic, nearly."""

    method: str
    multiplier: tuple[Array, ...]
    lip: float


@dataclass(frozen=True, eq=False)
class Proven:
    """A candidate that passed the proof, with what the solver said and the product of norms."""

    candidate: Candidate
    solution: CertifySolution | None
    product: float

    @property
    def backend(self) -> str:
        """The backend that found the multiplier, ``""`` where it was none."""
        used = self.solution is not None and self.candidate.method == "lipsdp"
        return self.solution.backend if used and self.solution is not None else ""

    @property
    def dual_bound(self) -> float:
        """The solver's lower bound on the LipSDP optimum, 0 where there is none."""
        if self.solution is None:
            return 0.0
        return min(self.solution.lower_lip, self.candidate.lip)

    def lower_bounds(self, found: float) -> dict[str, Any]:
        """The lower bounds beside the proven one, which rounding alone can put above it."""
        sampled = min(found, self.candidate.lip)
        return {"sampled_lower": sampled, "lower_lip": max(sampled, self.dual_bound)}

    @property
    def multiplier(self) -> tuple[tuple[float, ...], ...]:
        """The multiplier as a certificate keeps it."""
        return tuple(tuple(t.tolist()) for t in self.candidate.multiplier)


def certified(
    model: nn.Module | Network,
    input_shape: Shape | None,
    order: Order,
    requested: float | None,
    multiplier: Sequence[Any] | None,
) -> Certificate:
    """What :func:`admm_lip.certify` does for the global kind."""
    network = network_of(model, input_shape)
    chain, scale = network.chain(), order.scale_of(network)
    matrices = measured(chain, order.norm, scale)
    norms = [spectral_norm(w) for w in matrices.weights]
    if is_constant(chain):
        proven = constant(matrices)
    else:
        proven = prove(matrices, matrices, norms, order.config(1e-6), multiplier)
    lip = proven.candidate.lip
    seen = replace(chain, weights=matrices.weights[-len(chain.weights) :])
    found = sampled_slope(network, seen, norm=order.norm) if lip > 0.0 else 0.0
    return Certificate(
        lip=lip,
        multiplier=proven.multiplier,
        method=proven.candidate.method,
        requested=requested,
        norm_product=proven.product,
        **proven.lower_bounds(found),
        kind="global",
        **stated(network, chain, order, {proven.backend}),
    )


def stated(network: Network, chain: Chain, order: Order, backends: set[str]) -> dict[str, Any]:
    """The fields that every kind of certificate has, but the kind."""
    used = sorted(backends - {""})
    scale = order.scale_of(network)
    return {
        "slopes": chain_slopes(chain),
        "digest": network.digest(),
        "input_shape": network.input_shape or (),
        "solver": ", ".join(used),
        "solver_version": ", ".join(_version(name) for name in used),
        "norm": order.norm,
        "units": MODEL_UNITS if scale is None else RAW_UNITS,
        "input_scale": scale,
        "package_version": _version("admm-lip"),
    }


def constant(matrices: Matrices) -> Proven:
    """The certificate of what does not depend on the input."""
    ones = tuple(np.ones(len(s.alpha)) for s in matrices.slopes)
    return Proven(Candidate("constant", ones, 0.0), None, 0.0)


def prove(
    matrices: Matrices,
    solved: Matrices,
    norms: Sequence[float],
    config: SolverConfig,
    known: Sequence[Any] | None = None,
) -> Proven:
    """Steps 1 to 3 for the l2 constant of a chain that is not constant.

    Args:
        matrices: what the proof is about.
        solved: a chain with the same optimal multipliers, what the solver gets.
        norms: spectral norm of each of the matrices.
        config: of the solver.
        known: a multiplier to try as well, and to start from.

    Raises:
        CertificateError: when nothing could be proven through rounding.
    """
    problem = _problem(solved)
    warm = _as_tensors(matrices, known) if known is not None else None
    found: list[tuple[str, tuple[Tensor, ...]]] = []
    solution = _solved(problem, config, warm) if matrices.slopes else None
    if solution is not None:
        found.append(("lipsdp", solution.multiplier))
    if warm is not None:
        found.append(("given", warm))
    closed = product_multiplier(matrices, norms)
    found.append(("norm_product", tuple(torch.from_numpy(t) for t in closed)))
    candidates = [
        Candidate(
            method,
            tuple(t.detach().cpu().numpy() for t in multiplier),
            implied_bound(problem.weights, problem.slopes, multiplier),
        )
        for method, multiplier in found
    ]
    best = first_proven(matrices, sorted(candidates, key=lambda c: c.lip))
    return Proven(best, solution, norm_product(matrices, norms))


def _solved(
    problem: CertifyProblem, config: SolverConfig, warm: tuple[Tensor, ...] | None
) -> CertifySolution | None:
    """The solver's answer; ``None``, with a warning, where every backend of a chain failed."""
    try:
        return solve_certify(problem, config, warm)
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


def _as_tensors(chain: Matrices, known: Sequence[Any]) -> tuple[Tensor, ...]:
    tensors = tuple(torch.as_tensor(t, dtype=torch.float64).detach().cpu() for t in known)
    expected = [s.alpha.shape for s in chain.slopes]
    if [tuple(t.shape) for t in tensors] != expected:
        raise CertificateError(
            f"multiplier: expected shapes {expected}, one entry per hidden neuron, "
            f"got {[tuple(t.shape) for t in tensors]}"
        )
    return tensors


def first_proven(chain: Matrices, candidates: Sequence[Candidate]) -> Candidate:
    """The first candidate that is proven, each at its least inflation.

    Raises:
        CertificateError: when there is none.
    """
    reason: str | None = "no candidate implies a finite bound"
    for candidate in candidates:
        if not math.isfinite(candidate.lip):
            continue
        for inflated in _inflated(candidate, _first_inflation(chain, candidate)):
            reason = unproven(chain, inflated.multiplier, inflated.lip)
            if reason is None:
                return inflated
    raise CertificateError(
        f"no bound could be proven through rounding ({reason}); the weights may be too unevenly "
        "scaled: rescale the layers, or certify with another solver"
    )


def _first_inflation(chain: Matrices, candidate: Candidate) -> float:
    """Where trying begins: the proof's rounding margin, which an inflation must make up for.

    The least eigenvalue grows by half the inflation (:func:`_inflated`), so a little less than
    twice the margin is the first that can succeed at an optimal multiplier.
    """
    return rounding_margin(chain, candidate.multiplier, candidate.lip)


def _inflated(candidate: Candidate, first: float) -> Iterator[Candidate]:
    """Slightly larger bounds with multipliers to match, in the order of trial.

    ``t_k (1 + e)^(l+1-k)`` with ``L (1 + e)^((l+1)/2)`` shrinks every off-diagonal block of the
    scaled inequality by ``(1 + e)^(-1/2)``, so for ``alpha beta <= 0`` its least eigenvalue grows
    by about e/2, whatever the depth.  The plain inflation of L is for positive alpha.
    """
    depth = len(candidate.multiplier)
    e = first
    while e < _LARGEST_INFLATION:
        profile = tuple(t * (1.0 + e) ** (depth - k) for k, t in enumerate(candidate.multiplier))
        lip = candidate.lip * (1.0 + e) ** ((depth + 1) / 2)
        yield Candidate(candidate.method, profile, lip)
        yield Candidate(candidate.method, candidate.multiplier, lip)
        yield Candidate(candidate.method, profile, lip * (1.0 + e) ** (depth + 1))
        e *= 2.0


def _version(package: str) -> str:
    """Version of a backend's package; the native one is this package's."""
    try:
        return importlib.metadata.version("admm-lip" if package == "native" else package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
