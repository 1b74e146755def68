"""Norms of gradients, measured in eval mode: of the loss, and of the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ...evaluation.attacks import frozen
from ...training.losses import PlainLoss
from .norms import dual_norm
from .objective import gradients
from .rows import check_logits, row_losses

# rows of the Jacobian, measured in l2, (n, classes) -> (n,)
JACOBIAN_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "2_inf": lambda rows: rows.amax(dim=1),
    "frobenius": lambda rows: rows.norm(dim=1),
}
OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda logits: logits,
    "probabilities": lambda logits: logits.softmax(dim=1),
}


def loss_gradient_norms(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: str = "l2",
    loss: PlainLoss = functional.cross_entropy,
    *,
    batch_size: int = 1000,
) -> Tensor:
    """``|grad_x loss_i|_+`` of every sample, the dual of the attack norm, ``(n,)``.

    Args:
        model: any module; run in eval mode, left as it was.
        x: inputs ``(n, ...)``.
        y: targets.
        norm: the attack norm, ``"l2"`` or ``"linf"``.
        loss: the mean of a loss per sample, or one value per sample.
        batch_size: rows at once.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        >>> loss_gradient_norms(model, torch.zeros(1, 2), torch.tensor([0]))   # half of 5
        tensor([2.5000])
    """
    size = dual_norm(norm).size
    found = []
    with frozen(model):
        for part, targets in zip(
            torch.split(x, batch_size), torch.split(y, batch_size), strict=True
        ):
            point = part.detach().requires_grad_(True)
            outputs = model(point)
            rows = row_losses(loss, outputs, targets)
            found.append(size(gradients(rows, outputs, point)[0]))
    return torch.cat(found)


def jacobian_norms(
    model: nn.Module,
    x: Tensor,
    kind: str = "2_inf",
    output: str = "probabilities",
    *,
    batch_size: int = 500,
) -> Tensor:
    """Norm of the Jacobian of every sample, ``(n,)``.

    Args:
        model: classifier with logits ``(n, classes)``; run in eval mode, left as it was.
        x: inputs ``(n, ...)``.
        kind: ``"2_inf"``, the largest l2 norm of a row (of the gradient of one class), or
            ``"frobenius"``.
        output: what is differentiated, ``"probabilities"`` (softmax) or ``"logits"``.
        batch_size: rows at once.

    Raises:
        ValueError: an unknown option, outputs that are not logits, a model without derivative.
    """
    check_kind(kind, output)
    found = []
    with frozen(model):
        for part in torch.split(x, batch_size):
            point = part.detach().requires_grad_(True)
            values = OUTPUTS[output](check_logits(model(point), len(part)))
            found.append(JACOBIAN_NORMS[kind](torch.stack(list(row_norms(values, point)), dim=1)))
    sizes = torch.cat(found)
    if not bool(sizes.any()):
        raise ValueError(
            "model: every Jacobian is 0: expected outputs that are differentiable in the inputs; "
            "look for detach(), rounding or numpy inside the model"
        )
    return sizes


def row_norms(values: Tensor, inputs: Tensor, *, create_graph: bool = False) -> Iterator[Tensor]:
    """l2 norm of every row of the Jacobian of ``values`` ``(n, m)``: m tensors ``(n,)``."""
    if not values.requires_grad:
        raise ValueError(
            "model: expected outputs that are differentiable in the inputs, got none that depend "
            "on them; look for detach(), argmax or numpy inside the model"
        )
    for k in range(values.shape[1]):
        (row,) = torch.autograd.grad(
            values[:, k].sum(), inputs, retain_graph=True, create_graph=create_graph
        )
        yield row.flatten(1).norm(dim=1)


def check_kind(kind: str, output: str) -> None:
    """Raise ``ValueError`` for a norm or an output that is not in the tables."""
    for name, value, table in (("kind", kind, JACOBIAN_NORMS), ("output", output, OUTPUTS)):
        if value not in table:
            raise ValueError(f"{name}: expected one of {', '.join(table)}, got {value!r}")
