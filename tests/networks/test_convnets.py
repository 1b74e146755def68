"""Convolutional networks by name: their published shapes, and that the package reads them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from admm_lip import certify
from admm_lip.networks.built import build_module
from admm_lip.networks.chain import read_network
from admm_lip.networks.convnets import ACTIVATIONS, CONVNETS, ConvnetConfig, build_convnet

MNIST, CIFAR, TINY = (1, 28, 28), (3, 32, 32), (3, 64, 64)


@pytest.mark.parametrize(
    ("name", "shape", "flat"),
    [
        ("4C3F", MNIST, 3136),
        ("4C3F", CIFAR, 4096),
        ("6C2F", CIFAR, 4096),
        ("8C2F", TINY, 9216),
    ],
)
def test_full_networks_have_the_published_sizes(name: str, shape: tuple[int, ...], flat: int):
    net = build_convnet(name, shape, 10)
    convolutions = [m for m in net if isinstance(m, nn.Conv2d)]
    linears = [m for m in net if isinstance(m, nn.Linear)]
    assert f"{len(convolutions)}C{len(linears)}F" == name
    assert linears[0].in_features == flat
    assert net(torch.zeros(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", CONVNETS)
def test_every_network_is_read_and_built_again(name: str, activation: str) -> None:
    shape = TINY if name == "8C2F" else (1, 8, 8)
    net = build_convnet(name, shape, 10, width=0.1, activation=activation, seed=3).eval()
    network = read_network(net, shape)
    assert network.is_path == (not CONVNETS[name].blocks)
    if network.is_path:
        x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
        assert torch.equal(build_module(network)(x), net(x))


def test_a_small_one_is_certified() -> None:
    net = build_convnet("2C2F", (1, 8, 8), 10, width=0.25).eval()
    x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    certificate = certify(read_network(net, (1, 8, 8)))
    moved = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        slopes = (net(x) - net(moved)).norm(dim=1) / (x - moved).flatten(1).norm(dim=1)
    assert float(slopes.max()) <= certificate.lip <= certificate.norm_product


def test_the_width_factor_and_the_seed() -> None:
    quarter = build_convnet("4C3F", MNIST, 10, width=0.25)
    assert [m.out_channels for m in quarter if isinstance(m, nn.Conv2d)] == [8, 8, 16, 16]
    assert [m.out_features for m in quarter if isinstance(m, nn.Linear)] == [128, 128, 10]
    tiny = build_convnet("4C3F", MNIST, 10, width=1e-6, activation="max_min")
    assert {m.out_channels for m in tiny if isinstance(m, nn.Conv2d)} == {2}
    state = torch.get_rng_state()
    same, other = (build_convnet("4C3F", MNIST, 10, width=0.25, seed=s) for s in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(same[0].weight, quarter[0].weight)
    assert not torch.equal(other[0].weight, quarter[0].weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("5C3F", MNIST, 10), "convnet.name: expected one of 2C2F, 4C3F, 6C2F, 8C2F, .*got '5C3F'"),
        (("", MNIST, 10), "name: expected one of 2C2F"),
        (("4C3F", (784,), 10), r"expected \(channels, rows, columns\).* got \(784,\) and 10"),
        (("8C2F", (1, 16, 16), 10), "8C2F halves pictures until nothing is left of"),
    ],
)
def test_bad_networks_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_convnet(*arguments)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"convnet.width: expected a finite number > 0, got 0"):
        ConvnetConfig(width=0.0)
    with pytest.raises(ValueError, match=r"convnet.activation: expected one of relu, .*'tanh'"):
        ConvnetConfig(activation="tanh")
