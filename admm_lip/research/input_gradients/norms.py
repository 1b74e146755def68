"""The norm an attack is measured in, and its dual, in which gradients are measured.

For an attack norm |.| the dual of a gradient g is ``|g|_+ = max_{|d| <= 1} <g, d>``:

    attack l2:    |g|_+ = ||g||_2,    d = g / ||g||_2
    attack linf:  |g|_+ = ||g||_1,    d = sign(g)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = 1e-30


@dataclass(frozen=True)
class DualNorm:
    """One attack norm.

    Attributes:
        attack: its name, ``"l2"`` or ``"linf"``.
        size: gradients ``(n, ...)`` to their dual norms ``(n,)``.
        direction: gradients ``(n, ...)`` to steps of attack norm 1 along which the loss grows
            fastest (0 where the gradient is 0).
        squared_length: number of features to the squared Euclidean length of a direction, the unit
            in which the squared penalty of tulip is counted.
    """

    attack: str
    size: Callable[[Tensor], Tensor]
    direction: Callable[[Tensor], Tensor]
    squared_length: Callable[[int], float]


def _normalised(gradient: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(_TINY)
    unit: Tensor = gradient / length.reshape(-1, *([1] * (gradient.ndim - 1)))
    return unit


NORMS: dict[str, DualNorm] = {
    "l2": DualNorm("l2", lambda g: g.flatten(1).norm(dim=1), _normalised, lambda n: 1.0),
    "linf": DualNorm("linf", lambda g: g.flatten(1).norm(p=1, dim=1), torch.sign, float),
}


def dual_norm(attack: str) -> DualNorm:
    """The row of ``NORMS`` for an attack norm.

    Raises:
        ValueError: for a norm that is not in the table.

    Example:
        >>> import torch
        >>> dual_norm("linf").size(torch.tensor([[3.0, -4.0]]))
        tensor([7.])
    """
    row = NORMS.get(attack)
    if row is None:
        raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {attack!r}")
    return row
