"""ADMM for training under the LMI: the state, and the updates that are formulas only.

    min_{W, b, Wbar}  loss(W, b) [+ mu L^2]     s.t.  W = Wbar,   M(L^2, Wbar, T) >= 0

One round (Pauli et al., 2022; the loss and Lipschitz steps live in files of their own):

    loss step        m optimizer steps on  loss + <Y, W - Wbar> + rho/2 ||W - Wbar||^2
    relaxation       Wr = a W + (1 - a) Wbar
    Lipschitz step   Wbar+ = projection of Wr + Y / rho
    dual step        Y+ = Y + rho (Wr - Wbar+)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Matrices = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class AdmmState:
    """What one round hands to the next; all tensors float64.

    Attributes:
        consensus: Wbar, the weights that satisfy the bound in every round.
        dual: Y, unscaled, of the consensus constraint ``W = Wbar``.
        multiplier: T of the LMI, one positive vector per hidden layer.
        rho: augmented-Lagrangian parameter.
        lip_sq: ``L^2`` for which the consensus is feasible.
        target_sq: ``L^2`` the next projection asks for; differs only in the penalised form.
        iteration: rounds done.
        momentum, mean_square: running averages of the multiplier's sensitivity, and of its square
            (``multiplier_step.by_sensitivity``).
        warm: the projection's own restart data; only a matter of speed.
    """

    consensus: Matrices
    dual: Matrices
    multiplier: Matrices
    rho: float
    lip_sq: float
    target_sq: float
    iteration: int = 0
    momentum: Matrices = ()
    mean_square: float = 0.0
    warm: Any = None

    @property
    def lip(self) -> float:
        """The L for which the consensus is feasible."""
        return float(self.lip_sq**0.5)


@dataclass(frozen=True)
class Residuals:
    """``||W - Wbar+||`` and ``rho ||Wbar+ - Wbar||``, and both relative to their natural scales."""

    primal: float
    dual: float
    primal_relative: float
    dual_relative: float

    @property
    def relative(self) -> float:
        """The larger of the two relative residuals."""
        return max(self.primal_relative, self.dual_relative)


def norm(matrices: Matrices | list[Tensor]) -> float:
    """Frobenius norm of a tuple of matrices taken as one vector."""
    return float(torch.stack(torch._foreach_norm(matrices)).norm())


def relax(weights: Matrices, consensus: Matrices, relaxation: float) -> Matrices:
    """``Wr = a W + (1 - a) Wbar``."""
    return tuple(torch._foreach_lerp(consensus, weights, relaxation))


def anchor(relaxed: Matrices, dual: Matrices, rho: float) -> Matrices:
    """The point to be projected, ``Wr + Y / rho``."""
    return tuple(torch._foreach_add(relaxed, dual, alpha=1.0 / rho))


def dual_step(dual: Matrices, relaxed: Matrices, consensus: Matrices, rho: float) -> Matrices:
    """``Y+ = Y + rho (Wr - Wbar+)``."""
    return tuple(torch._foreach_add(dual, torch._foreach_sub(relaxed, consensus), alpha=rho))


def residuals(
    weights: Matrices, consensus: Matrices, previous: Matrices, dual: Matrices, rho: float
) -> Residuals:
    """Primal and dual residuals of a round (Boyd et al., 2011, section 3.3)."""
    primal = norm(torch._foreach_sub(weights, consensus))
    change = rho * norm(torch._foreach_sub(consensus, previous))
    size = max(norm(weights), norm(consensus))
    return Residuals(
        primal=primal,
        dual=change,
        primal_relative=primal / size if size else 0.0,
        dual_relative=change / max(norm(dual), rho * size) if size else 0.0,
    )


def balanced_rho(rho: float, measured: Residuals, ratio: float = 10.0) -> float:
    """Double rho when the primal residual leads by ``ratio``, halve it when the dual one does.

    Y is unscaled, so nothing else changes with rho (Boyd et al., 2011, section 3.4.1).
    """
    if measured.primal_relative > ratio * measured.dual_relative:
        return 2.0 * rho
    if measured.dual_relative > ratio * measured.primal_relative:
        return 0.5 * rho
    return rho


RHO_RULES = {
    "constant": lambda rho, measured: rho,
    "balance": balanced_rho,
}
