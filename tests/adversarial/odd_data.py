"""A few rows, a network for them, and a data set of any items."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from admm_lip import TrainConfig

ROWS, FEATURES, CLASSES = 24, 4, 3
WORDS = np.array(["cat", "dog", "emu"])
# Eighths: every float dtype down to float16 and bfloat16 holds them.
_random = np.random.default_rng(0)
X = (_random.integers(-8, 9, (ROWS, FEATURES)) / 8.0).astype(np.float32)
Y = np.arange(ROWS) % CLASSES
CONFIG = TrainConfig(bound=1.0, epochs=1, batch_size=8)


def network(outputs: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.ReLU(), nn.Linear(5, outputs))


class Rows(Dataset[Any]):
    """Items of any kind."""

    def __init__(self, item: Callable[[int], Any], rows: int = ROWS) -> None:
        self.item, self.rows = item, rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> Any:
        return self.item(row)
