"""Convolutional classifiers by their names: 4C3F, 6C2F, 8C2F, and a small one.

The number before C counts convolutions, the one before F linear layers.  They take images
``(n, channels, rows, columns)``; ``DataSet.as_images`` turns flat rows into those.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from .clipped import ClippedMaxMin, ClippedReLU
from .sorting_torch import MaxMin

Shape = tuple[int, ...]


class Conv(NamedTuple):
    """One convolution: channels at width 1, kernel, stride and zero padding."""

    channels: int
    kernel: int
    stride: int
    padding: int = 1


@dataclass(frozen=True)
class Plan:
    """One row of the table: convolutions, widths of the hidden linear layers, where it is from."""

    convolutions: tuple[Conv, ...]
    hidden: tuple[int, ...]
    source: str


_HUANG = "Y. Huang, H. Zhang, Y. Shi, J. Z. Kolter, A. Anandkumar, NeurIPS 2021"
CONVNETS: dict[str, Plan] = {
    "2C2F": Plan((Conv(16, 4, 2), Conv(32, 4, 2)), (100,), "small, for first tries"),
    "4C3F": Plan(
        (Conv(32, 3, 1), Conv(32, 4, 2), Conv(64, 3, 1), Conv(64, 4, 2)), (512, 512), _HUANG
    ),
    "6C2F": Plan(
        (
            *(Conv(32, 3, 1), Conv(32, 3, 1), Conv(32, 4, 2)),
            *(Conv(64, 3, 1), Conv(64, 3, 1), Conv(64, 4, 2)),
        ),
        (512,),
        _HUANG,
    ),
    "8C2F": Plan(
        (
            *(Conv(64, 3, 1), Conv(64, 3, 1), Conv(64, 4, 2, 0)),
            *(Conv(128, 3, 1), Conv(128, 3, 1), Conv(128, 4, 2, 0)),
            *(Conv(256, 3, 1), Conv(256, 4, 2, 0)),
        ),
        (256,),
        _HUANG,
    ),
}
# activation -> its module on features of a shape (channels, rows, columns) or (width,)
ACTIVATIONS: dict[str, Callable[[Shape], nn.Module]] = {
    "relu": lambda shape: nn.ReLU(),
    "clipped_relu": ClippedReLU,
    "max_min": lambda shape: MaxMin(),
    "clipped_max_min": ClippedMaxMin,
}


@dataclass(frozen=True)
class ConvnetConfig:
    """Which convolutional network; input shape and classes come from the data.

    Args:
        name: ``2C2F``, ``4C3F``, ``6C2F`` or ``8C2F``; empty is a perceptron, see ``model``.
        width: factor on all channels and hidden widths, rounded to even numbers.
        activation: ``relu``, ``clipped_relu``, ``max_min`` or ``clipped_max_min``.

    Raises:
        ValueError: naming the field.
    """

    name: str = ""
    width: float = 1.0
    activation: str = "relu"

    def __post_init__(self) -> None:
        if self.name and self.name not in CONVNETS:
            raise ValueError(
                f"convnet.name: expected one of {', '.join(CONVNETS)}, got {self.name!r}"
            )
        if not 0.0 < self.width < math.inf:
            raise ValueError(f"convnet.width: expected a finite number > 0, got {self.width!r}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"convnet.activation: expected one of {', '.join(ACTIVATIONS)}, "
                f"got {self.activation!r}"
            )


def build_convnet(
    name: str,
    input_shape: Shape,
    n_outputs: int,
    *,
    width: float = 1.0,
    activation: str = "relu",
    seed: int = 0,
) -> nn.Sequential:
    """An ``nn.Sequential`` of convolutions, activations, ``Flatten`` and linear layers.

    Building leaves torch's global random state as it was.

    Args:
        name: a row of ``CONVNETS``.
        input_shape: ``(channels, rows, columns)``, without the batch.
        n_outputs: number of classes, at least 1.
        width: factor on all channels and hidden widths, rounded to even numbers of at least 2
            (sorting activations pair them).
        activation: a row of ``ACTIVATIONS``; clipped ones get a learnable threshold per feature.
        seed: of torch's own initialisation.

    Raises:
        ValueError: naming the argument; pictures too small for the strides are one case.

    Example:
        >>> from admm_lip.networks.convnets import build_convnet
        >>> net = build_convnet("4C3F", (1, 28, 28), 10)
        >>> net[9]
        Linear(in_features=3136, out_features=512, bias=True)
    """
    ConvnetConfig(name, width, activation)
    if not name:
        raise ValueError(f"name: expected one of {', '.join(CONVNETS)}, got none")
    if len(input_shape) != 3 or min(input_shape) < 1 or n_outputs < 1:
        raise ValueError(
            "input_shape, n_outputs: expected (channels, rows, columns) and a number of classes, "
            f"got {tuple(input_shape)} and {n_outputs}; {name} takes pictures"
        )
    plan, make = CONVNETS[name], ACTIVATIONS[activation]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers, shape = _convolutions(name, plan, tuple(input_shape), width, make)
        layers += _linears(plan, math.prod(shape), n_outputs, width, make)
    return nn.Sequential(*layers)


def _convolutions(
    name: str, plan: Plan, shape: Shape, width: float, make: Callable[[Shape], nn.Module]
) -> tuple[list[nn.Module], Shape]:
    layers: list[nn.Module] = []
    for conv in plan.convolutions:
        channels = _even(conv.channels * width)
        before, rows, columns = shape
        sides = [(n + 2 * conv.padding - conv.kernel) // conv.stride + 1 for n in (rows, columns)]
        if min(sides) < 1:
            raise ValueError(
                f"input_shape: {name} halves pictures until nothing is left of {rows} x {columns}; "
                "use larger pictures, or a network with fewer strides"
            )
        module = nn.Conv2d(before, channels, conv.kernel, conv.stride, conv.padding)
        shape = (channels, *sides)
        layers += [module, make(shape)]
    return layers, shape


def _linears(
    plan: Plan, size: int, n_outputs: int, width: float, make: Callable[[Shape], nn.Module]
) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Flatten()]
    for hidden in plan.hidden:
        narrowed = _even(hidden * width)
        layers += [nn.Linear(size, narrowed), make((narrowed,))]
        size = narrowed
    return [*layers, nn.Linear(size, n_outputs)]


def _even(size: float) -> int:
    return max(2, 2 * round(size / 2.0))
