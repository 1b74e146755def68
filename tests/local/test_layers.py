"""Networks read as layers, and the warm starts of their power iterations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clipped_nets import cloud, convnet, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip.errors import NetworkError, UnsupportedModule
from admm_lip.local import LocalConfig, certify_local, verify_local
from admm_lip.local.curved_layers import curved_layers
from admm_lip.local.layers import live_layers
from admm_lip.local.power_iteration import vector_shape
from admm_lip.local.warm_starts import WarmStarts
from admm_lip.networks.affine_torch import Elementwise
from admm_lip.networks.chain import read_network
from admm_lip.networks.network import Network
from admm_lip.networks.sorting_torch import GroupSort2, MaxMin


@settings(max_examples=10)
@given(st.integers(1, 40), st.integers(0, 10_000))
def test_warm_starts_follow_their_samples(count: int, seed: int) -> None:
    layers = live_layers(mlp("relu"), (5,))
    warm = WarmStarts([layer.operator for layer in layers])
    g = torch.Generator().manual_seed(seed)
    rows = torch.randperm(50, generator=g)[:count]
    vectors = torch.randn(count, *vector_shape(layers[1].operator), generator=g)
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    assert torch.equal(warm.starts(1, rows, count), warm.whole[1].expand(count, -1))
    warm.keep(1, rows, vectors)
    own = warm.starts(1, rows, count) - warm.whole[1]
    sign = torch.where((vectors * warm.whole[1]).sum(1) < 0, -1.0, 1.0)
    assert torch.allclose(own, sign[:, None] * vectors, atol=2e-3)
    assert warm.table.dtype == torch.float16
    other = WarmStarts([layer.operator for layer in layers])
    other.restore(warm.state())
    assert torch.equal(other.starts(1, rows, count), warm.starts(1, rows, count))


def test_warm_starts_of_another_architecture_are_refused() -> None:
    one, two = (
        WarmStarts([s.operator for s in live_layers(mlp("relu", widths), (5,))])
        for widths in ((5, 8, 3), (5, 8, 8, 3))
    )
    with pytest.raises(ValueError, match=r"checkpoint: expected .* of another architecture"):
        two.restore(one.state())


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), (4,), "1 .Tanh."),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2)), (4,), "1 .Dropout."),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), (4,), "BatchNorm1d"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)), (1, 8, 8), "MaxPool2d"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (4,), "ends in a Linear"),
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), (4,), "0 .ReLU.: an activation comes first"),
    ],
)
def test_other_layers_are_refused_by_name(
    model: nn.Module, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UnsupportedModule, match=message):
        live_layers(model, shape)


def test_shapes_that_do_not_chain_are_refused() -> None:
    with pytest.raises(NetworkError, match="0: expected an input of 5 features"):
        live_layers(mlp("relu"), (4,))
    with pytest.raises(NetworkError, match=r"0: expected an input of shape \(1, height, width\)"):
        live_layers(convnet("relu"), (3, 8, 8))
    with pytest.raises(NetworkError, match="put a Flatten before it"):
        live_layers(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Linear(4, 2)), (1, 4, 4))
    wrong = convnet("clipped_relu")
    with pytest.raises(NetworkError, match="1: ClippedReLU"):
        live_layers(wrong, (1, 10, 10))


PATHS: dict[str, tuple[list[nn.Module], tuple[int, ...]]] = {
    "convolutions": (
        [nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.Tanh(), nn.Flatten()],
        (2, 6, 6),
    ),
    "sorted channels": (
        [nn.Conv2d(1, 4, 3), MaxMin(), nn.Conv2d(4, 2, 2), GroupSort2(), nn.Flatten()],
        (1, 5, 5),
    ),
    "a pool before a matrix": (
        [nn.Conv2d(1, 4, 3), MaxMin(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 4), MaxMin()],
        (1, 6, 5),
    ),
    "constants in front": (
        [
            Elementwise({"weight": np.full((2, 1, 1), 1.7), "bias": np.array([[[0.3]], [[2.0]]])}),
            *(nn.Conv2d(2, 3, 3, padding=1), nn.PReLU(3), nn.Flatten()),
        ],
        (2, 4, 4),
    ),
}


@pytest.mark.parametrize("name", PATHS)
def test_paths_are_layered_as_their_chain_without_unrolling(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    modules, shape = PATHS[name]
    size = nn.Sequential(*modules).double()(torch.zeros(1, *shape).double()).shape[1]
    model = nn.Sequential(*modules, nn.Linear(size, 2)).double()
    network = read_network(model, shape)
    chain = network.chain()
    monkeypatch.setattr(Network, "chain", None)  # the matrices must not be asked for
    layers = curved_layers(network)
    assert len(layers) == len(chain.weights)
    for layer, weight, bias in zip(layers, chain.weights, chain.biases, strict=True):
        torch.testing.assert_close(layer.operator.dense(), torch.from_numpy(weight))
        own = torch.zeros(len(bias)).double() if layer.bias is None else layer.bias
        torch.testing.assert_close(own, torch.from_numpy(bias))
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)).double()
    y = model(x).argmax(1)
    for level in ("masked", "norms"):
        found = certify_local(network, x, 0.05, y, config=LocalConfig(level))
        verify_local(found, network)
        for points in cloud(x, 0.05, 20):
            near = model(points).detach()
            gap = near.gather(1, y[:, None]) - near
            assert bool((gap >= found.margin - 1e-12).all())
