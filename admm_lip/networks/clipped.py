"""Activations that stop: ReLU and MaxMin cut off at thresholds that are learned.

A unit beyond its threshold is constant, so on a ball where its input stays there it moves nothing
(Y. Huang et al., NeurIPS 2021).  Each is a supported layer, per neuron with slopes in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .sorting_torch import MaxMin


class ClippedReLU(nn.Module):
    """``min(max(x, 0), threshold)`` with a learnable threshold for every neuron.

    After an optimizer step, :func:`keep_thresholds` puts back those that fell below 0.

    Args:
        features_shape: shape of one sample without the batch: ``(features,)`` or
            ``(channels, height, width)``.
        threshold: where all thresholds start, at least 0.

    Shape:
        ``(batch, *features_shape)``, or the same flattened.

    Raises:
        ValueError: naming the argument.

    Example:
        >>> ClippedReLU((3,), threshold=2.0)(torch.tensor([[-1.0, 1.0, 5.0]])).tolist()
        [[0.0, 1.0, 2.0]]
    """

    def __init__(self, features_shape: Sequence[int], threshold: float = 2.0) -> None:
        super().__init__()
        shape = _shape(features_shape)
        self.threshold = nn.Parameter(torch.full(shape, _start(threshold)))

    def forward(self, x: Tensor) -> Tensor:
        """Clip every feature to ``[0, threshold]``."""
        return torch.minimum(x.relu(), _like(self.threshold, x, type(self).__name__))


class PairClip(nn.Module):
    """``(x_0, x_1) -> (min(x_0, cap), max(x_1, floor))`` of every pair of neighbouring features.

    The second half of :class:`ClippedMaxMin`.

    Args:
        features_shape: shape of one sample without the batch; its first size is even.
        threshold: caps start there, floors at its negative; at least 0.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(self, features_shape: Sequence[int], threshold: float = 2.0) -> None:
        super().__init__()
        channels, *rest = _shape(features_shape)
        if channels % 2:
            raise ValueError(
                f"features_shape: expected an even number of features (or channels) to sort in "
                f"pairs, got {channels}; change the width"
            )
        value = _start(threshold)
        self.cap = nn.Parameter(torch.full((channels // 2, *rest), value))
        self.floor = nn.Parameter(torch.full((channels // 2, *rest), -value))

    def ends(self) -> tuple[Tensor, Tensor]:
        """Lower and upper end of every feature, infinite where there is none."""
        free = torch.full_like(self.cap, math.inf)
        low = torch.stack([-free, self.floor], dim=1).flatten(0, 1)
        high = torch.stack([self.cap, free], dim=1).flatten(0, 1)
        return low, high

    def forward(self, x: Tensor) -> Tensor:
        """Clip every feature to its side."""
        low, high = (_like(end, x, type(self).__name__) for end in self.ends())
        return torch.minimum(torch.maximum(x, low), high)


class ClippedMaxMin(nn.Sequential):
    """:class:`MaxMin`, the maxima cut off above and the minima below, at learnable thresholds.

    Args:
        features_shape: shape of one sample without the batch; its first size is even.
        threshold: the maxima's thresholds start there, the minima's at its negative.

    Raises:
        ValueError: naming the argument.

    Example:
        >>> ClippedMaxMin((2,), threshold=2.0)(torch.tensor([[1.0, 5.0], [-3.0, 1.0]])).tolist()
        [[2.0, 1.0], [1.0, -2.0]]
    """

    def __init__(self, features_shape: Sequence[int], threshold: float = 2.0) -> None:
        super().__init__()
        self.sort = MaxMin()
        self.clip = PairClip(features_shape, threshold)


@torch.no_grad()
def keep_thresholds(model: nn.Module) -> None:
    """Raise every :class:`ClippedReLU` threshold below 0 to 0, in place."""
    for module in model.modules():
        if isinstance(module, ClippedReLU):
            module.threshold.clamp_(min=0.0)


def _shape(features_shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(features_shape)
    if not shape or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(
            f"features_shape: expected sizes of at least 1 without the batch, got {shape}"
        )
    return shape


def _start(threshold: float) -> float:
    if not 0.0 <= threshold < math.inf:
        raise ValueError(f"threshold: expected a finite number >= 0, got {threshold!r}")
    return float(threshold)


def _like(end: Tensor, x: Tensor, name: str) -> Tensor:
    """``end`` in the shape of one sample of ``x``."""
    shape = x.shape[1:]
    if x.ndim < 2 or shape.numel() != end.numel() or (len(shape) > 1 and shape != end.shape):
        raise ValueError(
            f"{name}: expected a batch of samples of shape {tuple(end.shape)}, or flattened, got "
            f"shape {tuple(x.shape)}; build it with features_shape of the layer before it"
        )
    return end.view(shape)
