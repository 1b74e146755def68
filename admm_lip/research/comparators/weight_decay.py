"""L2 regularisation: half the squared norm of all parameters, added to the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...training.losses import PlainLoss
from ...training.method import Method, check_at_least


@dataclass(frozen=True)
class WeightDecay(Method):
    """Minimise ``loss + decay/2 * sum ||p||^2``.

    The penalty is part of the loss (and of Adam's moments), as in the L2 baseline of Pauli et al.
    (L-CSS 6, 2022), whose coefficient is the default.

    Args:
        decay: the coefficient.
        biases: whether the biases are penalised too (there they are).
    """

    name: ClassVar[str] = "weight_decay"
    source: ClassVar[str] = "L2 regularisation, as in Pauli et al., L-CSS 6, 2022"

    decay: float = 5e-4
    biases: bool = True

    def __post_init__(self) -> None:
        check_at_least(0.0, decay=self.decay)

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, progress: float
    ) -> Tensor:
        """The loss and the penalty."""
        penalised = [p.flatten() for p in model.parameters() if self.biases or p.ndim > 1]
        return loss(model(inputs), targets) + 0.5 * self.decay * torch.cat(penalised).square().sum()
