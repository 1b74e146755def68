"""Small convolutional and residual graphs at random: no bound on a torus is below the truth."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from admm_lip import certify, verify
from admm_lip.networks.sorting_torch import MaxMin

SCALAR = (nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, lambda: nn.LeakyReLU(0.2), nn.SiLU)


class Residual(nn.Module):
    """A value and what a branch makes of it; a shortcut where their grids or channels differ."""

    def __init__(self, channels: int, out: int, stride: int, act: nn.Module) -> None:
        super().__init__()
        first = nn.Conv2d(channels, out, 3, stride, 1)
        self.branch = nn.Sequential(first, act, nn.Conv2d(out, out, 3, 1, 1))
        plain = channels == out and stride == 1
        self.short = nn.Identity() if plain else nn.Conv2d(channels, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.short(x) + self.branch(x)


def network_at_random(seed: int) -> tuple[nn.Sequential, tuple[int, int, int]]:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    channels, side = rng.choice((1, 2)), rng.choice((4, 5, 6))
    shape, around = (channels, side, side), rng.random() < 0.2
    layers: list[nn.Module] = []
    # What torch.export records of MaxMin, which circular padding needs, is not read.
    activations = SCALAR if around else (*SCALAR, MaxMin)
    for depth in range(rng.choice((1, 2))):
        out, act = rng.choice((2, 4)), rng.choice(activations)()
        stride = rng.choice((1, 1, 2)) if side % 2 == 0 else 1
        if depth and not around and rng.random() < 0.5:
            layers += [Residual(channels, out, stride, rng.choice(activations)()), act]
        else:
            kernel = rng.choice((2, 3)) if not around else 3
            mode = "circular" if around else "zeros"
            layers += [nn.Conv2d(channels, out, kernel, stride, 1, padding_mode=mode), act]
        channels, side = out, side // stride
    with torch.no_grad():
        seen = nn.Sequential(*layers)(torch.zeros(1, *shape))
    if rng.random() < 0.3 and min(seen.shape[2:]) > 1:
        layers.append(nn.AvgPool2d(2, 1))
        seen = layers[-1](seen)
    layers += [nn.Flatten(), nn.Linear(seen[0].numel(), 3)]
    if rng.random() < 0.4:
        layers += [nn.ReLU(), nn.Linear(3, 2)]
    return nn.Sequential(*layers).double().eval(), shape


def steepest(model: nn.Module, shape: tuple[int, ...]) -> float:
    """The greatest norm of a Jacobian seen."""
    points = 2.0 * torch.randn(12, *shape, dtype=torch.float64)
    found = [
        torch.autograd.functional.jacobian(model, x[None]).flatten(2).squeeze() for x in points
    ]
    return max(float(torch.linalg.matrix_norm(j.reshape(j.shape[0], -1), 2)) for j in found)


def holds(seed: int) -> None:
    model, shape = network_at_random(seed)
    found = certify(model, shape, structure="torus")
    exact = certify(model, shape, structure="exact")
    assert found.switch >= 1
    assert steepest(model, shape) <= found.lip, seed
    assert exact.lower_lip <= found.lip * (1.0 + 1e-9), seed
    assert found.lower_lip <= found.lip <= found.norm_product * (1.0 + 1e-6), seed
    verify(found, model)


@pytest.mark.parametrize("seed", range(5))
def test_no_bound_on_a_torus_is_below_the_truth(seed: int) -> None:
    holds(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5, 500))
def test_no_bound_on_a_torus_is_below_the_truth_at_length(seed: int) -> None:
    holds(seed)
