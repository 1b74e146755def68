"""Networks whose N x N Schur complement does not fit: linear in depth, memory ``sum n_k^2``.

1.  The best closed form (``starts.py``).
2.  First-order descent on the bound (``first_order.py``).
3.  A lower bound from the same multiplier: the band of ``S^{-1}`` at rho a little above the bound
    is nearly dual feasible where the descent has converged; repaired (``dual_repair.py``) it is
    exactly so.  The best over a few rho is reported, whatever it is worth.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch

from ..config import SolverConfig
from ..lmi import eliminate_output, implied_bound, lmi_blocks
from ..problem import CertifyProblem, Multiplier
from ..solution import CertifyClaim, Status
from .block_cholesky import Band, factorize, inverse_band
from .dual_repair import reachable_band, repaired_value
from .first_order import descend
from .run import Run
from .starts import Start, searched_starts, theta_start

# Work of the descent, in multiply-adds: 50 evaluations of 50 layers of 1,000 neurons, minutes.
_WORK = 5e12
_MOST_EVALUATIONS = 1000
# Passes over the layers that are still to come after the descent: the lower bound, the bound of
# the result and its measurement on the original problem.
_RESERVE = 6
_AFTER = 4
_SAFE_THETA = 1.2
_ABOVE = (1e-4, 1e-5, 1e-6, 1e-3, 1e-2, 1e-1)


def large_starts(problem: CertifyProblem, run: Run) -> list[Start]:
    """Step 1, as far as the time allows."""

    def attempt(theta: float) -> Start | None:
        if not run.has_time(_AFTER):
            return None
        return run.timed(lambda: theta_start(problem, theta))

    found = searched_starts(attempt)
    if found:
        return found
    only = theta_start(problem, _SAFE_THETA)  # a bound late is better than none
    return [only] if only is not None else []


def certify_large(
    problem: CertifyProblem, start: Multiplier, run: Run, config: SolverConfig
) -> CertifyClaim:
    """Steps 2 and 3 from a closed form; never worse than it."""
    multiplier = descend(problem, start, run, evaluations(problem), _RESERVE)
    lip_sq = implied_bound(problem.weights, problem.slopes, multiplier) ** 2
    if run.best is not None and not lip_sq <= float(run.best[0]):
        # Next to the boundary rounding may undo what the descent gained.
        multiplier = start
        lip_sq = implied_bound(problem.weights, problem.slopes, start) ** 2
    limited = run.limited
    lower = lower_bound(problem, multiplier, lip_sq, run)
    status = Status.INACCURATE
    if lip_sq < float("inf") and lip_sq - lower <= config.tol * lip_sq:
        status = Status.OPTIMAL
    elif limited:
        status = Status.LIMIT
    return CertifyClaim(
        status, multiplier, lip_sq, lower, run.iterations, f"{run.iterations} first-order steps"
    )


def evaluations(problem: CertifyProblem) -> int:
    """How many evaluations the descent may cost: the same work for every network."""
    pairs = pairwise(problem.widths)
    work = sum(n * m * (n + m) for n, m in pairs)
    return min(_MOST_EVALUATIONS, 1 + int(_WORK / work))


def lower_bound(problem: CertifyProblem, multiplier: Multiplier, lip_sq: float, run: Run) -> float:
    """Step 3: ``L^2`` of the best repaired dual point that the time allows."""
    values = [0.0]
    if run.has_time(_AFTER):
        values.append(run.timed(lambda: repaired_value(problem, reachable_band(problem))))
    for excess in _ABOVE:
        if not run.has_time(_AFTER):
            break
        values.append(run.timed(partial(_dual_value, problem, multiplier, (1.0 + excess) * lip_sq)))
    return max(values)


def _dual_value(problem: CertifyProblem, multiplier: Multiplier, lip_sq: float) -> float:
    """``L^2`` of the repaired band of ``S^{-1}``, 0 where there is none."""
    rho = torch.tensor(lip_sq).to(multiplier[0])
    blocks = lmi_blocks(problem.weights, problem.slopes, multiplier, rho)
    factor = factorize(Band(*eliminate_output(*blocks)))
    return 0.0 if factor is None else repaired_value(problem, inverse_band(factor))
