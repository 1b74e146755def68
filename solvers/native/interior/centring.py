"""From a feasible multiplier to the central path: damped Newton on the slack alone.

    minimise  rho/mu - logdet S(rho, t),        mu free

``H_ij = tr(A_i P A_j P)`` with ``P = S^{-1}``, ``g = (tr A_i P)_i`` and ``b = (1, 0, .., 0)``.  The
mu that makes the Newton decrement least is ``1/mu = (b'H^-1 g) / (b'H^-1 b)``, and then

    dy = H^{-1}(g - b/mu),      Z = mu (P - P dS P)

is exactly dual feasible; it is positive definite when the decrement is below 1.  Because
``b'dy = 0``, the steps only maximise ``logdet S`` at the rho of the start.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...phases import phase
from ..lmi.block_cholesky import (
    Band,
    Factor,
    cholesky,
    factorize,
    inverse,
)
from ..lmi.checkpoints import Stage, Trouble
from ..lmi.lmi_operator import LmiOperator, Rows, schur_complement
from ..lmi.progress import Progress

# The pair (S, Z) is good enough to start from at this decrement.
_CENTRED = 0.7
_MAX_STEPS = 300
# Where whole steps are possible, how many may leave the decrement at this share of its least value.
_WHOLE, _FALL, _PATIENCE = 3.0, 0.98, 20
# A step is shortened by this factor, down to this share of what was tried first.
_SHRINK, _LEAST_SHARE = 0.6, 1e-9
# What is added to the unit diagonal of H, in units of rounding.
_SHIFTS = (0.0, 5e1, 5e3, 5e5)


class NewtonStep(NamedTuple):
    """One Newton direction of the barrier, with the mu that suits it best."""

    dy: Tensor
    decrement: float
    mu: float
    dense: Tensor
    rows: Rows


class Centre(NamedTuple):
    """A point near the central path: ``S(y) > 0`` with its factor, and Z dual feasible."""

    y: Tensor
    factor: Factor
    z: Band


def newton_step(op: LmiOperator, factor: Factor) -> NewtonStep | Trouble:
    """Newton direction of the barrier at the factor's S, mu free."""
    dense = inverse(factor)
    forms = op.forms(dense)
    solve = schur_solver(schur_complement(forms, forms))
    if solve is None:
        return Trouble.NO_FACTOR
    g = op.adjoint(op.band_of(dense))
    b = torch.zeros_like(g)
    b[0] = 1.0
    hg, hb = solve(g), solve(b)
    ratio = float(hg[0] / hb[0])
    if not ratio > 0:
        return Trouble.ROUNDING
    mu = 1.0 / ratio
    dy = hg - hb / mu
    decrement = float(torch.dot(dy, g - b / mu).clamp(min=0.0).sqrt())
    if not decrement < float("inf"):
        return Trouble.ROUNDING
    return NewtonStep(dy, decrement, mu, dense, forms.rows)


def centre(op: LmiOperator, y: Tensor, run: Progress) -> Centre | Trouble:
    """Newton steps from a strictly feasible ``y`` until the pair is centred.

    ``run`` keeps every feasible point on the way.
    """
    factor = factorize(op.slack(y))
    if factor is None:
        return Trouble.NO_FACTOR
    least, idle = float("inf"), 0
    for _ in range(_MAX_STEPS + 1):
        if not run.may_go_on(centring=1):
            return Trouble.LIMIT
        step = run.timed("centring", partial(newton_step, op, factor))
        if isinstance(step, Trouble):
            return step
        if step.decrement < _CENTRED:
            return Centre(y, factor, dual_point(op, step))
        falls = step.decrement > _WHOLE or step.decrement < _FALL * least
        idle = 0 if falls else idle + 1
        least = min(least, step.decrement)
        if idle > _PATIENCE:
            break
        moved = _damped(op, y, factor, step, run)
        if isinstance(moved, Trouble):
            return moved
        y, factor = moved
        run.centring += 1
        run.count(y)
    return Trouble.SLOW


def dual_point(op: LmiOperator, step: NewtonStep) -> Band:
    """The band of ``Z = mu (P - P dS P)``."""
    change = op.times(step.dy, step.dense, step.rows)
    correction = op.band_of_product(step.dense, change)
    return op.band_of(step.dense).plus(-1.0, correction).times(step.mu)


def _damped(
    op: LmiOperator, y: Tensor, factor: Factor, step: NewtonStep, run: Progress
) -> tuple[Tensor, Factor] | Trouble:
    """Shorten the Newton step until S stays positive definite and the barrier falls."""
    longest = min(1.0, 4.0 / (1.0 + step.decrement))
    value = barrier(y, factor, step.mu)

    def move(length: float) -> tuple[Tensor, Factor] | None:
        trial = y + length * step.dy
        found = factorize(op.slack(trial))
        falls = found is not None and barrier(trial, found, step.mu) < value
        return (trial, found) if found is not None and falls else None

    return run.shortened(Stage.COLD, longest, _SHRINK, _LEAST_SHARE * longest, move)


def barrier(y: Tensor, factor: Factor, mu: float) -> float:
    """``rho/mu - logdet S``."""
    return float(y[0]) / mu - factor.logdet


class SchurSolver:
    """Solves with H by Cholesky after scaling to unit diagonal, with one refinement step.

    ``scaled`` is the matrix of unit diagonal (its strict part; the diagonal may have been raised).
    """

    def __init__(self, scaled: Tensor, factor: Tensor, scale: Tensor) -> None:
        self._scaled, self._factor, self._scale = scaled, factor, scale
        self._raised = torch.diagonal(scaled) - 1.0

    def __call__(self, rhs: Tensor) -> Tensor:
        """``H^{-1} rhs``."""
        known = rhs * self._scale
        x = self._once(known)
        x = x + self._once(known - torch.mv(self._scaled, x) + self._raised * x)
        return x * self._scale

    def _once(self, rhs: Tensor) -> Tensor:
        return torch.cholesky_solve(rhs[:, None], self._factor)[:, 0]


@phase("factorisation")
def schur_solver(matrix: Tensor) -> SchurSolver | None:
    """Factor the Schur complement; a little of the diagonal is added where rounding needs it.

    ``matrix`` is scaled in place: at thousands of neurons a copy is what memory has no room for.
    """
    diagonal = torch.diagonal(matrix)
    if not bool(((diagonal > 0) & torch.isfinite(diagonal)).all()):
        return None
    scale = diagonal**-0.5
    scaled = matrix.mul_(scale[:, None]).mul_(scale)
    for shift in _SHIFTS:
        torch.diagonal(scaled).fill_(1.0 + shift * torch.finfo(scaled.dtype).eps)
        factor = cholesky(scaled)
        if factor is not None:
            return SchurSolver(scaled, factor, scale)
    return None
