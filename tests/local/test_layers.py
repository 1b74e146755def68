"""Networks read as layers, and the warm starts of their power iterations."""

from __future__ import annotations

import pytest
import torch
from clipped_nets import convnet, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip.errors import NetworkError, UnsupportedModule
from admm_lip.local.layers import live_layers
from admm_lip.local.power_iteration import vector_shape
from admm_lip.local.warm_starts import WarmStarts


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
