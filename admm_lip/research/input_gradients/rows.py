"""Losses sample by sample, and checks of what a model gives out."""

from __future__ import annotations

import torch
from torch import Tensor

from ...training.losses import PlainLoss

_AGREE = 1e-3  # float32 losses, summed in two orders


def row_losses(loss: PlainLoss, outputs: Tensor, targets: Tensor, *, known: bool = False) -> Tensor:
    """The loss of every sample, ``(n,)``, from ``loss(outputs, targets)``.

    A loss that returns ``(n,)`` is used as it is.  One that returns the mean is evaluated on every
    row alone, and the mean of that must be what it returned (``known`` skips this check).

    Raises:
        ValueError: when the loss is not the mean of a loss per sample.

    Example:
        >>> import torch
        >>> outputs, targets = torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)
        >>> row_losses(torch.nn.functional.mse_loss, outputs, targets)
        tensor([1., 9.])
    """
    value = loss(outputs, targets)
    if value.ndim == 1 and len(value) == len(outputs):
        return value
    if value.ndim != 0:
        raise ValueError(
            f"loss: expected a scalar or one value per sample ({len(outputs)},), "
            f"got shape {tuple(value.shape)}; reduce over all but the first axis"
        )
    rows = _one_by_one(loss, outputs, targets)
    if known:
        return rows
    mean, whole = float(rows.detach().mean()), float(value.detach())
    if abs(mean - whole) > _AGREE * max(abs(whole), abs(mean), _AGREE):
        raise ValueError(
            "loss: expected the mean of a loss per sample, but the mean over the single samples is "
            f"{mean:.6g} and the loss of the batch {whole:.6g}; use reduction='mean' without class "
            "weights, or reduction='none'"
        )
    return rows


def _one_by_one(loss: PlainLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    def single(output: Tensor, target: Tensor) -> Tensor:
        return loss(output[None], target[None])

    try:
        rows: Tensor = torch.func.vmap(single)(outputs, targets)
    except RuntimeError as error:
        raise ValueError(
            "loss: it cannot be evaluated sample by sample "
            f"({str(error).splitlines()[0]}); use a loss with reduction='none'"
        ) from error
    return rows


def check_logits(outputs: object, count: int) -> Tensor:
    """``outputs`` as class logits ``(count, classes)``.

    Raises:
        ValueError: for another shape, a single class, or rows that are probabilities.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[0] != count:
        what = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"model: expected class logits of shape ({count}, classes), got {what}; "
            "wrap the model so that it returns them"
        )
    if outputs.shape[1] < 2:
        raise ValueError(
            "model: expected logits of at least 2 classes, got 1 output; this needs a classifier"
        )
    values = outputs.detach()
    if (
        count > 1
        and bool((values >= 0).all())
        and bool(((values.sum(dim=1) - 1.0).abs() < 1e-4).all())
    ):
        raise ValueError(
            "model: expected logits, got rows of probabilities (not negative, sum 1); "
            "leave the softmax out of the model"
        )
    return outputs
