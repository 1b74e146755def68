"""Start from the multiplier of a network nearby.

An optimal multiplier stands on the boundary, and a network that moved a little may put it outside:

1. ``t_k g^(l+1-k)`` for a few g near 1, which gives every layer room against the next one; the g
   with the least bound, and rho a little above that bound.
2. Newton on ``rho/mu - logdet S`` at the fixed mu that stands for a gap of 1e-3 (or of ``tol``
   where that is larger): few steps, because nearby networks have nearby points at that mu.
3. The dual point of the last step.  After ``MOST_STEPS`` steps the start is given up.
"""

from __future__ import annotations

import torch

from ...lmi import implied_bound
from ...problem import CertifyProblem, Multiplier
from ..lmi.block_cholesky import factorize
from ..lmi.checkpoints import Trouble
from ..lmi.lmi_operator import LmiOperator
from ..lmi.progress import Progress
from .centring import Centre, centre_at

MOST_STEPS = 8
_GAP = 1e-3
# The gap of a point that is only nearly centred is a little more than mu D.
_SHARE = 0.7
_GROWTH = (1.0003, 1.001, 1.003, 1.01, 1.03, 1.1)


def usable(problem: CertifyProblem, warm: Multiplier) -> bool:
    """Whether there is a positive finite entry per neuron."""
    sizes = [w.shape[0] for w in problem.weights[:-1]]
    return [t.shape[0] for t in warm] == sizes and all(
        bool((torch.isfinite(t) & (t > 0)).all()) for t in warm
    )


def warm_centre(op: LmiOperator, warm: Multiplier, run: Progress, tol: float) -> Centre | Trouble:
    """A point near the central path at a small gap."""
    lip_sq, t = min(
        (_with_room(op, warm, growth) for growth in _GROWTH), key=lambda found: found[0]
    )
    if not 0.0 < lip_sq < float("inf"):
        return Trouble.USELESS
    gap = max(_GAP, tol)
    rho = t.new_tensor([lip_sq * (1.0 + gap)])
    y = torch.cat([rho, op.restrict(t)])
    if factorize(op.slack(y)) is None:
        return Trouble.NO_FACTOR
    run.keep(y)
    return centre_at(op, y, run, _SHARE * gap * lip_sq / op.order, MOST_STEPS)


def _with_room(op: LmiOperator, warm: Multiplier, growth: float) -> tuple[float, torch.Tensor]:
    """The bound of ``t_k growth^(l+1-k)``, and that multiplier laid end to end."""
    depth = len(warm)
    grown = tuple(t * growth ** (depth - k) for k, t in enumerate(warm))
    lip = implied_bound(op.problem.weights, op.problem.slopes, grown)
    return lip**2, torch.cat(grown)
