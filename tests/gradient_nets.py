"""Small networks that the tests of gradients share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def tanh_net(seed: int = 0, classes: int = 3, features: int = 5) -> nn.Sequential:
    """A smooth classifier in double precision."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, classes)
    ).double()


class Residual(nn.Module):
    """A residual network of two blocks with batch normalisation, for pictures (n, 1, 8, 8)."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Softplus())
            for _ in range(2)
        )
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(4 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for block in self.blocks:
            y = y + block(y)
        return self.last(self.dropout(y.flatten(1)))


def residual(seed: int = 0, dropout: float = 0.0) -> Residual:
    torch.manual_seed(seed)
    return Residual(dropout).double()


def batch(seed: int, count: int, *shape: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Random double inputs and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (count,), generator=generator)
