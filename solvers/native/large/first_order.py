"""First-order descent on the multiplier, through the bound it implies.

    minimise  log L^2(T)  over  log t,      L^2(T) = lambda_max by backward elimination (``lmi.py``)

One evaluation is linear in depth and needs no N x N matrix.  Its derivative comes free: with x the
null vector of the LMI at ``L^2(T)``, scaled to ``|x_0| = 1``, and ``z = W x_{k-1}``,

    d L^2 / d t_i = -2 (x_i - alpha_i z_i) (x_i - beta_i z_i).

The steps are those of Adam (Kingma and Ba, 2015).  Where they leave the multipliers that prove
anything, or stop gaining, they start again from the best point with half the length.

It proves no lower bound by itself and stalls on deep signed networks: the fallback where the
interior point does not fit, and the rival it is measured against.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...lmi import eliminate_output, lmi_blocks
from ...phases import phase
from ...problem import CertifyProblem, Multiplier
from ...spectrum import top_eigenpair
from ..lmi.block_cholesky import cholesky
from ..lmi.progress import Progress

_FIRST_STEP = 0.05
_LAST_STEP = 2e-4
_PATIENCE = 12
_MOMENTUM, _VARIANCE = 0.9, 0.99
# How far a multiplier may move from its start, as a factor: Adam's steps know no size, so without
# this one that hardly matters would drift until rounding has the upper hand in the rest.
_FARTHEST = 1e8


class Value(NamedTuple):
    """``L^2`` of a multiplier and its derivative in ``log t``, over ``L^2``, laid end to end."""

    lip_sq: float
    gradient: Tensor


def evaluate(problem: CertifyProblem, multiplier: Multiplier) -> Value | None:
    """The bound and its derivative; ``None`` where the multiplier proves nothing."""
    w, slopes = problem.weights, problem.slopes
    diagonal, lower = eliminate_output(*lmi_blocks(w, slopes, multiplier, 0.0))
    pulls = []
    schur = diagonal[-1]
    for d, off in zip(reversed(diagonal[:-1]), reversed(lower), strict=True):
        factor = cholesky(schur)
        if factor is None:
            return None
        half = torch.linalg.solve_triangular(factor, off, upper=False)
        pulls.append((factor, half))
        schur = torch.addmm(d, half.T, half, alpha=-1.0)
    if not bool(torch.isfinite(schur).all()):
        return None
    lip_sq, x = top_eigenpair(-schur)
    if not lip_sq > 0.0:
        return None
    parts = []
    for k, (factor, half) in enumerate(reversed(pulls)):
        z, s, t = w[k] @ x, slopes[k], multiplier[k]
        x = -torch.linalg.solve_triangular(factor.T, (half @ x)[:, None], upper=True)[:, 0]
        parts.append(-2.0 * t * (x - s.alpha * z) * (x - s.beta * z) / lip_sq)
    return Value(lip_sq, torch.cat(parts))


@phase("first-order descent")
def descend(
    problem: CertifyProblem,
    start: Multiplier,
    run: Progress,
    most: int | None = None,
    reserve: int = 1,
) -> Multiplier:
    """Adam from ``start`` until its steps are short, there were ``most``, or ``run`` is over.

    An evaluation is begun only while the time limit has room for ``reserve`` passes.  Returns the
    best multiplier seen, never one with a larger bound than ``start``.
    """
    sizes = [t.shape[0] for t in start]
    best = log_t = torch.cat(list(start)).log()
    low, high = log_t - math.log(_FARTHEST), log_t + math.log(_FARTHEST)
    least, length, idle = float("inf"), _FIRST_STEP, 0
    mean, square, count = torch.zeros_like(log_t), torch.zeros_like(log_t), 0
    done = 0
    while length > _LAST_STEP and done != most and run.may_go_on(passes=reserve):
        trial = torch.split(log_t.exp(), sizes)
        found = run.timed("passes", partial(evaluate, problem, trial))
        run.iterations, done = run.iterations + 1, done + 1
        gained = found is not None and found.lip_sq < least
        idle = 0 if gained else idle + 1
        if found is not None and gained:
            best, least = log_t, found.lip_sq
        if found is None or idle > _PATIENCE:
            if least == float("inf"):
                return start
            length, idle, count = length / 2.0, 0, 0
            log_t, mean, square = best, torch.zeros_like(mean), torch.zeros_like(square)
            continue
        count += 1
        mean = _MOMENTUM * mean + (1.0 - _MOMENTUM) * found.gradient
        square = _VARIANCE * square + (1.0 - _VARIANCE) * found.gradient**2
        scale = (square / (1.0 - _VARIANCE**count)).sqrt() + 1e-12
        log_t = log_t - length * mean / (1.0 - _MOMENTUM**count) / scale
        log_t = torch.minimum(torch.maximum(log_t, low), high)
    return torch.split(best.exp(), sizes)
