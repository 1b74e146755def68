"""The finished weights: rounded to the dtype that they are shipped in, and certified so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from ..certificates.certificate import Certificate
from ..certificates.certifier import certify_global
from ..errors import TrainingFailed
from .admm_state import AdmmState, write_weights
from .start import CAST_MARGIN
from .terms import Terms

# Gap in L^2 to which the finished network is certified: the bound is used up by then, so a closer
# look gains a few units in the sixth digit, and on sorting layers it takes as long as three epochs.
FINAL_TOL = 1e-4
# Times that weights are rounded to the model's dtype and, outside the bound, scaled down.
ROUNDINGS = 5


def certified(
    model: nn.Module, parameters: Sequence[nn.Parameter], state: AdmmState, terms: Terms
) -> Certificate:
    """The certificate of the consensus as ``model`` stores it.

    Where rounding has led out of the bound, all layers are scaled by what it is too much, and
    rounded again.

    Raises:
        TrainingFailed: when that does not lead back.
    """
    bound, weights, dtype = terms.asked.bound, state.consensus, parameters[0].dtype
    solver = replace(terms.config.solver, tol=max(terms.config.solver.tol, FINAL_TOL))
    for _ in range(ROUNDINGS):
        known = state.multiplier or None
        found = certify_global(
            model, units=terms.asked.units, solver=solver, requested=bound, multiplier=known
        )
        if bound is None or found.lip <= bound:
            return found
        share = (bound / found.lip * (1.0 - CAST_MARGIN[dtype])) ** (1.0 / len(weights))
        weights = tuple(share * w for w in weights)
        write_weights(parameters, weights)
    raise TrainingFailed(
        f"bound: {dtype} cannot hold weights that certify {bound:g}, only {found.lip:.6g}; train "
        "in float32"
    )
