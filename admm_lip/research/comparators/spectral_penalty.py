"""Spectral-norm regularisation: the sum of squared spectral norms, added to the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...training.losses import PlainLoss
from ...training.method import check_at_least
from .norm_product import NormProduct
from .spectral import estimated_norm, linears


@dataclass(frozen=True)
class SpectralPenalty(NormProduct):
    """Minimise ``loss + strength/2 * sum_k ||W_k||_2^2``.

    Args:
        strength: the coefficient (0.01 in the paper).
        iterations: power iterations per step (one in the paper).
    """

    name: ClassVar[str] = "spectral_penalty"
    source: ClassVar[str] = "Y. Yoshida, T. Miyato, arXiv 1705.10941, algorithm 1"

    strength: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0.0, strength=self.strength)

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, progress: float
    ) -> Tensor:
        """The loss and the penalty."""
        norms = torch.stack([estimated_norm(m, self.iterations) for m in linears(model)])
        return loss(model(inputs), targets) + 0.5 * self.strength * norms.square().sum()
