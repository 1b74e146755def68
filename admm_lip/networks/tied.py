"""Residual blocks ``x - K' phi(K x + b)`` of one kernel, which no input moves apart.

For an activation with slopes in [0, 1] the Jacobian is ``I - K' D K`` with a diagonal D between 0
and I, so its norm is at most

    max(1, ||K||^2 - 1):

a block with ``||K||^2 <= 2`` never moves two inputs apart (L. Meunier, B. Delattre, A. Araujo,
A. Allauzen, ICML 2022).  In zero padding K is a part of a convolution on a torus, and so its norm
is at most that one's.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .residual import same_padding


class TiedBlock(nn.Module):
    """``x - K' relu(K x + b)``, with one matrix K, the weight of its ``nn.Linear``.

    Args:
        features: of input and output, at least 1.
        hidden: rows of K, at least 1.
        activation: in the place of ReLU, of slopes in [0, 1].

    Shape:
        ``(batch, features)``.

    Example:
        >>> import torch
        >>> block = TiedBlock(2, 1)
        >>> _ = block.linear.weight.data.fill_(1.0), block.linear.bias.data.fill_(0.0)
        >>> block(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).tolist()  # a reflection, where it acts
        [[0.0, -1.0], [-1.0, 0.0]]
    """

    def __init__(self, features: int, hidden: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(features, hidden)
        self.activation = activation or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The input less what the hidden features take away."""
        hidden = self.activation(self.linear(x))
        return x + F.linear(hidden, -self.linear.weight.t())


class TiedBlock2d(nn.Module):
    """``x - K' relu(K x + b)`` with one kernel K, zero-padded, and its transposed convolution K'.

    Args:
        channels: of input and output, at least 1.
        hidden: channels of ``K x``, at least 1.
        kernel: its rows and columns, an odd number.
        activation: in the place of ReLU, of slopes in [0, 1].

    Shape:
        ``(batch, channels, rows, columns)``.

    Raises:
        ValueError: for an even kernel.

    Example:
        >>> import torch
        >>> block = TiedBlock2d(8, 16)
        >>> block(torch.zeros(1, 8, 5, 5)).shape
        torch.Size([1, 8, 5, 5])
    """

    def __init__(
        self, channels: int, hidden: int, kernel: int = 3, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.padding = same_padding(kernel)
        self.conv = nn.Conv2d(channels, hidden, kernel, padding=self.padding)
        self.activation = activation or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The input less what the hidden channels take away."""
        hidden = self.activation(self.conv(x))
        return x + F.conv_transpose2d(hidden, -self.conv.weight, padding=self.padding)
