"""Lipschitz-margin training: every other logit is raised by what the bound cannot rule out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as functional
from torch import Tensor, nn

from ...training.losses import PlainLoss
from ...training.method import check_at_least, require_classes
from .norm_product import NormProduct
from .spectral import check_slopes, estimated_product, linears


@dataclass(frozen=True)
class LipschitzMargin(NormProduct):
    """Minimise the loss of the logits after the worst that a perturbation of size eps may do.

        z_j = f_j + sqrt(2) eps L    for j != y,        z_y = f_y

    with L the product of the layers' spectral norms, estimated by power iteration and
    differentiated.  A radius eps is certified by L where y still leads.  Meant for the plain
    cross-entropy: the margin loss would ask for the offset twice.

    Args:
        eps: radius, in input units, l2 (``c`` in the paper; Pauli et al. use 0.05).
        iterations: power iterations per step (one in the paper).
    """

    name: ClassVar[str] = "lmt"
    source: ClassVar[str] = "Y. Tsuzuku, I. Sato, M. Sugiyama, NeurIPS 2018, algorithm 1"

    eps: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0.0, eps=self.eps)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Check the layers and start their power iterations."""
        check_slopes(model, -1.0, 1.0)
        return super().prepare(model)

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, progress: float
    ) -> Tensor:
        """The loss of the raised logits."""
        offset = math.sqrt(2.0) * self.eps * estimated_product(linears(model), self.iterations)
        outputs = model(inputs)
        return loss(outputs + offset * others(targets, outputs), targets)


def others(targets: Tensor, outputs: Tensor) -> Tensor:
    """1 for every class but the sample's own, shape of ``outputs``."""
    require_classes(targets)
    return 1.0 - functional.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
