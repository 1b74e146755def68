"""From a network to its proven certificate, of all outputs together.

A chain's bound is that of ``chain_bound.py``; an image network may be taken frequency by frequency
(``torus``).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from ..foreign.open import network_of
from ..networks.layers import Shape
from ..networks.network import Chain, Network
from ..solvers.config import SolverConfig
from ..solvers.deadline import Deadline
from ..units import Units
from .certificate import Certificate
from .chain_bound import Task, constant, prove
from .claim_matrices import Matrices, measured
from .document import LayerSlopes, chain_slopes
from .last_layer import bounded, split
from .norm_product import spectral_norm
from .proof import is_constant
from .sampled_slope import sampled_quotient, sampled_slope
from .torus.certify import OnTorus, certified_at_every_size, certified_on_torus, wants_torus
from .torus.check import slopes_on_torus, torus_product
from .torus.every_size import side_of


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
    asked, last = structure or "auto", split(network)[1]
    # A constant behind the last layer is multiplied neuron by neuron only.
    if (last is None or asked != "auto") and wants_torus(asked, network, norm, units):
        prove_on = certified_at_every_size if asked == "every_size" else certified_on_torus
        made = prove_on(network, config, deadline)
        side = side_of(made.chain) if asked == "every_size" else 0
        return _on_torus(network, order, made, deadline, requested, side)
    return _neuron_by_neuron(network, order, config, deadline, requested, multiplier)


def _neuron_by_neuron(
    network: Network,
    order: Order,
    config: SolverConfig,
    deadline: Deadline,
    requested: float | None,
    multiplier: Sequence[Any] | None,
) -> Certificate:
    """The certificate of a chain of matrices, one multiplier per neuron."""
    inner, last = split(network)
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
    network: Network,
    order: Order,
    made: OnTorus,
    deadline: Deadline,
    requested: float | None,
    side: int,
) -> Certificate:
    """The certificate of an image network, its first multipliers per channel."""
    lower = min(sampled_quotient(network, deadline), made.lip)
    return Certificate(
        lip=made.lip,
        multiplier=tuple(tuple(t.tolist()) for t in made.multiplier),
        method="torus",
        requested=requested,
        norm_product=torus_product(made.chain),
        sampled_lower=lower,
        lower_lip=max(lower, made.dual_bound),
        kind="global",
        switch=len(made.chain.activations),
        every_size=side,
        **stated(network, slopes_on_torus(made.chain), order, {made.backend}),
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


@cache
def _version(package: str) -> str:
    """Version of a backend's package; the native one is this package's."""
    try:
        return importlib.metadata.version("admm-lip" if package == "native" else package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
