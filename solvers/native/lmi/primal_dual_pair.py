"""A slack and a dual matrix together, and the step that both take."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...phases import phase
from .block_cholesky import (
    Band,
    Cliques,
    Factor,
    clique_matrices,
    factorize,
    factorize_cliques,
    inverse_band,
)
from .checkpoints import Stage, Trouble
from .lmi_operator import LmiOperator
from .narrow import are_definite
from .progress import Progress
from .step_length import LENGTHS, ROOM, ROUGHLY, bisected, cliques_step, slack_step

# A closed form, on the boundary, times this is the first y.
OUTSET = 1.2
# The gap that steps in single precision lead to.
ROUGH_GAP = 1e-3
# Steps shorter than this in both matrices mean that rounding has the upper hand.
_TOO_SHORT = 1e-4
_SHRINK = 0.8
# Up to this width of blocks a Cholesky factor costs less than an eigenvalue.
_NARROW = 128


class Pair(NamedTuple):
    """A strictly feasible y with the factor of ``S(y)``, and Z with the factors of its cliques."""

    y: Tensor
    slack: Band
    factor: Factor
    z: Band
    cliques: Cliques


def first_pair(op: LmiOperator, y: Tensor) -> Pair | Trouble:
    """A pair at a strictly feasible y.

    Z is the multiple of ``S^{-1}`` whose inputs' trace is 1, not yet dual feasible: a whole step
    makes it so, a shorter one its share of that.
    """
    slack = op.slack(y)
    factor = factorize(slack)
    if factor is None:
        return Trouble.NO_FACTOR
    p = inverse_band(factor)
    z = p.times(1.0 / float(p.diagonal[0].trace()))
    cliques = factorize_cliques(z)
    return Pair(y, slack, factor, z, cliques) if cliques is not None else Trouble.NO_FACTOR


class Direction(NamedTuple):
    """Changes of y, of S and of the band of Z."""

    dy: Tensor
    ds: Band
    dz: Band


@phase("step length")
def longest_steps(
    pair: Pair, ds: Band, dz: Band, accuracy: float = 1e-2, whole: bool = False
) -> tuple[float, float]:
    """How far S and Z may go; ``whole`` as in :func:`~.step_length.bisected`, else roughly."""
    if max(len(block) for block in pair.slack.diagonal) > _NARROW:
        return slack_step(pair.factor, ds, accuracy), cliques_step(pair.cliques, dz, accuracy)
    z = list(zip(clique_matrices(pair.z), clique_matrices(dz), strict=True))
    tried = LENGTHS if whole else ROUGHLY
    return (
        bisected(lambda a: factorize(pair.slack.plus(a, ds)) is not None, whole, tried),
        bisected(
            lambda a: all(are_definite(torch.add(x, dx, alpha=a)) for x, dx in z), whole, tried
        ),
    )


def advance(
    op: LmiOperator, pair: Pair, way: Direction, run: Progress, stage: Stage
) -> Pair | Trouble:
    """Go ``0.9 + 0.09 a`` of the longest steps, shortened until both matrices have factors."""

    def move_y(length: float) -> tuple[Tensor, Band, Factor] | None:
        y = pair.y + length * way.dy
        slack = op.slack(y)
        factor = factorize(slack)
        return None if factor is None else (y, slack, factor)

    def move_z(length: float) -> tuple[Band, Cliques] | None:
        z = pair.z.plus(length, way.dz)
        cliques = factorize_cliques(z)
        return None if cliques is None else (z, cliques)

    longest = longest_steps(pair, way.ds, way.dz, whole=True)
    share = 0.9 + 0.09 * min(1.0, *longest)
    a_s, a_z = (min(1.0, share * a) for a in longest)
    primal = run.shortened(stage, a_s, _SHRINK, _TOO_SHORT, move_y)
    dual = run.shortened(stage, a_z, _SHRINK, _TOO_SHORT, move_z)
    if isinstance(primal, Trouble):
        if isinstance(dual, Trouble):
            return dual
        primal = pair.y, pair.slack, pair.factor
    return Pair(*primal, *((pair.z, pair.cliques) if isinstance(dual, Trouble) else dual))


def refined(op: LmiOperator, pair: Pair) -> Pair | Trouble:
    """A pair of single precision in double, moved inside by as little as helps."""
    z = pair.z.to(op.fixed)
    cliques = factorize_cliques(z)
    if cliques is None:
        return Trouble.NO_FACTOR
    for room in ROOM:
        y = room * pair.y.to(op.fixed)
        slack = op.slack(y)
        factor = factorize(slack)
        if factor is not None:
            return Pair(y, slack, factor, z, cliques)
    return Trouble.NO_FACTOR


def relative_gap(pair: Pair) -> float:
    """Relative gap of the pair as it stands."""
    return pair.slack.inner(pair.z) / float(pair.y[0])


def proven_gap(op: LmiOperator, pair: Pair) -> float:
    """Relative gap against the repaired dual point."""
    rho = float(pair.y[0])
    return (rho - op.repaired(pair.z)) / rho
