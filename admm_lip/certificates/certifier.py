"""From a network to its proven certificate, of all outputs together.

A chain's bound is that of ``chain_bound.py``; an image network may be taken frequency by frequency
(``torus``).
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from torch import nn

from ..foreign.open import network_of
from ..networks.layers import Shape
from ..networks.network import Chain, Network
from ..solvers.config import SolverConfig
from ..solvers.deadline import Deadline
from ..solvers.solution import CertifySolution
from ..units import Units
from .certificate import Certificate
from .chain_bound import Task, constant, prove
from .claim_matrices import Matrices, check_units, measured
from .document import LayerSlopes, chain_slopes
from .last_layer import bounded, split
from .norm_product import spectral_norm
from .proof import is_constant
from .sampled_slope import Sampled, sampled_quotient, sampled_slopes
from .torus.certify import OnTorus, certified_at_every_size, certified_on_torus, wants_torus
from .torus.check import slopes_on_torus, torus_product
from .torus.every_size import side_of
from .torus.measure import measured_on_torus
from .torus.steps import TorusChain

_log = logging.getLogger("admm_lip")

# Relative gap in L^2 of a bound of all outputs, where the caller names no other.
TOL = 1e-6


@dataclass(frozen=True, eq=False)
class Order:
    """What the caller of :func:`admm_lip.certify` asked for, whatever the kind."""

    norm: str = "l2"
    units: Units | None = None
    solver: str | SolverConfig = "auto"

    def config(self, tol: float = TOL) -> SolverConfig:
        """The solver's settings; a bare name gets ``tol``."""
        if isinstance(self.solver, str):
            return SolverConfig(self.solver, tol=tol)
        return self.solver

    def on_torus(self, network: Network, units: Units | None) -> Callable[[TorusChain], TorusChain]:
        """How a chain on a torus is measured, in units of one's own."""
        shape = network.input_shape or ()
        if units is not None:
            check_units(units, math.prod(shape))
        if units is not None and not units.is_uniform(shape):
            _log.warning(
                "input_scale: differs within a channel, of which the least counts frequency by "
                "frequency; structure='exact' has one for every pixel"
            )
        return partial(measured_on_torus, shape=shape, norm=self.norm, units=units)


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
    begun = prepared(model, input_shape, order=order, structure=structure)
    return finished(begun, order, requested=requested, multiplier=multiplier)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network read, and what is to be bounded of it.

    Attributes:
        deadline: of its certificate, which began when it was read.
        structure: the name of the structure that an image network is proven in, ``""`` for none.
        inner: without a constant behind its last layer.
        last: that constant's bound.
        chain: of ``inner``; ``None`` for an image network.
        matrices: of the chain, in the units asked for; ``None`` for an image network.
        task: for the solver; ``None`` also where nothing depends on the input.
    """

    network: Network
    deadline: Deadline
    structure: str
    inner: Network
    last: Any
    chain: Chain | None = None
    matrices: Matrices | None = None
    task: Task | None = None

    @property
    def sampled(self) -> Sampled | None:
        """Where to look for steep points, if there is anything to look for."""
        if (
            self.chain is None
            or self.matrices is None
            or self.task is None
            or self.last is not None
        ):
            return None
        seen = self.matrices.weights[-len(self.chain.weights) :]
        return Sampled(self.network, self.chain, seen)


def prepared(
    model: nn.Module | Network,
    input_shape: Shape | None = None,
    *,
    order: Order,
    structure: str | None = None,
) -> Prepared:
    """A network read, as the matrices of a chain or as an image network."""
    deadline, asked = Deadline(order.config().time_limit), structure or "auto"
    network = network_of(model, input_shape)
    inner, last = split(network)
    # A constant behind the last layer is multiplied neuron by neuron only.
    if (last is None or asked != "auto") and wants_torus(asked, network, order.norm, order.units):
        return Prepared(network, deadline, asked, inner, last)
    chain = inner.chain()
    matrices = bounded(measured(chain, order.norm, order.units), last, order.units)
    task = None
    if not is_constant(chain):
        norms = [spectral_norm(w) for w in matrices.weights]
        task = Task(matrices, matrices, norms, names_of(chain, matrices))
    return Prepared(network, deadline, "", inner, last, chain, matrices, task)


def finished(
    begun: Prepared,
    order: Order,
    *,
    requested: float | None = None,
    multiplier: Sequence[Any] | None = None,
    solution: CertifySolution | None = None,
    slope: float | None = None,
) -> Certificate:
    """The certificate of what was read.

    Args:
        begun: what was read.
        order: what was asked for.
        requested, multiplier: as for :func:`certify_global`.
        solution: the solver's answer, if there is one already.
        slope: of the steep points, where it has been looked for.
    """
    config, deadline, matrices, chain = order.config(), begun.deadline, begun.matrices, begun.chain
    if matrices is None or chain is None:
        if begun.structure == "every_size":
            made = certified_at_every_size(begun.network, config, deadline)
            side = side_of(made.chain)
        else:
            measure = order.on_torus(begun.network, order.units)
            made, side = certified_on_torus(begun.network, config, deadline, measure), 0
        return _on_torus(begun.network, order, made, deadline, requested, side)
    if begun.task is None:
        proven = constant(matrices)
    else:
        proven = prove(begun.task, config, deadline, multiplier, solution)
    if slope is None:
        samples = [begun.sampled] if begun.sampled else []
        slope = sum(sampled_slopes(samples, norm=order.norm, deadline=deadline))
    return Certificate(
        lip=proven.candidate.lip,
        multiplier=proven.multiplier,
        method=proven.candidate.method,
        requested=requested,
        norm_product=proven.product,
        **proven.lower_bounds(slope),
        kind="global",
        **stated(begun.network, chain_slopes(chain), order, {proven.backend}),
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
    lower = sampled_quotient(network, deadline, norm=order.norm, units=order.units)
    lower = min(lower, made.lip)
    return Certificate(
        lip=made.lip,
        multiplier=tuple(tuple(t.tolist()) for t in made.multiplier),
        method="torus",
        requested=requested,
        norm_product=torus_product(made.chain),
        sampled_lower=lower,
        lower_lip=max(lower, made.dual_bound),
        kind="global",
        switch=len(made.chain.activations) - (order.norm == "linf"),
        every_size=side,
        phases=made.phases,
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
