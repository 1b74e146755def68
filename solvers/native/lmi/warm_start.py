"""Start from the multiplier of a network nearby.

An optimal multiplier stands on the boundary, and a network that moved a little may put it outside.
Where ``T`` proves L, ``t_k g^(l+1-k)`` proves ``L g^((l+1)/2)`` with room in all layers alike:
every off-diagonal block of the scaled inequality shrinks by ``g^(-1/2)`` (for ``alpha beta <= 0``).

1. Of a few g the one whose multiplier has the least bound in the network as it is now.
2. The same g once more: a start that is worth what a closed form is, and much nearer.
"""

from __future__ import annotations

from ...lmi import implied_bound
from ...problem import CertifyProblem, Multiplier
from .closed_forms import Start

_GROWTHS = (1.005, 1.03, 1.1)


def usable(problem: CertifyProblem, warm: Multiplier) -> bool:
    """Whether there is a positive finite entry per neuron."""
    sizes = [w.shape[0] for w in problem.weights[:-1]]
    return [t.shape[0] for t in warm] == sizes and all(
        bool((t.isfinite() & (t > 0)).all()) for t in warm
    )


def warm_start(problem: CertifyProblem, warm: Multiplier) -> Start | None:
    """The start of a reduced problem, whose closed form has a bound near 1 (``reduction.py``).

    ``None`` where the multiplier does not fit, or proves no more than the closed form here.
    """
    if not usable(problem, warm):
        return None
    w, slopes = problem.weights, problem.slopes
    growth, lip = min(
        ((g, implied_bound(w, slopes, _grown(warm, g))) for g in _GROWTHS),
        key=lambda found: found[1],
    )
    lip_sq = lip**2 * growth ** len(w)
    return Start(_grown(warm, growth**2), lip_sq, 1.0) if 0.0 < lip_sq < 1.0 else None


def _grown(multiplier: Multiplier, growth: float) -> Multiplier:
    """``t_k growth^(l+1-k)``."""
    depth = len(multiplier)
    return tuple(t * growth ** (depth - k) for k, t in enumerate(multiplier))
