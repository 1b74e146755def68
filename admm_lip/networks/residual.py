"""Linear residual layers ``x + K x + b``: one layer of the weight ``I + K``.

The identity of a convolution on one grid is the tap of its kernel that reads the place itself, so
that the layer is a convolution, with a norm of its own, whose weight decays towards the identity
(K. Hu, A. Zou, Z. Wang, K. Leino, M. Fredrikson, NeurIPS 2023).
"""

from __future__ import annotations

from torch import Tensor, nn


class SkipLinear(nn.Module):
    """``x + K x + b``, K and b of its ``nn.Linear``.

    Args:
        features: of input and output, at least 1.

    Shape:
        ``(batch, features)``.

    Example:
        >>> import torch
        >>> layer = SkipLinear(2)
        >>> _ = layer.linear.weight.data.fill_(1.0), layer.linear.bias.data.fill_(0.0)
        >>> layer(torch.tensor([[1.0, 0.0]])).tolist()
        [[2.0, 1.0]]
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """The input and what the layer makes of it."""
        out: Tensor = x + self.linear(x)
        return out


class SkipConv2d(nn.Module):
    """``x + conv(x)``, the kernel zero-padded.

    Args:
        channels: of input and output, at least 1.
        kernel: its rows and columns, an odd number.

    Shape:
        ``(batch, channels, rows, columns)``.

    Raises:
        ValueError: for an even kernel.

    Example:
        >>> import torch
        >>> SkipConv2d(8)(torch.zeros(1, 8, 5, 5)).shape
        torch.Size([1, 8, 5, 5])
    """

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=same_padding(kernel))

    def forward(self, x: Tensor) -> Tensor:
        """The input and what the layer makes of it."""
        out: Tensor = x + self.conv(x)
        return out


def same_padding(kernel: int) -> int:
    """What pads both sides so that a kernel leaves the grid as it is.

    Raises:
        ValueError: for an even kernel, which no padding of both sides suits.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(
            f"kernel: expected an odd number, which pads both sides alike, got {kernel}"
        )
    return kernel // 2
