"""A classifier and samples as attacks take them: one dtype, one device, class numbers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.labels import binary_numbers, class_numbers
from ..networks.interface import as_rows, interface_of


class TwoScores(nn.Module):
    """A binary classifier of one output f, which decides at 0, by its scores -f / 2 and f / 2."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(n, 2)``, whose difference is f."""
        half = 0.5 * self.model(x)
        return torch.cat([-half, half], dim=1)


def attackable(
    model: nn.Module, x: Any, y: Any, classes: Sequence[Any] | None = None
) -> tuple[nn.Module, Tensor, Tensor]:
    """The model with inputs and class numbers on its device, in a dtype that holds both.

    That is the model's own where it holds the inputs exactly, or else float64: what is certified
    is the function of the stored weights at the very inputs given.

    Args:
        model: classifier; one output decides at 0.
        x: inputs ``(n, *)``.
        y: labels ``(n,)``, ``(n, 1)`` or one-hot.
        classes: the labels in the order of the outputs, where ``y`` holds others.

    Raises:
        TypeError, ValueError: naming ``x`` or ``y``.
    """
    takes = interface_of(model, "x", x)
    rows = as_rows("x", x)
    dtype = torch.promote_types(takes.dtype, torch.float32)
    if not torch.equal(rows.to(dtype).to(torch.float64), rows.to(torch.float64)):
        dtype = torch.float64
    if dtype != takes.dtype:
        model = copy.deepcopy(model).to(dtype)
    seen = (rows.flatten(1) if takes.flat else rows).to(takes.device, dtype)
    if takes.outputs == 1:
        numbers = binary_numbers("y", y) if classes is None else class_numbers("y", y, 2, classes)
        model = TwoScores(model)
    else:
        numbers = class_numbers("y", y, takes.outputs, classes)
    if len(numbers) != len(seen):
        raise ValueError(f"y: expected {len(seen)} labels, one per input, got {len(numbers)}")
    return model, seen, numbers.to(takes.device)
