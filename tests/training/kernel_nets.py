"""A small network of convolutions, and pictures for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from admm_lip import (
    TrainConfig,
)
from admm_lip.networks.sorting_torch import MaxMin

IMAGE = (1, 8, 8)
QUICK = TrainConfig(bound=1.0, epochs=4, batch_size=32, loss="margin", eps=0.1, start="scratch")


def small(seed: int = 0, sort: Callable[[], nn.Module] = MaxMin) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, 2, 1), sort(), nn.Conv2d(4, 6, 3, 1, 1), sort()),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 8), sort(), nn.Linear(8, 2)),
    )


def data(rows: int = 256) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, *IMAGE, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0, :4].sum((1, 2)) > 0).long()
