"""Torch modules of the affine layers that torch has no module for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .index_maps import ZERO


class Elementwise(nn.Module):
    """``x * weight + bias``, broadcast; the constants are no parameters and are not trained.

    Args:
        arrays: ``weight``, ``bias`` and ``error`` of ``elementwise.py``, where they are there.

    Example:
        >>> layer = Elementwise({"weight": np.array(2.0), "bias": np.array([0.0, 1.0])})
        >>> layer(torch.ones(1, 2)).tolist()
        [[2.0, 3.0]]
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        super().__init__()
        for key in ("weight", "bias", "error"):
            array = arrays.get(key)
            tensor = None if array is None else torch.from_numpy(np.array(array))
            self.register_buffer(key, tensor)

    def forward(self, x: Tensor) -> Tensor:
        """The product, then the sum, in the type of x."""
        if isinstance(self.weight, Tensor):
            x = x * self.weight.to(x)
        return x + self.bias.to(x) if isinstance(self.bias, Tensor) else x


class Take(nn.Module):
    """Entries of the flattened sample by their positions, -1 for a zero.

    Args:
        index: whole numbers, of the shape of the output.

    Example:
        >>> Take(np.array([1, -1, 0]))(torch.tensor([[3.0, 4.0]])).tolist()
        [[4.0, 0.0, 3.0]]
    """

    def __init__(self, index: Any) -> None:
        super().__init__()
        self.register_buffer("index", torch.from_numpy(np.array(index, dtype=np.float64)))

    def forward(self, x: Tensor) -> Tensor:
        """The entries, of every sample."""
        index = self.get_buffer("index").to(x.device, torch.int64)
        taken = x.flatten(1)[:, index.clamp(min=0)]
        return torch.where(index == ZERO, torch.zeros_like(taken), taken)


class Sum(nn.Module):
    """The sum over axes of every sample, counted without the batch.

    Args:
        axes: which.
        keep: whether they stay, with size 1.

    Example:
        >>> Sum([0], keep=True)(torch.ones(2, 3)).tolist()
        [[3.0], [3.0]]
    """

    def __init__(self, axes: Sequence[int], keep: bool) -> None:
        super().__init__()
        self.axes, self.keep = tuple(axes), keep

    def forward(self, x: Tensor) -> Tensor:
        """The sums."""
        return x.sum([1 + k for k in self.axes], keepdim=self.keep)


class Shaped(nn.Module):
    """Every sample in another shape.

    Args:
        shape: without the batch.

    Example:
        >>> Shaped([2, 1])(torch.ones(4, 2)).shape
        torch.Size([4, 2, 1])
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """The same entries."""
        return x.reshape(len(x), *self.shape)
