"""Input-gradient regularisation: total variation, Lipschitz and squared penalties on the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ...training.losses import PlainLoss
from ...training.method import Method
from ..input_gradients.objective import GradientPenalty, penalised_loss


@dataclass(frozen=True)
class InputGradient(Method):
    """Minimise the loss and a penalty on the norm of its gradient in the input::

        loss + eps * mean |g|_+ + lambda * max |g|_+ + mu/2 * mean |g|_+^2 / s

    See :mod:`admm_lip.research.input_gradients.objective`.  Any module can be trained; nothing is
    enforced, and no Lipschitz bound of the network follows.

    Args:
        total_variation: eps, weight on the mean of the gradients' dual norms.
        largest: lambda, weight on the largest one of the batch (the Lipschitz part).
        squared: mu, twice the weight on the mean of their squares, in the units of tulip.
        norm: of the attack: ``"l2"`` or ``"linf"``.
        scheme: ``"finite"`` (differences) or ``"double"`` (backpropagation through the gradient).
        step: of the finite differences, in input units and the attack norm.
    """

    name: ClassVar[str] = "gradient"
    source: ClassVar[str] = (
        "C. Finlay, J. Calder, B. Abbasi, A. Oberman, arXiv 1808.09540, section 2; "
        "squared: C. Finlay, A. Oberman, arXiv 1905.11468"
    )

    total_variation: float = 0.01
    largest: float = 0.1
    squared: float = 0.0
    norm: str = "l2"
    scheme: str = "finite"
    step: float = 1e-3

    def __post_init__(self) -> None:
        self.penalty()

    def penalty(self) -> GradientPenalty:
        """The same settings as the objective takes them."""
        return GradientPenalty(
            self.total_variation, self.largest, self.squared, self.norm, self.scheme, self.step
        )

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, progress: float
    ) -> Tensor:
        """The loss and its penalty."""
        return penalised_loss(model, inputs, targets, loss, self.penalty())
