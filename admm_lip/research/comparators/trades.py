"""TRADES: the loss on clean inputs, and how far an attack can move the predicted distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ...training.losses import PlainLoss
from ...training.method import check_at_least, require_classes
from .ball_attack import BallAttack

# The divergence has gradient 0 at the input itself, so the ascent starts this far beside it.
_OFF_CENTRE = 1e-3


@dataclass(frozen=True)
class Trades(BallAttack):
    """Minimise ``loss(f(x), y) + beta * KL(softmax f(x) || softmax f(x'))``, x' the worst found.

    Args:
        steps: ascent steps (10 in the paper).
        beta: weight of the divergence (``1 / lambda`` in the paper: 6 on CIFAR-10).
    """

    name: ClassVar[str] = "trades"
    source: ClassVar[str] = "H. Zhang et al., ICML 2019, algorithm 1"

    steps: int = 10
    beta: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0.0, beta=self.beta)

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, progress: float
    ) -> Tensor:
        """The loss and the divergence, both differentiated in the parameters."""
        require_classes(targets)
        outputs = model(inputs)
        held = outputs.detach()
        attack = self.ascent()
        start = attack.around(inputs, inputs + _OFF_CENTRE * torch.randn_like(inputs))
        moved = attack.climb(lambda x: divergence(held, model(x)), inputs, start)
        return loss(outputs, targets) + self.beta * divergence(outputs, model(moved)).mean()


def divergence(clean: Tensor, moved: Tensor) -> Tensor:
    """``KL(softmax(clean) || softmax(moved))`` per row."""
    towards = functional.log_softmax(clean, dim=1)
    return (towards.exp() * (towards - functional.log_softmax(moved, dim=1))).sum(dim=1)
