"""The primal-dual iteration without its N x N matrix: linear in depth, memory ``sum n_k^2``.

The pair, the HKM direction and the steps are those of ``interior_point.py``; what differs:

1.  ``H dy = rhs`` with ``H_ij = tr(A_i Z A_j P)`` is solved by conjugate gradients.  A product is
    ``A*`` of the band of ``Z dS P`` (``markov.py``).
2.  The preconditioner is the completion of H's own band: its blocks of every layer with itself and
    with the next one (``banded_newton.py``), rho being a layer of its own before the first.  Its
    inverse is block tridiagonal.
3.  Two solves give every direction: ``h = H^{-1} b`` and ``k = H^{-1} g``, ``g = A*(P)``.  The
    predictor is ``-h``, and with the sigma that its steps suggest ``dy = sigma mu k - h`` and
    ``dZ = sigma mu P - Z - sym(Z dS P)``.  A corrector of second order would need more of dZ than
    its band.
4.  Errors of the solves leave Z a little infeasible.  The next direction takes that back, and the
    repair of the dual (``dual_repair.py``) makes what is reported exact.

Z starts as the multiple of P whose inputs' trace is 1, not yet dual feasible: a whole step makes
it so, a shorter one its share of that.  Newton's steps to a feasible Z took half the time of deep
networks (212 of them for 70 x 120 signed, in place of 20 steps more).  To a rough gap the
way is gone in single precision, at half the time, and nothing of it is believed.

Measured on signed chains (processor seconds of one thread): 20 x 80 to a gap of 1e-7 after 27
steps, 27 s; to 4e-4 and 2e-4 70 x 120 after 40 steps, 173 s, and 100 x 80 after 53 steps, 154 s,
.6 GB in all where the dense iteration would hold 7.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..lmi.block_cholesky import Band, factorize, factorize_cliques, inverse_band
from ..lmi.checkpoints import Stage, Trouble
from ..lmi.dual_repair import repaired_value
from ..lmi.lmi_operator import LmiOperator
from ..lmi.primal_dual_pair import Direction, Pair, advance, longest_steps, relative_gap
from ..lmi.progress import Progress
from .banded_newton import conjugate_gradients, hessian_band, solve_completed
from .markov import Markov, band_between, markov

_MAX_STEPS = 60
_MAX_PRODUCTS = 150
_ROUGH = 0.05
# Accuracy of the solves, relative to the gap and at most; the dual infeasibility that is left.
_SHARE_OF_GAP = 0.1
_LOOSEST, _TIGHTEST = 0.1, 1e-8


class System(NamedTuple):
    """P and Z as chains, and the two solutions that every direction is made of."""

    p: Markov
    z: Markov
    by_b: Tensor
    by_g: Tensor
    b: Tensor
    g: Tensor


def solve_system(op: LmiOperator, z: Markov, p: Markov, accuracy: float) -> System | Trouble:
    """Steps 1 and 2 for both right sides."""
    near = bordered_band(op, z, p)
    cliques = factorize_cliques(near)
    g = op.adjoint(p.band)
    if cliques is None or not bool(torch.isfinite(g).all()):
        return Trouble.NO_FACTOR
    b = torch.zeros_like(g)
    b[0] = 1.0

    def product(dy: Tensor) -> Tensor:
        return op.adjoint(band_between(z, op.direction(dy), p))

    def precondition(rhs: Tensor) -> Tensor:
        return solve_completed(near, cliques, rhs)

    by_b, by_g = (
        conjugate_gradients(product, precondition, r, accuracy, _MAX_PRODUCTS) for r in (b, g)
    )
    return System(p, z, by_b, by_g, b, g)


def bordered_band(op: LmiOperator, z: Markov, p: Markov) -> Band:
    """The band of H with rho as a layer of one variable before the first."""
    inner = hessian_band(op, z, p)
    (pu, pv), (zu, zv) = _first_rows(op, p.band), _first_rows(op, z.band)
    border = (zu * pv).sum(1) + (zv * pu).sum(1)
    corner = (z.band.diagonal[0] * p.band.diagonal[0]).sum().reshape(1, 1)
    return Band([corner, *inner.diagonal], [border[:, None], *inner.lower])


def _first_rows(op: LmiOperator, band: Band) -> tuple[Tensor, Tensor]:
    """``U'P`` and ``V'P`` of the first layer, input columns."""
    top, below = band.diagonal[0], band.lower[0]
    return below - op.into_u[0] @ top, below - op.into_v[0] @ top


def first_pair(op: LmiOperator, y: Tensor) -> Pair | Trouble:
    """The pair at a strictly feasible y."""
    slack = op.slack(y)
    factor = factorize(slack)
    if factor is None:
        return Trouble.NO_FACTOR
    p = inverse_band(factor)
    z = p.times(1.0 / float(p.diagonal[0].trace()))
    cliques = factorize_cliques(z)
    return Pair(y, slack, factor, z, cliques) if cliques is not None else Trouble.NO_FACTOR


def follow_banded(
    op: LmiOperator, pair: Pair, run: Progress, tol: float, stage: Stage = Stage.BANDED
) -> tuple[Pair, float]:
    """Primal-dual steps until the proven gap is small, the limits are reached or they are short.

    Returns the last pair and the best lower bound on ``L^2`` that was proven on the way.
    """
    lower = 0.0
    for _ in range(_MAX_STEPS):
        lower = max(lower, repaired_value(op.problem, pair.z))
        if float(pair.y[0]) - lower <= tol * float(pair.y[0]):
            return pair, lower
        moved = _stepped(op, pair, run, stage) if run.may_go_on(pairs=1) else Trouble.LIMIT
        if isinstance(moved, Trouble):
            run.checkpoint(stage, moved)
            return pair, lower
        pair = moved
        run.count(pair.y)
    run.checkpoint(stage, Trouble.SLOW)
    return pair, lower


def _stepped(op: LmiOperator, pair: Pair, run: Progress, stage: Stage) -> Pair | Trouble:
    way = run.timed("pairs", partial(banded_direction, op, pair))
    return way if isinstance(way, Trouble) else advance(op, pair, way, run, stage)


def banded_direction(op: LmiOperator, pair: Pair) -> Direction | Trouble:
    """Step 3."""
    gap = relative_gap(pair)
    mu = pair.slack.inner(pair.z) / op.order
    p, z = markov(inverse_band(pair.factor)), markov(pair.z, pair.cliques)
    if p is None or z is None:
        return Trouble.NO_FACTOR
    if not mu > 0.0:
        return Trouble.ROUNDING
    accuracy = min(_LOOSEST, max(_TIGHTEST, _SHARE_OF_GAP * gap))
    found = solve_system(op, z, p, accuracy)
    if isinstance(found, Trouble):
        return found
    dz = _dual_change(op, found, 0.0, -found.by_b)
    ds = op.direction(-found.by_b)
    a_s, a_z = (min(1.0, a) for a in longest_steps(pair, ds, dz, _ROUGH))
    left = pair.slack.plus(a_s, ds).inner(pair.z.plus(a_z, dz)) / op.order
    sigma = min(1.0, max(left / mu, 0.0) ** max(1.0, 3.0 * min(a_s, a_z) ** 2))
    dy = sigma * mu * found.by_g - found.by_b
    return Direction(dy, op.direction(dy), _dual_change(op, found, sigma * mu, dy))


def _dual_change(op: LmiOperator, system: System, target: float, dy: Tensor) -> Band:
    """``target P - Z - sym(Z dS P)``."""
    change = band_between(system.z, op.direction(dy), system.p)
    return system.p.band.times(target).plus(-1.0, system.z.band).plus(-1.0, change)
