"""Norm estimates, and the methods that penalise norms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from admm_lip.errors import UnsupportedModule
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.research.comparators.product_margin import row_distances
from admm_lip.research.comparators.spectral import (
    check_slopes,
    drop_vectors,
    estimated_norm,
    estimated_product,
    linears,
    product_bound,
    shrink_to,
    spectral_norm,
    start_vectors,
)
from admm_lip.research.comparators.spectral_penalty import SpectralPenalty
from admm_lip.research.comparators.weight_decay import WeightDecay
from admm_lip.training.losses import cross_entropy

PLAIN = lambda outputs, targets: cross_entropy(outputs, targets, 1.0)  # noqa: E731


@pytest.fixture
def net() -> nn.Sequential:
    return build_mlp(6, 3, ModelConfig(hidden=(9, 5), init="torch"), seed=3).double()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 3


def test_power_iteration_comes_from_below_and_converges(net: nn.Sequential) -> None:
    torch.manual_seed(1)
    layer = linears(net)[0]
    start_vectors([layer])
    exact = spectral_norm(layer.weight)
    seen = [estimated_norm(layer, 1).item() for _ in range(200)]
    assert all(value <= exact * (1 + 1e-12) for value in seen)
    assert all(b >= a * (1 - 1e-12) for a, b in itertools.pairwise(seen))
    assert seen[-1] == pytest.approx(exact, rel=1e-9)


def test_the_estimates_gradient_is_the_norms(net: nn.Sequential) -> None:
    torch.manual_seed(1)
    layers = linears(net)
    start_vectors(layers)
    for layer in layers:
        estimated_norm(layer, 500)
    estimated_product(layers, 1).backward()
    norms = [spectral_norm(layer.weight) for layer in layers]
    for k, layer in enumerate(layers):
        u, _, vh = torch.linalg.svd(layer.weight.detach())
        rest = math.prod(norms[:k] + norms[k + 1 :])
        torch.testing.assert_close(layer.weight.grad, rest * torch.outer(u[:, 0], vh[0]))


def test_a_weight_of_zeros_has_estimate_zero_and_recovers() -> None:
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    start_vectors([layer])
    value = estimated_norm(layer, 3)
    assert value.item() == 0.0
    value.backward()
    assert bool(torch.isfinite(layer.weight.grad).all())
    nn.init.eye_(layer.weight)
    assert estimated_norm(layer, 50).item() == pytest.approx(1.0)


def test_vectors_leave_no_trace(net: nn.Sequential) -> None:
    before = set(dict(net.named_buffers())) | set(net.state_dict())
    start_vectors(linears(net))
    drop_vectors(net)
    assert set(dict(net.named_buffers())) | set(net.state_dict()) == before


def test_product_bound_counts_the_slopes() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    norms = spectral_norm(net[0].weight) * spectral_norm(net[2].weight)
    assert product_bound(net) == pytest.approx(norms / 4)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_shrink_to_caps_the_stored_norm_and_leaves_small_weights(p: float) -> None:
    torch.manual_seed(0)
    for cap in (0.3, 1.0, 1e3):
        layer = nn.Linear(7, 5)
        before = layer.weight.detach().clone()
        shrink_to(layer, cap, p)
        after = layer.weight.detach()
        assert float(torch.linalg.matrix_norm(after.double(), p)) <= cap
        if float(torch.linalg.matrix_norm(before.double(), p)) <= cap:
            assert torch.equal(before, after)
        else:
            torch.testing.assert_close(after / after.norm(), before / before.norm())


def test_other_weights_and_steep_activations_are_refused() -> None:
    with pytest.raises(UnsupportedModule, match=r"0: expected weights in Linear layers only"):
        linears(nn.Sequential(nn.Conv2d(1, 1, 3)))
    with pytest.raises(UnsupportedModule, match="at least one Linear layer, got none"):
        linears(nn.ReLU())
    gelu = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2))
    with pytest.raises(UnsupportedModule, match=r"1: expected an activation with slopes in \[-1"):
        check_slopes(gelu, -1.0, 1.0)


def test_row_distances_match_a_loop_and_have_finite_gradients() -> None:
    weight = torch.randn(5, 3, dtype=torch.float64)
    weight[4] = weight[1]
    weight.requires_grad_(True)
    got = row_distances(weight)
    want = torch.stack([torch.stack([(a - b).norm() for b in weight]) for a in weight])
    torch.testing.assert_close(got, want)
    got.sum().backward()
    assert bool(torch.isfinite(weight.grad).all())
    apart = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(row_distances, apart)


def test_weight_decay_adds_half_the_squared_norm(
    net: nn.Sequential, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    plain = PLAIN(net(batch[0]), batch[1])
    for biases in (True, False):
        squares = sum(
            float(p.detach().square().sum()) for p in net.parameters() if biases or p.ndim == 2
        )
        value = WeightDecay(0.3, biases).objective(net, *batch, PLAIN, 0.0)
        assert (value - plain).item() == pytest.approx(0.15 * squares)


def test_spectral_penalty_is_half_the_sum_of_squared_norms(
    net: nn.Sequential, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    method = SpectralPenalty(strength=0.4, iterations=300)
    plain = PLAIN(net(batch[0]), batch[1])
    value = method.objective(method.prepare(net), *batch, PLAIN, 0.0)
    squares = sum(spectral_norm(layer.weight) ** 2 for layer in linears(net))
    assert (value - plain).item() == pytest.approx(0.2 * squares)
