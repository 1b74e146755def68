"""LipSDP by a structured primal-dual interior point: the native multiplier solve.

    minimise rho   subject to   S(rho, t) = rho E_0 - C + sum_i t_i A_i >= 0
    maximise tr(C Z)   subject to   Z >= 0,   tr Z_00 = 1,   tr(A_i Z) = 0

(``lmi_operator.py`` has the symbols; ``t >= 0`` is implied.)  S is block tridiagonal and only the
same band of Z enters the dual, so Z is kept as a band and completed when a dense matrix is needed
(M. Fukuda et al., SIAM J. Optim. 11, 2001): everything but the Cholesky factor of the N x N Schur
complement costs O(D^2 n).

1.  Start from the best closed form (``closed_forms.py``), moved inside: ``y = 1.2 (rho, t)``.  With
    the multiplier of a network nearby, from that (``warm_start.py``).
2.  Z is the multiple of ``S^{-1}`` whose inputs' trace is 1.  Where step 3 ends with a wide gap
    from there, centre first: Newton on the slack alone, until it yields an exactly dual feasible Z
    (``centring.py``).
3.  Repeat:
    a.  ``P = S^{-1}``, Z completed, ``H_ij = tr(A_i Z A_j P)``, its Cholesky factor;
        stop when the gap ``rho - tr(C Z')`` of an exactly repaired Z' (``dual_repair.py``) is
        small, the limits are reached or the steps become too short.
    b.  Predict: ``H dy = -b``, ``dS = sum dy_i A_i``, ``dZ = -Z - sym(Z dS P)``, the longest
        steps (``step_length.py``), and from the gap they leave
        sigma (``step_length.centring_share``).
    c.  Correct (Mehrotra): ``R = sym(dZ dS P)``, ``H dy = sigma mu g - A*(R) - b``,
        ``dZ = sigma mu P - Z - sym(Z dS P) - R``   (HKM direction).
    d.  Go ``0.9 + 0.09 a`` of the longest steps, S and Z separately, shortened until both have
        Cholesky factors.
    In single precision first where the order is large, to a rough gap (``roughly``): most steps
    are taken there, at half the time, and nothing of them is believed.
4.  Return the best multiplier with the bound recomputed from it, and the repaired lower bound.
    Where step 2 fails, ``without_schur.py`` goes on without H.

Deep networks, for which that is cheaper (``costs.py``), and those where the dense form costs too
much go that way from step 1 on; what it leaves open the dense form closes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...config import SolverConfig
from ...dissipation import any_known
from ...lmi import implied_bound
from ...phases import phase
from ...problem import CertifyProblem, Multiplier
from ...solution import CertifyClaim, Status
from ..large.without_schur import SAFE_THETA, certify_large, large_starts, pairs_possible
from ..lmi.block_cholesky import (
    completion,
    completion_times,
    factorize_cliques,
    inverse,
    symmetrised,
)
from ..lmi.checkpoints import Action, Stage, Trouble
from ..lmi.closed_forms import Start, best_start, forward_starts, theta_start
from ..lmi.costs import Costs
from ..lmi.eliminated_operator import operator_of
from ..lmi.lmi_operator import LmiOperator, Rows, schur_complement
from ..lmi.primal_dual_pair import (
    OUTSET,
    ROUGH_GAP,
    Direction,
    Pair,
    advance,
    first_pair,
    longest_steps,
    proven_gap,
    refined,
    relative_gap,
)
from ..lmi.progress import Progress
from ..lmi.step_length import ROOM, centring_share
from ..lmi.variables import all_free, fixed, spread
from ..lmi.warm_start import usable, warm_start
from .centring import Centre, SchurSolver, centre, schur_solver

_MAX_STEPS = 100
# How accurate the predictor's steps need to be: they only choose sigma.
_ROUGH = 0.05
# With more blocks than this Z is multiplied through its factors, not as a dense matrix.
_FEW_BLOCKS = 3
# From this order on the first steps are taken in single precision.
_WORTH_SINGLE = 300
# Where a step leaves this share of a gap that is no longer large, rounding has the upper hand.
_STALLED, _NEAR = 0.8, 0.1
_NO_START = CertifyClaim(Status.FAILED, None, message="no closed-form start; rescale the weights")
# Closed forms with a larger theta may be better bounds but are worse to centre from.  What linear
# neurons carry past a layer grows with every one, and so does the step from the boundary: of 18
# residual blocks, 24 centring steps at 1.0, 27 at 1.1, without end at 1.2.
_CAUTIOUS, _CAUTIOUS_CARRYING = 1.31, 1.0
# A closed form times this is where centring begins.
_INSIDE = 2.0


# A pair at a strictly feasible y.
Begin = Callable[[LmiOperator, Tensor], Pair | Trouble]


class Linearised(NamedTuple):
    """What one iteration needs at a pair: P and Z dense with their rows, H, ``A*(P)``, b and mu."""

    p: Tensor
    z: Tensor
    p_rows: Rows
    z_rows: Rows
    solve: SchurSolver
    g: Tensor
    b: Tensor
    mu: float


def certify(
    problem: CertifyProblem, config: SolverConfig, warm: Multiplier | None = None
) -> CertifyClaim:
    """Minimise ``L^2`` over the multipliers; the steps are numbered in the module's docstring.

    Args:
        problem: reduced and scaled (``reduction.py``).
        config: ``tol`` is the relative gap in ``L^2`` to prove; the limits bind.
        warm: a multiplier of a network nearby.

    Returns:
        A claim whose multiplier is the best seen, whatever happened; never raises for numerical
        trouble.

    Example:
        >>> import torch
        >>> from admm_lip.solvers.problem import CertifyProblem, unit_slopes
        >>> w = (torch.tensor([[1.0], [1.0]]).double(), torch.tensor([[1.0, -1.0]]).double())
        >>> claim = certify(CertifyProblem(w, unit_slopes(w)), SolverConfig())
        >>> round(claim.lip_sq, 5)
        1.0
    """
    if not problem.slopes:
        lip_sq = implied_bound(problem.weights, (), ()) ** 2
        return CertifyClaim(Status.OPTIMAL, (), lip_sq, lip_sq, 0, "affine")
    run, costs, ranges = Progress(config), Costs.of(problem), spread(problem)
    if warm is not None and costs.dense_is_best(run, pairs=False):
        found = _from_warm(problem, warm, run, config)
        if not isinstance(found, Trouble):
            return _claim(*found, run, config)
        run.checkpoint(Stage.WARM, found)
    first = None
    if run.limit() is not None:  # what a pass takes here says what the rest will take
        first = run.timed("passes", partial(theta_start, ranges, SAFE_THETA))
    possible = costs.dense_is_best(run, pairs=False)
    if not costs.dense_is_best(run, pairs=all_free(problem) and pairs_possible(problem)):
        if not possible:
            run.checkpoint(Stage.COLD, Trouble.TOO_LARGE)
        starts = large_starts(ranges, run, first)
        op = _started(problem, starts, warm, run)
        if op is None or run.best is None:
            return _NO_START
        outset = OUTSET * _as_y(op, cautious(op, starts)[0])
        claim = certify_large(op, op.multiplier(run.best), outset, run, config)
        if claim.status is not Status.INACCURATE or not possible:
            return claim
    starts = forward_starts(ranges)
    op = _started(problem, [best_start(ranges, starts), *starts], warm, run)
    pair = _from_cold(op, starts, run, config) if op is not None else None
    if op is None or run.best is None:
        return _NO_START
    if pair is not None:
        return _claim(op, pair, run, config)
    return certify_large(op, op.multiplier(run.best), None, run, config)


def _started(
    problem: CertifyProblem, starts: Sequence[Start | None], warm: Multiplier | None, run: Progress
) -> LmiOperator | None:
    """The operator, and in ``run`` the best of the warm and the closed-form multipliers.

    On the boundary a deep network's closed form may prove nothing for rounding: it is moved inside
    by as little as helps.
    """
    found = [s for s in starts if s is not None]
    if not found:
        return None
    op = operator_of(problem, fixed(problem, found[0].multiplier))
    points = [room * _as_y(op, found[0]) for room in ROOM]
    points.extend(ROOM[-1] * _as_y(op, s) for s in found[1:])
    if warm is not None and usable(problem, warm):
        _keep_proven(op, _as_y(op, Start(warm, 1.0, 1.0)), run)
    any(_keep_proven(op, y, run) for y in points)  # the best first: one is enough
    return op


def _keep_proven(op: LmiOperator, y: Tensor, run: Progress) -> bool:
    """Keep ``y`` with the bound that it proves; whether there is one."""
    lip = implied_bound(op.problem.weights, op.problem.slopes, op.multiplier(y))
    if lip < float("inf"):
        run.keep(torch.cat([y.new_tensor([lip**2]), y[1:]]))
    return lip < float("inf")


def cautious(op: LmiOperator, starts: Sequence[Start]) -> list[Start]:
    """The best closed form that is good to centre from, and the most cautious one behind it."""
    most = _CAUTIOUS_CARRYING if any_known(op.problem.slopes) else _CAUTIOUS
    good = next((s for s in starts if s.theta <= most), starts[0])
    safest = min(starts, key=lambda s: s.theta)
    return [good] if safest is good else [good, safest]


def _from_cold(
    op: LmiOperator, starts: Sequence[Start], run: Progress, config: SolverConfig
) -> Pair | None:
    """Steps 1 to 3 from a cautious closed form; ``None`` where none leads to a pair."""
    good = [_as_y(op, start) for start in cautious(op, starts)]
    found = _begun(op, OUTSET * good[0], run, config.tol, first_pair)
    pair = None if isinstance(found, Trouble) else follow(op, found, run, config.tol)
    if pair is not None and (run.limited or proven_gap(op, pair) <= max(config.tol, ROUGH_GAP)):
        return pair
    for y in good:
        found = _begun(op, _INSIDE * y, run, config.tol, partial(_centred_pair, run))
        if not isinstance(found, Trouble):
            other = follow(op, found, run, config.tol)
            return other if pair is None else max(pair, other, key=lambda p: op.repaired(p.z))
        if run.checkpoint(Stage.COLD, found) is not Action.OTHER_START:
            return pair
    run.checkpoint(Stage.COLD, Trouble.NO_START)
    return pair


def _begun(op: LmiOperator, y: Tensor, run: Progress, tol: float, begin: Begin) -> Pair | Trouble:
    """Step 2, and of step 3 what single precision can do."""
    pair = roughly(op, y, run, tol, begin)
    return pair if pair is not None else begin(op, y)


def _centred_pair(run: Progress, op: LmiOperator, y: Tensor) -> Pair | Trouble:
    """The pair near the central path at the rho of y."""
    centred = centre(op, y, run)
    return centred if isinstance(centred, Trouble) else paired(op, centred)


def _from_warm(
    problem: CertifyProblem, warm: Multiplier, run: Progress, config: SolverConfig
) -> tuple[LmiOperator, Pair] | Trouble:
    """Steps 1 to 3 from the multiplier of a network nearby."""
    start = warm_start(problem, warm)
    if start is None:
        return Trouble.USELESS
    op = operator_of(problem, fixed(problem, warm))
    found = _begun(op, _as_y(op, start), run, config.tol, first_pair)
    if isinstance(found, Trouble):
        return found
    pair = follow(op, found, run, config.tol)
    run.keep(pair.y)
    enough = run.limited or proven_gap(op, pair) <= max(config.tol, ROUGH_GAP)
    return (op, pair) if enough else Trouble.SLOW


def _as_y(op: LmiOperator, start: Start) -> Tensor:
    """``(rho, t)`` of a closed form."""
    rho = start.multiplier[0].new_tensor([max(start.lip_sq, 1e-300)])
    return torch.cat([rho, op.restrict(torch.cat(start.multiplier))])


def paired(op: LmiOperator, centred: Centre) -> Pair | Trouble:
    """The pair to begin step 3 with."""
    cliques = factorize_cliques(centred.z)
    if cliques is None:
        return Trouble.NO_FACTOR
    return Pair(centred.y, op.slack(centred.y), centred.factor, centred.z, cliques)


def roughly(op: LmiOperator, y: Tensor, run: Progress, tol: float, begin: Begin) -> Pair | None:
    """Steps 2 and 3 to a rough gap in single precision; ``None`` where they lead nowhere."""
    if op.order < _WORTH_SINGLE:
        return None
    low = op.rounded(torch.float32)
    pair = begin(low, y.to(torch.float32))
    if isinstance(pair, Trouble):
        run.checkpoint(Stage.ROUGH, pair)
        return None
    pair = follow(low, pair, run, max(tol, ROUGH_GAP), Stage.ROUGH)
    found = refined(op, pair)
    if isinstance(found, Trouble):
        run.checkpoint(Stage.ROUGH, found)
        return None
    return found


def follow(
    op: LmiOperator, pair: Pair, run: Progress, tol: float, stage: Stage = Stage.DENSE
) -> Pair:
    """Step 3: primal-dual steps until the proven gap is small, or rounding leaves too much of it.

    That is looked at in single precision alone; in double the limits and the length of a step do.
    """
    before, stalled = _NEAR, _STALLED if stage is Stage.ROUGH else math.inf
    for _ in range(_MAX_STEPS):
        gap = relative_gap(pair)
        if stalled * before < gap < _NEAR or (gap <= tol and proven_gap(op, pair) <= tol):
            return pair
        before = gap
        possible = run.may_go_on(steps=1)
        step = partial(_stepped, op, pair, run, stage)
        moved = run.timed("steps", step) if possible else Trouble.LIMIT
        if isinstance(moved, Trouble):
            run.checkpoint(stage, moved)
            return pair
        pair = moved
        run.count(pair.y)
    run.checkpoint(stage, Trouble.SLOW)
    return pair


def _stepped(op: LmiOperator, pair: Pair, run: Progress, stage: Stage) -> Pair | Trouble:
    """One iteration; its N x N matrices are gone before the next one makes its own."""
    lin = linearise(op, pair)
    if isinstance(lin, Trouble):
        return lin
    way = direct(op, pair, lin)
    del lin
    return advance(op, pair, way, run, stage)


def linearise(op: LmiOperator, pair: Pair) -> Linearised | Trouble:
    """Step 3a."""
    mu = pair.slack.inner(pair.z) / op.order
    if not mu > 0.0:  # the gap is lost in rounding
        return Trouble.ROUNDING
    p, z = inverse(pair.factor), completion(pair.z, pair.cliques)
    p_forms, z_forms = op.forms(p), op.forms(z)
    solve = schur_solver(schur_complement(z_forms, p_forms))
    if solve is None:
        return Trouble.NO_FACTOR
    g = op.adjoint(op.band_of(p))
    b = torch.zeros_like(g)
    b[0] = 1.0
    return Linearised(p, z, p_forms.rows, z_forms.rows, solve, g, b, mu)


def direct(op: LmiOperator, pair: Pair, lin: Linearised) -> Direction:
    """Steps 3b and 3c."""
    dy_p = lin.solve(-lin.b)
    ds_p = op.direction(dy_p)
    change = op.times(dy_p, lin.p, lin.p_rows)  # dS P
    dense = _predicted(pair, lin.z, change)
    band = op.band_of(dense)
    a_s, a_z = (min(1.0, a) for a in longest_steps(pair, ds_p, band, _ROUGH))
    left = pair.slack.plus(a_s, ds_p).inner(pair.z.plus(a_z, band)) / op.order
    sigma = float(centring_share(left / lin.mu, min(a_s, a_z), relative_gap(pair)))
    rows = op.rows(dense)
    second = op.adjoint_of_product(dense, rows, change)  # A*(R)
    dy = lin.solve(sigma * lin.mu * lin.g - second - lin.b)
    # (Z dS + dZ_p dS_p) P holds the linear and the quadratic term; only its band is wanted.
    both = op.times(dy, lin.z, lin.z_rows).add_(op.times(dy_p, dense, rows))
    terms = op.band_of_product(both.T, lin.p)
    dz = op.band_of(lin.p).times(sigma * lin.mu).plus(-1.0, pair.z).plus(-1.0, terms)
    return Direction(dy, op.direction(dy), dz)


@phase("products")
def _predicted(pair: Pair, z: Tensor, change: Tensor) -> Tensor:
    """``dZ = -Z - sym(Z dS P)``, dense."""
    if len(pair.z.diagonal) > _FEW_BLOCKS:
        full = completion_times(pair.cliques, pair.z.diagonal[0], change)
    else:
        full = z @ change
    return symmetrised(full).neg_().sub_(z)


def _claim(op: LmiOperator, pair: Pair, run: Progress, config: SolverConfig) -> CertifyClaim:
    """Step 4."""
    y = run.best
    if y is None:
        return _NO_START
    multiplier = op.multiplier(y)
    lip_sq = implied_bound(op.problem.weights, op.problem.slopes, multiplier) ** 2
    lower = op.repaired(pair.z)
    if lip_sq < float("inf") and lip_sq - lower <= config.tol * lip_sq:
        status = Status.OPTIMAL
    else:
        status = Status.LIMIT if run.limited else Status.INACCURATE
    counts = f"{run.centring} centring and {run.iterations - run.centring} primal-dual steps"
    return CertifyClaim(status, multiplier, lip_sq, lower, run.iterations, counts, run.decisions())
