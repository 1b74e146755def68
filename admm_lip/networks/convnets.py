"""Convolutional classifiers by their names: 4C3F, 6C2F, 8C2F, small ones, and residual ones.

The number before C counts convolutions, the one before F linear layers; between them, in equal
numbers behind the convolutions, stand T tied residual blocks (``tied.py``), R residual blocks of
two kernels, M averaged ones that sort pairs, or L linear residual layers with their activations
(``residual.py``); ``-pairs`` says that an activation stands within every two layers alone. They
take images ``(n, channels, rows, columns)``; ``DataSet.as_images`` turns flat rows into those.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from .clipped import ClippedMaxMin, ClippedReLU
from .model_config import CONVNETS as CONVNETS
from .model_config import ConvnetConfig as ConvnetConfig
from .model_config import Plan
from .residual import AveragedBlock2d, ResidualBlock2d, SkipConv2d
from .sorting_torch import MaxMin
from .tied import TiedBlock2d

Shape = tuple[int, ...]


# activation -> its module on features of a shape (channels, rows, columns) or (width,)
ACTIVATIONS: dict[str, Callable[[Shape], nn.Module]] = {
    "relu": lambda shape: nn.ReLU(),
    "clipped_relu": ClippedReLU,
    "max_min": lambda shape: MaxMin(),
    "clipped_max_min": ClippedMaxMin,
}


# kind of a residual layer -> what stands for it on features of a shape, with an activation
BLOCKS: dict[str, Callable[[Shape, Callable[[Shape], nn.Module]], tuple[nn.Module, ...]]] = {
    "T": lambda shape, make: (TiedBlock2d(shape[0], shape[0]),),
    "R": lambda shape, make: (ResidualBlock2d(shape[0], shape[0]),),
    "M": lambda shape, make: (AveragedBlock2d(shape[0], shape[0]),),
    "L": lambda shape, make: (SkipConv2d(shape[0]), make(shape)),
}


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
    for k, conv in enumerate(plan.convolutions):
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
        blocks = [m for kind in plan.blocks for m in BLOCKS[kind](shape, make)]
        layers += [module, *_behind(plan, k, shape, make), *blocks]
    return layers, shape


def _linears(
    plan: Plan, size: int, n_outputs: int, width: float, make: Callable[[Shape], nn.Module]
) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Flatten()]
    for k, hidden in enumerate(plan.hidden):
        narrowed = _even(hidden * width)
        layers += [nn.Linear(size, narrowed), *_behind(plan, k, (narrowed,), make)]
        size = narrowed
    return [*layers, nn.Linear(size, n_outputs)]


def _behind(
    plan: Plan, k: int, shape: Shape, make: Callable[[Shape], nn.Module]
) -> tuple[nn.Module, ...]:
    """The activation behind the k-th layer of a kind; where they are pairs, of every other one."""
    return () if plan.pairs and k % 2 else (make(shape),)


def _even(size: float) -> int:
    return max(2, 2 * round(size / 2.0))
