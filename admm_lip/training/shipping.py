"""The finished weights: rounded to the dtype that they are shipped in, and certified so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from ..certificates.certificate import Certificate
from ..certificates.certifier import certify_global
from ..certificates.torus.product import certify_product
from ..certificates.torus.reading import NotShiftInvariant
from ..errors import TrainingFailed
from ..foreign.open import network_of
from ..networks.layers import Shape
from ..solvers import SolverConfig
from .admm_state import AdmmState, write_weights
from .start import CAST_MARGIN
from .terms import LayerNorms, Terms

# Gap in L^2 to which the finished network is certified: the bound is used up by then, so a closer
# look gains a few units in the sixth digit, and on sorting layers it takes as long as three epochs.
FINAL_TOL = 1e-4
# Times that weights are rounded to the model's dtype and, outside the bound, scaled down.
ROUNDINGS = 5


def certified(
    model: nn.Module, parameters: Sequence[nn.Parameter], state: AdmmState, terms: Terms
) -> Certificate:
    """The certificate of the consensus as ``model`` stores it.

    Where rounding has led out of the bound, what may move is scaled by what it is too much, and
    rounded again.

    Raises:
        TrainingFailed: when that does not lead back.
    """
    bound, weights, dtype = terms.asked.bound, state.consensus, parameters[0].dtype
    for _ in range(ROUNDINGS):
        found = _certified(model, state, terms)
        if bound is None or found.lip <= bound:
            return found
        weights = terms.scaled(weights, bound / found.lip * (1.0 - CAST_MARGIN[dtype]))
        write_weights(parameters, weights)
    raise TrainingFailed(
        f"bound: {dtype} cannot hold weights that certify {bound:g}, only {found.lip:.6g}; train "
        "in float32"
    )


def _certified(model: nn.Module, state: AdmmState, terms: Terms) -> Certificate:
    """Of all multipliers the best, but with convolutions those of the norms that were kept."""
    asked = terms.asked
    solver = replace(terms.config.solver, tol=max(terms.config.solver.tol, FINAL_TOL))
    image = terms.slopes.image if isinstance(terms.slopes, LayerNorms) else None
    if image is None:
        known = state.multiplier or None
        return certify_global(
            model, units=asked.units, solver=solver, requested=asked.bound, multiplier=known
        )
    return certify_norms(model, image, solver, asked.bound)


def certify_norms(
    model: nn.Module, image: Shape, solver: SolverConfig, requested: float | None
) -> Certificate:
    """The product of norms of a network of convolutions, proven.

    Where two layers without an activation between them forbid a torus, its matrices are certified.
    """
    try:
        return certify_product(network_of(model, image), requested)
    except NotShiftInvariant:
        return certify_global(model, image, solver=solver, requested=requested, structure="exact")
