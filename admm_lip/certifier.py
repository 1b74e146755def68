"""From a network to a proven certificate: candidates for the multiplier, and the least inflation.

1. Candidates: LipSDP's multiplier from a solver, one that the caller knows, and the closed form
   that reproduces the product of norms.
2. In the order of the bounds they imply, each is offered to the proof through rounding
   (``proof.py``), inflated by as little as makes it succeed.
3. The first that is proven becomes the certificate, with the comparison figures beside it.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .certificate import Certificate, chain_slopes
from .errors import CertificateError
from .layers import Array, Shape
from .network import Chain, Network
from .proof import is_constant, rounding_margin, unproven
from .sampled_slope import sampled_slope
from .solvers.config import SolverConfig
from .solvers.lmi import implied_bound
from .solvers.problem import CertifyProblem
from .solvers.problem import Slopes as TensorSlopes
from .solvers.solution import CertifySolution
from .solvers.solve import solve_certify
from .storage import network_of

# Largest relative inflation of the bound at which the proof is tried.
_LARGEST_INFLATION = 0.1


@dataclass(frozen=True, eq=False)
class Candidate:
    """A multiplier and the bound it implies in exact arithmetic, nearly."""

    method: str
    multiplier: tuple[Array, ...]
    lip: float


def certified(
    model: nn.Module | Network,
    input_shape: Shape | None,
    solver: str | SolverConfig,
    requested: float | None,
    multiplier: Sequence[Any] | None,
) -> Certificate:
    """What :func:`admm_lip.certify` does."""
    network = network_of(model, input_shape)
    chain = network.chain()
    product = norm_product(chain)
    if is_constant(chain):
        ones = tuple(np.ones(len(s.alpha)) for s in chain.slopes)
        solution, proven = None, Candidate("constant", ones, 0.0)
    else:
        config = SolverConfig(solver) if isinstance(solver, str) else solver
        solution, candidates = _candidates(chain, config, multiplier)
        proven = _first_proven(chain, candidates)
    backend = solution.backend if solution and proven.method == "lipsdp" else ""
    sampled = sampled_slope(network, chain) if proven.lip > 0.0 else 0.0
    return Certificate(
        lip=proven.lip,
        multiplier=tuple(tuple(t.tolist()) for t in proven.multiplier),
        slopes=chain_slopes(chain),
        digest=network.digest(),
        input_shape=network.input_shape or (),
        method=proven.method,
        solver=backend,
        solver_version=_version(backend) if backend else "",
        requested=requested,
        lower_lip=max(sampled, min(solution.lower_lip, proven.lip) if solution else 0.0),
        norm_product=product,
        sampled_lower=sampled,
        package_version=_version("admm-lip"),
    )


def norm_product(chain: Chain) -> float:
    """Product of the layers' spectral norms and greatest absolute slopes (computed, not proven)."""
    norms = [spectral_norm(w) for w in chain.weights]
    return math.prod(norms) * math.prod(_steepest(chain))


def product_multiplier(chain: Chain) -> tuple[Array, ...]:
    """The multiplier in closed form that proves the product of norms.

    With m the greatest absolute slope, ``(x - alpha v)(x - beta v) <= 0`` implies
    ``x^2 <= m^2 v^2``, and the S-procedure's factor for that is ``2 m / (beta - alpha)``.  Summing
    the layers with weights ``c_l = ||W_l||^2, c_{k-1} = c_k m_k^2 ||W_{k-1}||^2`` telescopes to
    ``||W_l x_l||^2 <= (product)^2 ||x_0||^2``, hence ``t_k = c_k m_k / (beta_k - alpha_k)``.
    """
    steepest, weight, multiplier = _steepest(chain), 1.0, []
    for k in range(len(chain.slopes) - 1, -1, -1):
        alpha, beta = float(chain.slopes[k].alpha.min()), float(chain.slopes[k].beta.max())
        weight *= spectral_norm(chain.weights[k + 1]) ** 2
        t = weight * steepest[k] / (beta - alpha)
        multiplier.append(np.full(chain.slopes[k].alpha.shape, t))
        weight *= steepest[k] ** 2
    return tuple(multiplier[::-1])


def spectral_norm(matrix: Array) -> float:
    """Largest singular value, from the smaller Gram matrix."""
    largest = float(np.abs(matrix).max())
    if largest == 0.0:
        return 0.0
    scaled = matrix / largest
    gram = scaled @ scaled.T if len(scaled) <= scaled.shape[1] else scaled.T @ scaled
    return largest * math.sqrt(max(float(np.linalg.eigvalsh(gram)[-1]), 0.0))


def _steepest(chain: Chain) -> list[float]:
    return [float(np.maximum(np.abs(s.alpha), np.abs(s.beta)).max()) for s in chain.slopes]


def _candidates(
    chain: Chain, config: SolverConfig, known: Sequence[Any] | None
) -> tuple[CertifySolution | None, list[Candidate]]:
    """All candidates, the least implied bound first; a single affine map needs no solver."""
    problem = _problem(chain)
    warm = _as_tensors(chain, known) if known is not None else None
    solution, found = None, []
    if chain.slopes:
        solution = solve_certify(problem, config, warm)
        found.append(("lipsdp", solution.multiplier))
    if warm is not None:
        found.append(("given", warm))
    found.append(("norm_product", tuple(torch.from_numpy(t) for t in product_multiplier(chain))))
    candidates = [
        Candidate(
            method,
            tuple(t.detach().cpu().numpy() for t in multiplier),
            implied_bound(problem.weights, problem.slopes, multiplier),
        )
        for method, multiplier in found
    ]
    return solution, sorted(candidates, key=lambda c: c.lip)


def _problem(chain: Chain) -> CertifyProblem:
    return CertifyProblem(
        tuple(torch.from_numpy(w) for w in chain.weights),
        tuple(TensorSlopes(*(torch.from_numpy(v) for v in s)) for s in chain.slopes),
    )


def _as_tensors(chain: Chain, known: Sequence[Any]) -> tuple[Tensor, ...]:
    tensors = tuple(torch.as_tensor(t, dtype=torch.float64).detach().cpu() for t in known)
    expected = [s.alpha.shape for s in chain.slopes]
    if [tuple(t.shape) for t in tensors] != expected:
        raise CertificateError(
            f"multiplier: expected shapes {expected}, one entry per hidden neuron, "
            f"got {[tuple(t.shape) for t in tensors]}"
        )
    return tensors


def _first_proven(chain: Chain, candidates: list[Candidate]) -> Candidate:
    """The first candidate that is proven, each at its least inflation."""
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


def _first_inflation(chain: Chain, candidate: Candidate) -> float:
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
