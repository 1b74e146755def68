"""Margin losses built on class-pair bounds from norm products: GloRo, EMMA and the plain shift.

For classes i and j the difference of logits has Lipschitz constant at most

    K_ij = ||w_i - w_j|| * prod_{k<l} ||W_k||,        w_i the i-th row of the last layer,

which is never above, and mostly well below, ``sqrt(2)`` times the product of all norms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...training.losses import PlainLoss
from ...training.method import check_at_least, require_classes
from .norm_product import NormProduct
from .spectral import check_slopes, estimated_product, linears

# (logits, labels, pair bounds K times eps) -> the logits whose loss is minimised
Surrogate = Callable[[Tensor, Tensor, Tensor], Tensor]


def shift(logits: Tensor, labels: Tensor, reach: Tensor) -> Tensor:
    """``f_j + eps K_yj``: every other logit at the worst that the bound allows."""
    return logits + reach[labels]


def emma(logits: Tensor, labels: Tensor, reach: Tensor) -> Tensor:
    """``f_j + s_j eps K_yj`` with the share s_j (held) at which class j draws level with y.

    ``s_j = (f_y - f_j) / (eps K_yj)`` within [0.01, 1]: classes that are already beyond reach are
    shifted in full, the others only to the boundary (K. Hu et al., ICLR 2024).
    """
    own = logits.gather(1, labels[:, None])
    full = reach[labels]
    share = ((own - logits) / full.clamp_min(1e-8)).clamp(0.01, 1.0).detach()
    return logits + share * full


def gloro(logits: Tensor, labels: Tensor, reach: Tensor) -> Tensor:
    """The logits and one more, for "not certified": ``max_{j != i} f_j + eps K_ij``.

    i is the predicted class (K. Leino, Z. Wang, M. Fredrikson, ICML 2021, section 2.2).
    """
    predicted = logits.detach().argmax(dim=1)
    rivals = (logits + reach[predicted]).scatter(1, predicted[:, None], -torch.inf)
    return torch.cat([logits, rivals.amax(dim=1, keepdim=True)], dim=1)


SURROGATES: dict[str, Surrogate] = {"emma": emma, "gloro": gloro, "shift": shift}


@dataclass(frozen=True)
class ProductMargin(NormProduct):
    """Minimise the loss of logits that were moved by the pair bounds, bounds differentiated.

    Meant for the plain cross-entropy.

    Args:
        eps: radius to train for, in input units, l2.  EMMA, which stops at the boundary, wants
            about 1.5 times the radius that is to be certified; the others that radius itself.
        style: ``"emma"``, ``"gloro"`` or ``"shift"``.
        ramp: share of the run over which eps grows from 0.
        iterations: power iterations per step.
    """

    name: ClassVar[str] = "product_margin"
    source: ClassVar[str] = "K. Leino et al., ICML 2021 (GloRo); K. Hu et al., ICLR 2024 (EMMA)"

    eps: float = 0.5
    style: str = "emma"
    ramp: float = 0.5
    iterations: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0.0, eps=self.eps, ramp=self.ramp)
        if self.style not in SURROGATES:
            raise ValueError(f"style: expected one of {', '.join(SURROGATES)}, got {self.style!r}")

    def prepare(self, model: nn.Module) -> nn.Module:
        """Check the layers and start their power iterations."""
        check_slopes(model, -1.0, 1.0)
        return super().prepare(model)

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, progress: float
    ) -> Tensor:
        """The loss of the moved logits."""
        require_classes(targets)
        *inner, last = linears(model)
        logits = model(inputs)
        eps = self.eps * min(1.0, progress / self.ramp) if self.ramp > 0.0 else self.eps
        reach = eps * estimated_product(inner, self.iterations) * row_distances(last.weight)
        return loss(SURROGATES[self.style](logits, targets, reach), targets)


def row_distances(weight: Tensor) -> Tensor:
    """``||w_i - w_j||`` for all pairs of rows, shape ``(rows, rows)``, differentiable at 0."""
    squares = (weight[:, None] - weight[None]).square().sum(dim=2)
    apart = squares > 0.0
    # The gradient of the root is infinite at 0; such pairs (the diagonal) get value and gradient 0.
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)
