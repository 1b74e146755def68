"""Adversarial training: the loss at the worst inputs that an attack finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ...training.losses import PlainLoss
from ...training.method import Method, check_at_least
from .ascent import BALLS, check_norm, sample_loss, value_and_gradient
from .ball_attack import BallAttack

Box = tuple[float, float]


@dataclass(frozen=True)
class FastGradient(Method):
    """Minimise ``share * loss(x) + (1 - share) * loss(x + eps d)``, d the steepest direction.

    For linf ``d`` is the sign of the gradient of the loss (FGSM), for l2 its unit vector.

    Args:
        eps: radius of the attack, in input units.
        norm: ``"l2"`` or ``"linf"``.
        clean_share: weight of the loss on clean inputs (0.5 in the paper).
        clip: box of admissible inputs, or ``None``.
    """

    name: ClassVar[str] = "fgsm"
    source: ClassVar[str] = "I. Goodfellow, J. Shlens, C. Szegedy, ICLR 2015, section 6"

    eps: float = 0.1
    norm: str = "linf"
    clean_share: float = 0.5
    clip: Box | None = None

    def __post_init__(self) -> None:
        check_at_least(0.0, eps=self.eps, clean_share=self.clean_share)
        check_norm(self.norm)

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, progress: float
    ) -> Tensor:
        """The mixed loss."""
        _, gradient = value_and_gradient(lambda x: sample_loss(model(x), targets), inputs)
        moved = inputs + self.eps * BALLS[self.norm][1](gradient)
        if self.clip is not None:
            moved = moved.clamp(*self.clip)
        attacked = loss(model(moved), targets)
        if self.clean_share == 0.0:
            return attacked
        clean = loss(model(inputs), targets)
        return self.clean_share * clean + (1.0 - self.clean_share) * attacked


@dataclass(frozen=True)
class ProjectedGradient(BallAttack):
    """Minimise the loss at the best point that projected gradient ascent finds."""

    name: ClassVar[str] = "pgd"
    source: ClassVar[str] = "A. Madry et al., ICLR 2018"

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, progress: float
    ) -> Tensor:
        """The loss on attacked inputs only."""
        attack = self.ascent()
        moved = attack.climb(
            lambda x: sample_loss(model(x), targets), inputs, attack.random_start(inputs)
        )
        return loss(model(moved), targets)
