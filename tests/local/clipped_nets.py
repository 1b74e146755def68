"""Networks that the tests of local training share."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from admm_lip.networks.clipped import ClippedMaxMin, ClippedReLU
from admm_lip.networks.sorting_torch import MaxMin

ACTIVATIONS = {
    "relu": lambda shape, theta: nn.ReLU(),
    "clipped_relu": ClippedReLU,
    "max_min": lambda shape, theta: MaxMin(),
    "clipped_max_min": ClippedMaxMin,
}


def mlp(
    activation: str, widths: tuple[int, ...] = (5, 8, 6, 3), seed: int = 0, theta: float = 0.4
) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(n_in, n_out), ACTIVATIONS[activation]((n_out,), theta)]
    return _scaled(nn.Sequential(*layers, nn.Linear(*widths[-2:])))


def convnet(activation: str, seed: int = 0, theta: float = 0.4) -> nn.Sequential:
    """Two convolutions, a pool and two linear layers on (1, 8, 8)."""
    torch.manual_seed(seed)

    def act(*shape: int) -> nn.Module:
        return ACTIVATIONS[activation](shape, theta)

    return _scaled(
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3, 1, 1), act(4, 8, 8)),
            *(nn.Conv2d(4, 6, 4, 2, 1), act(6, 4, 4)),
            *(nn.AvgPool2d(2), nn.Flatten()),
            *(nn.Linear(24, 8), act(8), nn.Linear(8, 4)),
        )
    )


def _scaled(model: nn.Sequential) -> nn.Sequential:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.data *= 1.6
            assert module.bias is not None
            module.bias.data += 0.3 * torch.randn_like(module.bias)
    return model


def cloud(x: Tensor, radius: float, count: int, seed: int = 0) -> Tensor:
    """Points of the balls around the rows of x, ``(count, *x.shape)``, half of them on the rim."""
    g = torch.Generator().manual_seed(seed)
    way = torch.randn(count, *x.shape, generator=g, dtype=torch.float64).to(x.dtype)
    length = torch.rand(count, len(x), generator=g, dtype=torch.float64).to(x.dtype)
    length[::2] = 1.0
    flat = way.flatten(2)
    flat = flat / flat.norm(dim=-1, keepdim=True) * (length * radius)[..., None]
    return x + flat.view(way.shape)
