"""Networks whose N x N Schur complement does not fit: linear in depth, memory ``sum n_k^2``.

1.  The best closed form over theta (``closed_forms.py``).
2.  First-order descent on the bound (``first_order.py``), as much of it as the work allows.
3.  Where the layers are narrow enough for that, the primal-dual iteration with iterative solves
    (``banded_primal_dual.py``), from a cautious closed form.  It ends like the dense one, with a
    proven gap.  Without a limit that might end it early, step 2 is left out.
4.  Otherwise a lower bound from the multiplier: the band of ``S^{-1}`` a little inside is nearly
    dual feasible where the descent has converged; repaired (``dual_repair.py``) it is exactly so.
    The best over a few points inside is reported, whatever it is worth.  Far from the optimum it
    takes more multiplier, not only more rho (signed 20 x 80 after 60 steps, bound .362, optimum
    .261: .0033 with 0.1 % more rho, .083 with 0.1 % more of both, .095 with 10 % more).

What each step costs is in ``costs.py``.  At 50 layers of 1,000 neurons step 3 would take days, and
step 2 has room for some 40 passes: such networks keep a wide gap.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ...config import SolverConfig
from ...dissipation import any_known
from ...lmi import eliminate_output, implied_bound, lmi_blocks
from ...problem import CertifyProblem, Multiplier
from ...solution import CertifyClaim, Status
from ..lmi.block_cholesky import Band, factorize, inverse_band
from ..lmi.checkpoints import Stage, Trouble
from ..lmi.closed_forms import Start, searched_starts, theta_start
from ..lmi.costs import Costs
from ..lmi.dual_repair import reachable_band, repaired_value
from ..lmi.lmi_operator import LmiOperator
from ..lmi.primal_dual_pair import ROUGH_GAP, Pair, first_pair, refined
from ..lmi.progress import Progress
from .banded_primal_dual import follow_banded
from .first_order import descend

_MOST_EVALUATIONS = 1000
# Before step 3 the descent only has to leave something better than the closed form.
_FEW_EVALUATIONS = 60
# Passes over the layers kept for after the descent: the lower bound, which is worth several,
# then the bound of the result and its measurement on the original problem.
_RESERVE = 14
_AFTER = 4
# How far inside a dual point is looked for: more rho, more of the multiplier.
_ABOVE = ((0.1, 0.1), (1e-4, 0.0), (1e-2, 1e-2), (1e-3, 1e-3), (1e-5, 0.0), (1e-6, 0.0))
SAFE_THETA = 1.3


def large_starts(problem: CertifyProblem, run: Progress, first: Start | None = None) -> list[Start]:
    """Step 1, as far as the time allows; ``first`` is what is known already."""

    def attempt(theta: float) -> Start | None:
        if first is not None and theta == first.theta:
            return first
        if not run.has_time(passes=_AFTER):
            return None
        return run.timed("passes", lambda: theta_start(problem, theta))

    found = searched_starts(attempt)
    if found:
        return found
    only = first or theta_start(problem, SAFE_THETA)  # a bound late is better than none
    return [only] if only is not None else []


def certify_large(
    op: LmiOperator, start: Multiplier, outset: Tensor | None, run: Progress, config: SolverConfig
) -> CertifyClaim:
    """Steps 2 to 4 from a multiplier; never worse than it.

    Args:
        op: the problem.
        start: what is known, the best of the closed forms.
        outset: a strictly feasible y for step 3, which is left out without it.
        run: its ``best`` is that of ``start`` or better.
        config: ``tol`` and the limits.
    """
    problem, lower, before = op.problem, None, run.iterations - run.centring
    to_the_end = outset is not None and op.free is None and pairs_possible(problem)
    unlimited = run.limit() is None and config.max_iterations is None
    most = _FEW_EVALUATIONS if to_the_end else _MOST_EVALUATIONS
    multiplier, descents = start, 0
    if not (to_the_end and unlimited):
        multiplier, descents = _descended(problem, start, run, most)
    if outset is not None and to_the_end:
        lower = paired(op, outset, run, config)
        if lower is None and unlimited:
            multiplier, descents = _descended(problem, start, run, most)
    lip_sq = math.inf
    if descents > 0:
        lip_sq = implied_bound(problem.weights, problem.slopes, multiplier) ** 2
    if run.best is not None and not lip_sq <= float(run.best[0]):
        # Step 3 did better; or next to the boundary rounding undid what the descent gained.
        multiplier = op.multiplier(run.best)
        lip_sq = float(run.best[0])
        if run.iterations > 0 or run.has_time(passes=_AFTER):  # the least rho is a little below
            lip_sq = implied_bound(problem.weights, problem.slopes, multiplier) ** 2
    if lower is None:
        lower = lower_bound(problem, multiplier, lip_sq, run)
    status = Status.INACCURATE
    if lip_sq < float("inf") and lip_sq - lower <= config.tol * lip_sq:
        status = Status.OPTIMAL
    elif run.limited:
        status = Status.LIMIT
    pairs = run.iterations - run.centring - before - descents
    counts = f"{descents} first-order, {run.centring} centring and {pairs} primal-dual steps"
    return CertifyClaim(status, multiplier, lip_sq, lower, run.iterations, counts, run.decisions())


def _descended(
    problem: CertifyProblem, start: Multiplier, run: Progress, most: int
) -> tuple[Multiplier, int]:
    """Step 2, and how many evaluations it was."""
    before, most = run.iterations, min(Costs.of(problem).evaluations(), most)
    return descend(problem, start, run, most, _RESERVE), run.iterations - before


def pairs_possible(problem: CertifyProblem) -> bool:
    """Whether step 3 is worth its work, where every neuron is a variable."""
    banded = len(problem.slopes) > 1 and not any_known(problem.slopes)
    return banded and Costs.of(problem).pairs_affordable()


def paired(op: LmiOperator, y: Tensor, run: Progress, config: SolverConfig) -> float | None:
    """Step 3: its lower bound; ``None`` where there was no time, or rounding left no pair."""
    pair = _roughly(op, y, run, config.tol)
    if isinstance(pair, Trouble):
        run.checkpoint(Stage.ROUGH, pair)
        pair = first_pair(op, y)
    if isinstance(pair, Trouble):
        run.checkpoint(Stage.BANDED, pair)
        return None
    return follow_banded(op, pair, run, config.tol)[1]


def _roughly(op: LmiOperator, y: Tensor, run: Progress, tol: float) -> Pair | Trouble:
    """The pair that single precision leads to."""
    low = op.rounded(torch.float32)
    pair = first_pair(low, y.to(torch.float32))
    if isinstance(pair, Trouble):
        return pair
    return refined(op, follow_banded(low, pair, run, max(tol, ROUGH_GAP), Stage.ROUGH)[0])


def lower_bound(
    problem: CertifyProblem, multiplier: Multiplier, lip_sq: float, run: Progress
) -> float:
    """Step 4: ``L^2`` of the best repaired dual point that the time allows."""
    value = 0.0
    for rho_above, t_above in (
        _ABOVE if Costs.of(problem).evaluations() >= _FEW_EVALUATIONS else _ABOVE[:2]
    ):
        if not run.has_time(passes=_AFTER, duals=1):
            break
        grown = tuple((1.0 + t_above) * t for t in multiplier)
        work = partial(_dual_value, problem, grown, (1.0 + rho_above) * lip_sq)
        value = max(value, run.timed("duals", work))
    if value > 0.0 or not run.has_time(passes=_AFTER, duals=1):
        return value
    return repaired_value(problem, reachable_band(problem))


def _dual_value(problem: CertifyProblem, multiplier: Multiplier, lip_sq: float) -> float:
    """``L^2`` of the repaired band of ``S^{-1}``, 0 where there is none."""
    rho = multiplier[0].new_tensor(lip_sq)
    blocks = lmi_blocks(problem.weights, problem.slopes, multiplier, rho)
    factor = factorize(Band(*eliminate_output(*blocks)))
    return 0.0 if factor is None else repaired_value(problem, inverse_band(factor))
