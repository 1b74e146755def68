"""The primal-dual iteration without its N x N matrix: linear in depth, memory ``sum n_k^2``.

The pair, the HKM direction and the steps are those of ``interior_point.py``; what differs:

1.  ``H dy = rhs`` with ``H_ij = tr(A_i Z A_j P)`` is solved by conjugate gradients.  A product is
    ``A*`` of the band of ``Z dS P`` (``markov.py``).
2.  The preconditioner is the completion of H's own band (``schur_band.py``), whose inverse is block
    tridiagonal.  Once a direction has taken many products, a few layers are one block
    (``wide_band.py``).
3.  Predict: ``H dy = -b``, roughly, ``dZ = -Z - sym(Z dS P)``, the longest steps and sigma.
4.  Correct: the second order ``R = sym(dZ dS P)`` would need all of dZ.  But Z is its band's
    completion at every step, so what counts is how far that moves: with Z(a) the completion of
    ``Z + a dZ``, ``R = (sym(Z(a) dS P) - sym(Z dS P)) / a``, half way to the boundary.  Then
    ``H dy = sigma mu g - A*(R) - b``, ``g = A*(P)``, which begins with the directions that step 3
    has searched (``conjugate_gradients.py``), and ``dZ = sigma mu P - Z - sym(Z dS P) - R``:
    feasible whatever R is.  It halves the steps, and none are needed to centre first.
5.  Errors of the solves leave Z a little infeasible.  The next direction takes that back, and the
    repair of the dual (``dual_repair.py``) makes what is reported exact.

To a rough gap the way is gone in single precision, at half the time, and nothing of it is believed.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..lmi.block_cholesky import Band, factorize_cliques, inverse_band
from ..lmi.checkpoints import Stage, Trouble
from ..lmi.dual_repair import repaired_value
from ..lmi.lmi_operator import LmiOperator
from ..lmi.primal_dual_pair import Direction, Pair, advance, longest_steps, relative_gap
from ..lmi.progress import Progress
from ..lmi.step_length import centring_share
from .conjugate_gradients import Product, Searched, Solved, conjugate_gradients, solve_completed
from .markov import Markov, band_between, markov
from .schur_band import bordered_band
from .wide_band import wide_band

_MAX_STEPS = 60
_MAX_PRODUCTS = 150
_ROUGH = 0.05
# Accuracy of the solves, relative to the gap and at most; the dual infeasibility that is left.
_SHARE_OF_GAP = 0.1
_LOOSEST, _TIGHTEST = 0.1, 1e-8
# From this relative gap on, or after a direction of so many products, the band is the wide one.
_FAR, _MANY = 0.5, 12
# How far along the longest step of Z the second order is looked for.
_SHARE_OF_STEP = 0.5


class System(NamedTuple):
    """H by its products with P and Z as chains, and what stands in for its inverse."""

    op: LmiOperator
    p: Markov
    z: Markov
    precondition: Product

    def between(self, dy: Tensor) -> Band:
        """The band of ``sym(Z dS P)``."""
        return band_between(self.z, self.op.direction(dy), self.p)

    def solve(self, rhs: Tensor, accuracy: float, known: Searched | None = None) -> Solved:
        """``H^{-1} rhs``; ``known`` is what was searched for another right side."""

        def product(dy: Tensor) -> Tensor:
            return self.op.adjoint(self.between(dy))

        return conjugate_gradients(product, self.precondition, rhs, accuracy, _MAX_PRODUCTS, known)


def system_of(op: LmiOperator, z: Markov, p: Markov, wide: bool) -> System | Trouble:
    """The system of a pair; ``wide`` is which preconditioner it gets."""
    near = wide_band(op, z, p) if wide else bordered_band(op, z, p)
    cliques = factorize_cliques(near)
    if cliques is None:
        return Trouble.NO_FACTOR
    return System(op, p, z, partial(solve_completed, near, cliques))


def follow_banded(
    op: LmiOperator, pair: Pair, run: Progress, tol: float, stage: Stage = Stage.BANDED
) -> tuple[Pair, float]:
    """Primal-dual steps until the proven gap is small, the limits are reached or they are short.

    Returns the last pair and the best lower bound on ``L^2`` that was proven on the way.
    """
    lower, wide = 0.0, relative_gap(pair) < _FAR
    for _ in range(_MAX_STEPS):
        lower = max(lower, repaired_value(op.problem, pair.z))
        if float(pair.y[0]) - lower <= tol * float(pair.y[0]):
            return pair, lower
        moved = _stepped(op, pair, wide, run, stage) if run.may_go_on(pairs=1) else Trouble.LIMIT
        if isinstance(moved, Trouble):
            run.checkpoint(stage, moved)
            return pair, lower
        pair, products = moved
        wide = wide or products > _MANY
        run.count(pair.y)
    run.checkpoint(stage, Trouble.SLOW)
    return pair, lower


def _stepped(
    op: LmiOperator, pair: Pair, wide: bool, run: Progress, stage: Stage
) -> tuple[Pair, int] | Trouble:
    """The next pair, and the products that its direction took."""
    found = run.timed("pairs", partial(banded_direction, op, pair, wide))
    if isinstance(found, Trouble):
        return found
    moved = advance(op, pair, found[0], run, stage)
    return moved if isinstance(moved, Trouble) else (moved, found[1])


def banded_direction(
    op: LmiOperator, pair: Pair, wide: bool = False
) -> tuple[Direction, int] | Trouble:
    """Steps 3 and 4, and how many products they took."""
    mu = pair.slack.inner(pair.z) / op.order
    p, z = markov(inverse_band(pair.factor)), markov(pair.z, pair.cliques)
    if p is None or z is None:
        return Trouble.NO_FACTOR
    g = op.adjoint(p.band)
    if not mu > 0.0 or not bool(torch.isfinite(g).all()):
        return Trouble.ROUNDING
    system = system_of(op, z, p, wide)
    if isinstance(system, Trouble):
        return system
    b = torch.zeros_like(g)
    b[0] = 1.0
    first = system.solve(-b, _LOOSEST)
    ds, change = op.direction(first.x), system.between(first.x)
    dz = pair.z.times(-1.0).plus(-1.0, change)
    a_s, a_z = (min(1.0, a) for a in longest_steps(pair, ds, dz, _ROUGH))
    left = pair.slack.plus(a_s, ds).inner(pair.z.plus(a_z, dz)) / op.order
    sigma = float(centring_share(left / mu, min(a_s, a_z), relative_gap(pair)))
    second = _second_order(system, ds, change, dz, _SHARE_OF_STEP * a_z)
    accuracy = min(_LOOSEST, max(_TIGHTEST, _SHARE_OF_GAP * relative_gap(pair)))
    rhs = sigma * mu * g - op.adjoint(second) - b
    found = system.solve(rhs, accuracy, first.searched)
    dz = p.band.times(sigma * mu).plus(-1.0, pair.z).plus(-1.0, system.between(found.x))
    products = sum(len(s.searched.curvatures) for s in (first, found))
    return Direction(found.x, op.direction(found.x), dz.plus(-1.0, second)), products


def _second_order(system: System, ds: Band, change: Band, dz: Band, step: float) -> Band:
    """Step 4; zero where Z may not go so far."""
    further = markov(system.z.band.plus(step, dz)) if step > 0.0 else None
    if further is None:
        return change.times(0.0)
    return band_between(further, ds, system.p).plus(-1.0, change).times(1.0 / step)
