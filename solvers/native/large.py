"""Networks whose N x N Schur complement does not fit: linear in depth, memory ``sum n_k^2``.

1.  The best closed form (``starts.py``).
2.  First-order descent on the bound (``first_order.py``).
3.  A lower bound from the same multiplier: the band of ``S^{-1}`` at rho a little above the bound
    is nearly dual feasible where the descent has converged; repaired (``dual_repair.py``) it is
    exactly so.  The best over a few rho is reported, whatever it is worth.
"""

from __future__ import annotations

import torch

from ..config import SolverConfig
from ..lmi import eliminate_output, implied_bound, lmi_blocks
from ..problem import CertifyProblem, Multiplier
from ..solution import CertifyClaim, Status
from .block_cholesky import Band, factorize, inverse_band
from .dual_repair import reachable_band, repaired_value
from .first_order import descend
from .run import Run

# Share of the time limit that the descent may use; the rest is for the lower bound.
_DESCENT_SHARE = 0.7
_ABOVE = (1e-4, 1e-5, 1e-6, 1e-3, 1e-2)


def certify_large(
    problem: CertifyProblem, start: Multiplier, run: Run, config: SolverConfig
) -> CertifyClaim:
    """Steps 2 and 3 from a closed form; never worse than it."""
    multiplier = descend(problem, start, run, _DESCENT_SHARE)
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


def lower_bound(problem: CertifyProblem, multiplier: Multiplier, lip_sq: float, run: Run) -> float:
    """Step 3: ``L^2`` of the best repaired dual point that the time allows."""
    values = [0.0]
    if not run.late():
        values.append(repaired_value(problem, reachable_band(problem)))
    for excess in _ABOVE:
        if run.late():
            break
        rho = torch.tensor((1.0 + excess) * lip_sq).to(multiplier[0])
        blocks = lmi_blocks(problem.weights, problem.slopes, multiplier, rho)
        factor = factorize(Band(*eliminate_output(*blocks)))
        if factor is not None:
            values.append(repaired_value(problem, inverse_band(factor)))
    return max(values)
