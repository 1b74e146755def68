"""A chain as float64 tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..networks.network import Chain, LayerSpec, SideBySide
from .affine import Affine, affine_of
from .ball import Ball, ball_of


@dataclass(frozen=True, eq=False)
class Net:
    """The affine maps, the activations, and the ball that distances are measured by.

    Attributes:
        maps: ``l + 1`` affine maps.
        activations: ``l`` specs.
        ball: the unit ball.
    """

    maps: tuple[Affine, ...]
    activations: tuple[LayerSpec | SideBySide, ...]
    ball: Ball

    @property
    def factor(self) -> Tensor:
        """What the first layer does to the unit ball, see :class:`Ball`."""
        return self.ball.factor


def net_of(chain: Chain, norm: str = "l2", input_scale: Sequence[float] | None = None) -> Net:
    """Tensors and norms of a chain; done once for all samples."""
    maps = tuple(
        affine_of(torch.from_numpy(w), torch.from_numpy(b), error, bias_error)
        for w, b, error, bias_error in zip(
            chain.weights, chain.biases, chain.errors, chain.bias_errors, strict=True
        )
    )
    return Net(maps, chain.activations, ball_of(chain, norm, input_scale))


def chunks(rows: Tensor, size: int) -> list[Tensor]:
    """Consecutive parts of at most ``size`` rows, at least one row each."""
    size = max(1, size)
    return [rows[k : k + size] for k in range(0, len(rows), size)]
