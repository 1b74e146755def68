"""Tied residual blocks as modules: what they compute, how far they move, how they are read."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from admm_lip import export_onnx, open_network
from admm_lip.errors import UnsupportedModule
from admm_lip.foreign.open import network_of
from admm_lip.networks.forward import layer_outputs
from admm_lip.networks.network import Network
from admm_lip.networks.tied import TiedBlock, TiedBlock2d

SHAPE = (3, 5, 6)


def block2d(kernel: int = 3, activation: nn.Module | None = None) -> TiedBlock2d:
    torch.manual_seed(0)
    return TiedBlock2d(3, 4, kernel, activation)


def matrix_of(conv: nn.Conv2d, shape: tuple[int, ...]) -> Tensor:
    """The zero-padded kernel as a matrix, column by column."""
    size = int(np.prod(shape))
    images = torch.eye(size, dtype=conv.weight.dtype).reshape(size, *shape)
    out = F.conv2d(images, conv.weight, padding=conv.padding)
    return out.reshape(size, -1).T


def test_a_block_is_its_formula() -> None:
    block = block2d().double()
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    k = matrix_of(block.conv, SHAPE)
    bias = block.conv.bias
    assert bias is not None
    hidden = torch.relu(x.flatten(1) @ k.T + bias.repeat_interleave(30))
    torch.testing.assert_close(block(x).flatten(1), x.flatten(1) - hidden @ k)
    dense = TiedBlock(5, 7).double()
    v, w = torch.randn(4, 5, dtype=torch.float64), dense.linear.weight
    expected = v - torch.relu(v @ w.T + dense.linear.bias) @ w
    torch.testing.assert_close(dense(v), expected)
    assert {name for name, _ in block.named_parameters()} == {"conv.weight", "conv.bias"}


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 6), st.integers(0, 2), st.booleans(), st.integers(0, 2**16)
)
def test_no_two_inputs_move_apart_at_the_edge_of_the_ball(
    channels: int, hidden: int, reach: int, smooth: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    kind = nn.Sigmoid() if smooth else None
    block = TiedBlock2d(channels, hidden, 2 * reach + 1, kind).double()
    shape = (channels, 4, 5)
    norm = torch.linalg.matrix_norm(matrix_of(block.conv, shape), 2)
    with torch.no_grad():
        block.conv.weight.mul_(2.0**0.5 / norm)
        block.conv.weight.nan_to_num_(0.0)
    x = torch.randn(4, *shape, dtype=torch.float64)
    for one in x:
        slopes = torch.autograd.functional.jacobian(block, one[None]).reshape(one.numel(), -1)
        assert float(torch.linalg.matrix_norm(slopes, 2)) <= 1.0 + 1e-12


def test_all_doors_give_one_network(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        *(nn.Conv2d(1, 3, 3, 2, 1), block2d(), block2d(1, nn.Softplus()), nn.Flatten()),
        *(nn.Linear(3 * 16, 4), TiedBlock(4, 6), nn.Linear(4, 2)),
    ).eval()
    shape = (1, 8, 8)
    example = (torch.zeros(2, *shape),)
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, example, dynamic_shapes=batch)
    torch.export.save(program, tmp_path / "net.pt2")
    names = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}, "dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(net, example, str(tmp_path / "torch.onnx"), **names)
    export_onnx(net, tmp_path / "own.onnx", input_shape=shape)
    files = [open_network(tmp_path / name) for name in ("net.pt2", "torch.onnx", "own.onnx")]
    networks: list[Network] = [network_of(net, shape), *files]
    x = np.random.default_rng(0).standard_normal((3, *shape))
    expected = net.double()(torch.from_numpy(x)).detach().numpy()
    for network in networks:
        assert [s.kind for s in network.layers] == [s.kind for s in networks[0].layers]
        found = layer_outputs(network, x)[network.output]
        np.testing.assert_allclose(found, expected, atol=1e-12)
    assert [s.kind for s in networks[0].layers].count("add") == 3


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel: expected an odd number"):
        TiedBlock2d(3, 4, 2)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2))
def test_a_transposed_convolution_without_stride_is_a_convolution(
    size: int, dilation: int, padding: int, groups: int
) -> None:
    if padding > dilation * (size - 1):
        return
    torch.manual_seed(size)
    layer = nn.ConvTranspose2d(
        *(2 * groups, 3 * groups, (size, size)),
        **{"padding": padding, "dilation": dilation, "groups": groups},
    ).double()
    x = torch.randn(2, 2 * groups, 5, 6, dtype=torch.float64)
    network = network_of(layer, tuple(x.shape[1:]))
    assert [spec.kind for spec in network.layers] == ["conv2d"]
    found = layer_outputs(network, x.numpy())[network.output]
    np.testing.assert_allclose(found, layer(x).detach().numpy(), atol=1e-12)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"stride": 2}, "only those without stride"),
        ({"stride": 2, "output_padding": 1}, "output_padding"),
        ({"padding": 3}, "more than its kernel spans"),
    ],
)
def test_other_transposed_convolutions_are_refused_by_name(
    options: dict[str, int], reason: str
) -> None:
    with pytest.raises(UnsupportedModule, match=f"convtranspose2d.*{reason}"):
        network_of(nn.ConvTranspose2d(2, 2, 3, **options), (2, 9, 9))  # type: ignore[arg-type]
