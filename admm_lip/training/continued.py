"""Where a constraint goes on: from weights, from an earlier state, or under something else."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from operator import mul

import torch

from .admm_state import AdmmState, Matrices
from .held import Held
from .layer_norms import layer_start
from .start import Start, inner_bound, start
from .terms import LayerNorms, Terms


def started(weights: Matrices, terms: Terms, dtype: torch.dtype, loss_scale: float) -> Start:
    """The first state for these weights; arguments as of :func:`~.start.start`."""
    begin = layer_start if isinstance(terms.slopes, LayerNorms) else start
    return begin(weights, terms, dtype, loss_scale)


def gone_on(
    state: AdmmState, weights: Matrices, terms: Terms, dtype: torch.dtype, loss_scale: float
) -> Start:
    """The state of an earlier run as the first of another: what counts steps begins anew.

    Where weights are held they stay at what they are now, and the consensus is found anew.
    """
    again = replace(state, iteration=0, steps=0, lr=None, momentum=(), mean_square=0.0)
    if terms.held:
        return _in_place_of(again, started(weights, terms, dtype, loss_scale), terms.held)
    return Start(again, (1.0,) * len(state.consensus))


def asked_again(state: AdmmState, terms: Terms, dtype: torch.dtype, loss_scale: float) -> Start:
    """The state under other ``terms``: a smaller bound scales all layers evenly.

    The multiplier moves along as in :func:`start`; under a larger bound it certifies as it is.
    """
    if any(terms.held.rigid) and terms.asked.bound is not None:
        fresh = started(state.consensus, terms, dtype, loss_scale)
        return _in_place_of(state, fresh, terms.held)
    layers, bound = len(state.consensus), inner_bound(terms.asked, dtype)
    if bound is None:
        return Start(state, (1.0,) * layers)
    share, sharing = bound / state.lip, terms.sharing(layers)
    factor, gain = (share ** (1.0 / max(1, sum(sharing))), 1.0) if share < 1.0 else (1.0, share**2)
    depth = len(state.multiplier)
    again = replace(
        state,
        consensus=terms.scaled(state.consensus, min(1.0, share)),
        multiplier=tuple(
            t * gain * factor ** (2 * (depth - k)) for k, t in enumerate(state.multiplier)
        ),
        rho=terms.config.rho or state.rho * share ** (-2.0 / layers),
        lip_sq=bound**2,
        target_sq=bound**2,
    )
    return Start(again, tuple(accumulate((factor if own else 1.0 for own in sharing), mul)))


def _in_place_of(state: AdmmState, begun: Start, held: Held) -> Start:
    """What a new start says of the weights, with the dual and the counters of a state."""
    nothing = tuple(torch.zeros_like(y) for y in state.dual)
    fresh = begun.state
    again = replace(
        state,
        consensus=fresh.consensus,
        dual=held.kept(nothing, state.dual),
        multiplier=fresh.multiplier,
        rho=fresh.rho,
        lip_sq=fresh.lip_sq,
        target_sq=fresh.target_sq,
        warm=None,
    )
    return Start(again, begun.bias_factors)
