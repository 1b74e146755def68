"""TRADES: the loss on clean inputs, and how far an attack can move the predicted distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..training.losses import PlainLoss
from .ascent import Ascent, check_norm
from .base import Method, check_at_least, check_positive, require_classes

# The divergence has gradient 0 at the input itself, so the ascent starts this far beside it.
_OFF_CENTRE = 1e-3


@dataclass(frozen=True)
class Trades(Method):
    """Minimise ``loss(f(x), y) + beta * KL(softmax f(x) || softmax f(x'))``, x' the worst found.

    Args:
        eps: radius of the attack, in input units.
        norm: ``"l2"`` or ``"linf"``.
        beta: weight of the divergence (``1 / lambda`` in the paper: 6 on CIFAR-10).
        steps: ascent steps.
        step_size: of one step; ``None`` is ``2.5 eps / steps``.
        clip: box of admissible inputs, or ``None``.
    """

    name: ClassVar[str] = "trades"
    source: ClassVar[str] = "H. Zhang et al., ICML 2019, algorithm 1"

    eps: float = 0.5
    norm: str = "l2"
    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_at_least(0.0, eps=self.eps, beta=self.beta)
        check_at_least(1, steps=self.steps)
        if self.step_size is not None:
            check_positive(step_size=self.step_size)
        check_norm(self.norm)

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, progress: float
    ) -> Tensor:
        """The loss and the divergence, both differentiated in the parameters."""
        require_classes(targets)
        outputs = model(inputs)
        held = outputs.detach()
        step = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        attack = Ascent(self.norm, self.eps, self.steps, step, self.clip)
        start = attack.around(inputs, inputs + _OFF_CENTRE * torch.randn_like(inputs))
        moved = attack.climb(lambda x: divergence(held, model(x)), inputs, start)
        return loss(outputs, targets) + self.beta * divergence(outputs, model(moved)).mean()


def divergence(clean: Tensor, moved: Tensor) -> Tensor:
    """``KL(softmax(clean) || softmax(moved))`` per row."""
    towards = functional.log_softmax(clean, dim=1)
    return (towards.exp() * (towards - functional.log_softmax(moved, dim=1))).sum(dim=1)
