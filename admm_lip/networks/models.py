"""Plain multilayer perceptrons: the networks the command line trains."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .model_config import ModelConfig as ModelConfig
from .sorting_torch import GroupSort2, MaxMin

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "hardtanh": nn.Hardtanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "max_min": MaxMin,
    "group_sort2": GroupSort2,
}


def build_mlp(
    n_inputs: int, n_outputs: int, config: ModelConfig | None = None, *, seed: int = 0
) -> nn.Sequential:
    """An ``nn.Sequential`` of ``nn.Linear`` and activations on rows of ``n_inputs`` features.

    Building leaves torch's global random state as it was.

    Args:
        n_inputs: width of the input, at least 1.
        n_outputs: width of the output, at least 1.
        config: hidden widths, activation and initialisation.
        seed: of the initialisation.

    Raises:
        ValueError: on a width below 1.

    Example:
        >>> from admm_lip.networks.models import ModelConfig, build_mlp
        >>> build_mlp(64, 10, ModelConfig(hidden=(32,)))
        Sequential(
          (0): Linear(in_features=64, out_features=32, bias=True)
          (1): ReLU()
          (2): Linear(in_features=32, out_features=10, bias=True)
        )
    """
    config = config or ModelConfig()
    for name, width in (("n_inputs", n_inputs), ("n_outputs", n_outputs)):
        if width < 1:
            raise ValueError(f"{name}: expected at least 1, got {width}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = list(
            _layers((n_inputs, *config.hidden, n_outputs), ACTIVATIONS[config.activation])
        )
        if config.init == "orthogonal":
            init_orthogonal(layers)
    return nn.Sequential(*layers)


def init_orthogonal(layers: Sequence[nn.Module]) -> None:
    """Give every ``nn.Linear`` orthonormal rows or columns (QR of a Gaussian) and a zero bias."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight)
            _zero(layer.bias)


def _layers(widths: Sequence[int], activation: Callable[[], nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation()]
    return layers[:-1]


def _zero(bias: Tensor | None) -> None:
    if bias is not None:
        nn.init.zeros_(bias)
