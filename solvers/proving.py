"""From a multiplier that almost proves a bound to one that does."""

from __future__ import annotations

import math

from .lmi import implied_bound
from .problem import CertifyProblem, Multiplier

# How far beyond a claimed multiplier a proof is looked for, relatively.
_INFLATION = tuple(10.0**-k for k in range(10, 2, -1))


def proving(problem: CertifyProblem, multiplier: Multiplier) -> tuple[Multiplier, float]:
    """The multiplier, inflated by as little as makes it prove a bound, and that bound.

    The optimum may lie where the LMI without its inputs is singular, and an iterative solver ends
    a little beyond.  ``t_k g^(l+1-k)`` with g slightly above 1 restores what rounding took: every
    layer gains on the next one.  The bound is ``inf`` where the largest g is not enough.
    """
    best = multiplier, implied_bound(problem.weights, problem.slopes, multiplier)
    if math.isfinite(best[1]):
        return best
    depth = len(multiplier)
    for excess in _INFLATION:
        inflated = tuple(t * (1.0 + excess) ** (depth - k) for k, t in enumerate(multiplier))
        lip = implied_bound(problem.weights, problem.slopes, inflated)
        if lip >= best[1] and math.isfinite(lip):
            break
        best = inflated, lip
    return best
