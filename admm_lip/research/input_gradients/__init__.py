"""Penalties on the gradient of the loss in the input, and the norms of such gradients."""

from .measures import JACOBIAN_NORMS, jacobian_norms, loss_gradient_norms
from .norms import NORMS, DualNorm, dual_norm
from .objective import (
    GradientPenalty,
    gradient_sizes,
    one_step_adversarial,
    penalised_loss,
)
from .rows import check_logits, row_losses

__all__ = [
    "JACOBIAN_NORMS",
    "NORMS",
    "DualNorm",
    "GradientPenalty",
    "check_logits",
    "dual_norm",
    "gradient_sizes",
    "jacobian_norms",
    "loss_gradient_norms",
    "one_step_adversarial",
    "penalised_loss",
    "row_losses",
]
