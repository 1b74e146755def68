"""A slack and a dual matrix together, and the step that both take."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .block_cholesky import Band, Cliques, Factor, factorize, factorize_cliques
from .lmi_operator import LmiOperator
from .step_length import cliques_step, slack_step

# Steps shorter than this in both matrices mean that rounding has the upper hand.
_TOO_SHORT = 1e-4


class Pair(NamedTuple):
    """A strictly feasible y with the factor of ``S(y)``, and Z with the factors of its cliques."""

    y: Tensor
    slack: Band
    factor: Factor
    z: Band
    cliques: Cliques


class Direction(NamedTuple):
    """Changes of y, of S and of the band of Z."""

    dy: Tensor
    ds: Band
    dz: Band


def advance(op: LmiOperator, pair: Pair, way: Direction) -> Pair | None:
    """Go ``0.9 + 0.09 a`` of the longest steps, shortened until both matrices have factors."""
    longest_s = slack_step(pair.factor, way.ds)
    longest_z = cliques_step(pair.cliques, way.dz)
    share = 0.9 + 0.09 * min(1.0, longest_s, longest_z)
    a_s, a_z = min(1.0, share * longest_s), min(1.0, share * longest_z)
    while a_s > _TOO_SHORT:
        y = pair.y + a_s * way.dy
        slack = op.slack(y)
        factor = factorize(slack)
        if factor is not None:
            break
        a_s *= 0.8
    else:
        y, slack, factor, a_s = pair.y, pair.slack, pair.factor, 0.0
    while a_z > _TOO_SHORT:
        z = pair.z.plus(a_z, way.dz)
        cliques = factorize_cliques(z)
        if cliques is not None:
            break
        a_z *= 0.8
    else:
        z, cliques, a_z = pair.z, pair.cliques, 0.0
    return Pair(y, slack, factor, z, cliques) if max(a_s, a_z) > 0.0 else None


def relative_gap(pair: Pair) -> float:
    """Relative gap of the pair as it stands."""
    return pair.slack.inner(pair.z) / float(pair.y[0])


def proven_gap(op: LmiOperator, pair: Pair) -> float:
    """Relative gap against the repaired dual point."""
    rho = float(pair.y[0])
    return (rho - op.repaired(pair.z)) / rho
