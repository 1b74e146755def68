"""Log-det barrier training: the bound holds after every step, with no projection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...training.losses import PlainLoss
from ...training.method import Method, check_positive
from .segments import Segments, cut, join
from .spectral import check_slopes, spectral_norm

_HALVINGS = 40


class BarrierNet(nn.Module):
    """A chain, the logarithms of its multipliers, and its last point inside the set."""

    def __init__(self, parts: Segments, bound: float, train_multiplier: bool) -> None:
        super().__init__()
        self.bound = bound
        self.net = join(parts.between, parts.linears)
        self.linears = parts.linears
        cap = bound ** (1.0 / len(parts.linears))
        depth = len(parts.linears) - 1
        self.log_multiplier = nn.ParameterList(
            nn.Parameter(
                torch.full_like(layer.weight[:, 0].detach(), 2.0 * (depth - k) * math.log(cap)),
                requires_grad=train_multiplier,
            )
            for k, layer in enumerate(parts.linears[:-1])
        )
        self.moving = [layer.weight for layer in parts.linears]
        if train_multiplier:
            self.moving += list(self.log_multiplier)
        self.safe = [p.detach().clone() for p in self.moving]

    def forward(self, x: Tensor) -> Tensor:
        """The chain's output."""
        output: Tensor = self.net(x)
        return output

    def logdet(self) -> Tensor | None:
        """``log det M(bound^2, W, T)`` at the present point; ``None`` outside the set."""
        weights = [layer.weight.to(torch.float64) for layer in self.linears]
        multiplier = [t.to(torch.float64).exp() for t in self.log_multiplier]
        return lmi_logdet(weights, multiplier, self.bound)


@dataclass(frozen=True)
class Barrier(Method):
    """Minimise ``loss - gamma * log det M(bound^2, W, T)`` from a point inside the set.

    M is the LMI of ``solvers/lmi.py`` for slopes [0, 1].  gamma falls in stages (the central path).
    A step that leaves the set is halved until it does not, so every iterate has ``M > 0``: its T
    proves the bound.  With train_multiplier the multipliers move as well; for ReLU networks any
    fixed T reaches the same functions.  Adam does best with smaller steps than usual here
    (lr 3e-3 to 6e-3).

    Args:
        bound: on the network's Lipschitz constant.
        gamma: weight of the barrier in the first stage.
        decay: factor on gamma from stage to stage.
        stages: number of stages.
        train_multiplier: whether T is trained too.
        start: share of ``bound^(1 / layers)`` that norms above it are cut to before training.
    """

    name: ClassVar[str] = "barrier"
    source: ClassVar[str] = "P. Pauli, N. Funcke, D. Gramlich et al., CDC 2022 (arXiv 2201.00632)"

    bound: float = 1.0
    gamma: float = 3e-3
    decay: float = 0.5
    stages: int = 5
    train_multiplier: bool = True
    start: float = 0.9

    def __post_init__(self) -> None:
        check_positive(bound=self.bound, gamma=self.gamma, decay=self.decay, stages=self.stages)
        if not 0.0 < self.start < 1.0:
            raise ValueError(f"start: expected a share in (0, 1), got {self.start!r}")

    def prepare(self, model: nn.Module) -> nn.Module:
        """Scale the layers into the set, and give them multipliers that show it.

        With ``c = bound^(1 / layers)`` and every norm below c, ``T_k = c^(2 (l + 1 - k)) I`` makes
        every Schur complement of M positive.
        """
        check_slopes(model, 0.0, 1.0)
        parts = cut(model)
        cap = self.start * self.bound ** (1.0 / len(parts.linears))
        gain = 1.0
        with torch.no_grad():
            for layer in parts.linears:
                factor = min(1.0, cap / max(spectral_norm(layer.weight), 1e-30))
                gain *= factor
                layer.weight.mul_(factor)
                if layer.bias is not None:
                    layer.bias.mul_(gain)
        return BarrierNet(parts, self.bound, self.train_multiplier)

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, progress: float
    ) -> Tensor:
        """The loss and the barrier."""
        assert isinstance(model, BarrierNet)
        logdet = model.logdet()
        assert logdet is not None, "every iterate lies inside the set"
        gamma = self.gamma * self.decay ** int(progress * self.stages)
        value = loss(model(inputs), targets)
        return value - (gamma * logdet).to(value.dtype)

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Halve the step until the point lies inside the set; go back if it never does."""
        assert isinstance(model, BarrierNet)
        for _ in range(_HALVINGS):
            if model.logdet() is not None:
                break
            torch._foreach_lerp_(model.moving, model.safe, 0.5)
        else:
            torch._foreach_copy_(model.moving, model.safe)
        torch._foreach_copy_(model.safe, model.moving)

    def finish(self, model: nn.Module) -> nn.Module:
        """The chain alone."""
        assert isinstance(model, BarrierNet)
        return model.net

    def lipschitz(self, model: nn.Module) -> float:
        """The bound, which every iterate keeps."""
        return self.bound


def lmi_logdet(
    weights: Sequence[Tensor], multiplier: Sequence[Tensor], bound: float
) -> Tensor | None:
    """``log det M(bound^2, W, T)`` for slopes [0, 1], or ``None`` unless M is positive definite.

    Forward block elimination, cost linear in depth; the input block, ``bound^2 I``, is never
    factored::

        S_1 = 2 T_1 - (T_1 W_0)(T_1 W_0)' / bound^2
        S_{k+1} = 2 T_{k+1} - (T_{k+1} W_k) S_k^{-1} (T_{k+1} W_k)'
        last:     I - W_l S_l^{-1} W_l'

    Args:
        weights: float64, ``W_0 .. W_l``.
        multiplier: float64 diagonals ``t_1 .. t_l``, positive.
        bound: L.
    """
    n_in = weights[0].shape[1]
    total = weights[0].new_full((), 2.0 * n_in * math.log(bound))
    factor: Tensor | None = None
    for k, weight in enumerate(weights):
        if k < len(multiplier):
            below, diagonal = multiplier[k][:, None] * weight, 2.0 * multiplier[k]
        else:
            below, diagonal = weight, weight.new_ones(len(weight))
        half = below.T / bound if factor is None else _solve(factor, below.T)
        factor, info = torch.linalg.cholesky_ex(torch.diag(diagonal) - half.T @ half)
        pivots = torch.diagonal(factor)
        if int(info) != 0 or not bool(torch.isfinite(pivots).all()):
            return None
        total = total + 2.0 * pivots.log().sum()
    return total


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    solved: Tensor = torch.linalg.solve_triangular(factor, right, upper=False)
    return solved
