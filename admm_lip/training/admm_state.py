"""ADMM for training under the LMI: the state, the pull, and the updates that are formulas only.

    min_{W, b, Wbar}  loss(W, b) [+ mu L^2]     s.t.  W = Wbar,   M(L^2, Wbar, T) >= 0

One round (Pauli et al., 2022), which ``constraint.py`` drives from an optimizer's own steps:

    loss step        m optimizer steps on  loss + <Y, W - Wbar> + rho/2 ||W - Wbar||^2  (``Pull``)
    relaxation       Wr = a W + (1 - a) Wbar
    Lipschitz step   Wbar+ = projection of Wr + Y / rho  (``lipschitz_step.py``)
    dual step        Y+ = Y + rho (Wr - Wbar+)
    multiplier step  T of the LMI moves, or stays  (``multiplier_step.py``)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

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
        steps: optimizer steps since the last round.
        lr: step size of the optimizer when the run began, to which multiplier steps are relative.
        momentum, mean_square: running averages of the multiplier's sensitivity, and of its square
            (``multiplier_step.by_sensitivity``).
        warm: the projection's own restart data; only a matter of speed.
        measured: of the last round, by name: L, residuals, rho, and how the projection went.
    """

    consensus: Matrices
    dual: Matrices
    multiplier: Matrices
    rho: float
    lip_sq: float
    target_sq: float
    iteration: int = 0
    steps: int = 0
    lr: float | None = None
    momentum: Matrices = ()
    mean_square: float = 0.0
    warm: Any = None
    measured: Mapping[str, Any] = field(default_factory=dict)

    def stepped(self) -> AdmmState:
        """One optimizer step further: as ``replace``, at a quarter of its price."""
        again = object.__new__(AdmmState)
        vars(again).update(vars(self), steps=self.steps + 1)
        return again

    @property
    def lip(self) -> float:
        """The L for which the consensus is feasible."""
        return float(self.lip_sq**0.5)


@dataclass(frozen=True, eq=False)
class Pull:
    """The term ``<Y, W - Wbar> + rho/2 ||W - Wbar||^2``, written as a pull towards a target.

    Up to a constant it is ``rho/2 ||W - target||^2`` with ``target = Wbar - Y / rho``.

    Attributes:
        parameters: W, frozen ones left out.
        targets: one for each.
        rho: augmented-Lagrangian parameter.
        kept: parameters of which entries stay, those entries' masks, and targets.
    """

    parameters: tuple[nn.Parameter, ...]
    targets: tuple[Tensor, ...]
    rho: float
    kept: tuple[tuple[nn.Parameter, Tensor, Tensor], ...] = ()

    def put_back(self) -> None:
        """Give entries that stay their values again, whatever an optimizer did to them."""
        with torch.no_grad():
            for p, mask, target in self.kept:
                p.copy_(torch.where(mask, target, p))

    def add_gradient(self, scale: float = 1.0) -> None:
        """Add ``rho (W - target)`` to the gradients, which hold ``scale`` times the loss's."""
        for p in self.parameters:
            if p.grad is None:  # nothing of the loss depends on it
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_add_(gradients, self._difference(), alpha=self.rho * scale)

    def value(self) -> Tensor:
        """``rho/2 ||W - target||^2``."""
        squares = torch._foreach_norm(self._difference())
        return 0.5 * self.rho * torch.stack(squares).square().sum()

    def _difference(self) -> list[Tensor]:
        return list(torch._foreach_sub([p.detach() for p in self.parameters], self.targets))


def pull_of(
    parameters: Sequence[nn.Parameter], state: AdmmState, masks: Sequence[Tensor | None] = ()
) -> Pull:
    """The pull of this round's consensus and dual, in the parameters' own dtype.

    Where ``masks`` are ``True`` the dual is 0, and the target the value that stays.
    """
    exact = torch._foreach_add(state.consensus, state.dual, alpha=-1.0 / state.rho)
    targets = tuple(t.to(p) for t, p in zip(exact, parameters, strict=True))
    pulled = [(p, t) for p, t in zip(parameters, targets, strict=True) if p.requires_grad]
    rows = zip(parameters, masks, targets, strict=True) if masks else ()
    kept = tuple((p, mask, t) for p, mask, t in rows if mask is not None)
    return Pull(tuple(p for p, _ in pulled), tuple(t for _, t in pulled), state.rho, kept)


def read_weights(parameters: Sequence[Tensor]) -> Matrices:
    """The parameters as float64 matrices, copied."""
    return tuple(p.detach().to(torch.float64, copy=True) for p in parameters)


def write_weights(parameters: Sequence[Tensor], weights: Matrices) -> None:
    """Overwrite the parameters, rounded to their own dtype."""
    with torch.no_grad():
        for p, w in zip(parameters, weights, strict=True):
            p.copy_(w)


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


def dual_step(point: Matrices, consensus: Matrices, rho: float) -> Matrices:
    """``Y+ = Y + rho (Wr - Wbar+)``, from the point that was projected, ``Wr + Y / rho``."""
    moved = torch._foreach_sub(point, consensus)
    torch._foreach_mul_(moved, rho)
    return tuple(moved)


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
