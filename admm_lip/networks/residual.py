"""Residual layers: linear ones ``x + K x + b``, and blocks ``x + G2 phi(G1 x + b) + c``.

Averaged blocks are ``a x + (1 - a) (G2 phi(G1 x + b) + c)``: where phi sorts pairs, no weights but
those of norm 1 keep a block from growing its input, and of those an average does.

Linear ones are one layer of the weight ``I + K``. The identity of a convolution on one grid is the
tap of its kernel that reads the place itself, so that the layer is a convolution, with a norm of
its own, whose weight decays towards the identity (K. Hu, A. Zou, Z. Wang, K. Leino, M. Fredrikson,
NeurIPS 2023).
"""

from __future__ import annotations

from torch import Tensor, nn

from .sorting_torch import MaxMin


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


class ResidualBlock(nn.Module):
    """``x + G2 relu(G1 x + b) + c``, the weights those of two ``nn.Linear``.

    Args:
        features: of input and output, at least 1.
        hidden: rows of G1, at least 1.
        activation: in the place of ReLU, of slopes in [0, 1] to be trained under a bound.

    Shape:
        ``(batch, features)``.

    Example:
        >>> import torch
        >>> ResidualBlock(2, 4)(torch.zeros(1, 2)).shape
        torch.Size([1, 2])
    """

    def __init__(self, features: int, hidden: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.into, self.back = nn.Linear(features, hidden), nn.Linear(hidden, features)
        self.activation = activation or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The input and what the hidden features add."""
        out: Tensor = x + self.back(self.activation(self.into(x)))
        return out


class ResidualBlock2d(nn.Module):
    """``x + conv(relu(conv(x)))``, both kernels zero-padded.

    Args:
        channels: of input and output, at least 1.
        hidden: channels between, at least 1.
        kernel: rows and columns of both, an odd number.
        activation: in the place of ReLU, of slopes in [0, 1] to be trained under a bound.

    Shape:
        ``(batch, channels, rows, columns)``.

    Raises:
        ValueError: for an even kernel.

    Example:
        >>> import torch
        >>> ResidualBlock2d(8, 16)(torch.zeros(1, 8, 5, 5)).shape
        torch.Size([1, 8, 5, 5])
    """

    def __init__(
        self, channels: int, hidden: int, kernel: int = 3, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        padding = same_padding(kernel)
        self.into = nn.Conv2d(channels, hidden, kernel, padding=padding)
        self.back = nn.Conv2d(hidden, channels, kernel, padding=padding)
        self.activation = activation or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The input and what the hidden channels add."""
        out: Tensor = x + self.back(self.activation(self.into(x)))
        return out


class AveragedBlock(nn.Module):
    """``a x + (1 - a) (G2 phi(G1 x + b) + c)``, the weights those of two ``nn.Linear``.

    Under a bound both have norm 1 at most, so that the block's constant is 1.

    Args:
        features: of input and output, at least 1.
        hidden: rows of G1, an even number where pairs are sorted.
        share: a, of the input in the average, in [0, 1].
        activation: in the place of MaxMin, of slopes of size 1 at most.

    Shape:
        ``(batch, features)``.

    Raises:
        ValueError: for a share that is not in [0, 1].

    Example:
        >>> import torch
        >>> AveragedBlock(2, 4)(torch.zeros(1, 2)).shape
        torch.Size([1, 2])
    """

    def __init__(
        self, features: int, hidden: int, share: float = 0.5, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.share = _checked_share(share)
        self.into: nn.Module = nn.Linear(features, hidden)
        self.back: nn.Module = nn.Linear(hidden, features)
        self.activation = activation or MaxMin()

    def forward(self, x: Tensor) -> Tensor:
        """The average of the input and what the branch makes of it."""
        branch = self.back(self.activation(self.into(x)))
        out: Tensor = self.share * x + (1.0 - self.share) * branch
        return out


class AveragedBlock2d(AveragedBlock):
    """``a x + (1 - a) conv(max_min(conv(x)))``, both kernels zero-padded.

    Args:
        channels: of input and output, at least 1.
        hidden: channels between, an even number where pairs are sorted.
        kernel: rows and columns of both, an odd number.
        share: a, of the input in the average, in [0, 1].
        activation: in the place of MaxMin, of slopes of size 1 at most.

    Shape:
        ``(batch, channels, rows, columns)``.

    Raises:
        ValueError: for an even kernel, and for a share that is not in [0, 1].

    Example:
        >>> import torch
        >>> AveragedBlock2d(8, 16)(torch.zeros(1, 8, 5, 5)).shape
        torch.Size([1, 8, 5, 5])
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel: int = 3,
        share: float = 0.5,
        activation: nn.Module | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.share, padding = _checked_share(share), same_padding(kernel)
        self.into = nn.Conv2d(channels, hidden, kernel, padding=padding)
        self.back = nn.Conv2d(hidden, channels, kernel, padding=padding)
        self.activation = activation or MaxMin()


def _checked_share(share: float) -> float:
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share: expected a number in [0, 1], got {share!r}")
    return share


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
