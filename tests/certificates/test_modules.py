"""Two layers as one module in a product of norms: the best pairing, its bound and its proof."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from admm_lip import Certificate, CertificateError, certify, verify
from admm_lip.certificates.exact import exact_check
from admm_lip.certificates.modules import Module, in_modules, module_bound
from admm_lip.certificates.torus.product import certify_product
from admm_lip.certificates.torus.read import furthest_chain
from admm_lip.networks.chain import read_network
from admm_lip.training.kernel_layers import kernel_layers
from admm_lip.training.terms import grouped

SHAPE = (2, 8, 8)


def network(act: type[nn.Module] = nn.ReLU, head: bool = False) -> nn.Sequential:
    torch.manual_seed(2)
    layers = [nn.Conv2d(2, 4, 3, 2, 1), act(), nn.Conv2d(4, 3, 4, 2, 1)]
    if head:
        layers += [nn.Flatten(), nn.Linear(12, 6), act(), nn.Linear(6, 5)]
    net = nn.Sequential(*layers)
    net[0].weight.data *= 3.0
    return net


def proven(net: nn.Module) -> Certificate:
    made = certify_product(read_network(net, SHAPE))
    verify(made, net)
    return made


def pairings(places: int, pairs: dict[int, Module]) -> Iterator[list[int]]:
    """All ways to take places alone or, where a module begins, up to its last one."""
    if not places:
        yield []
    for first in (places - 1, *(k for k, m in pairs.items() if m.last == places - 1)):
        if places:
            yield from ([*rest, first] for rest in pairings(first, pairs))


@pytest.mark.parametrize("seed", range(10))
def test_no_way_to_take_layers_in_modules_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    squares = rng.uniform(0.5, 2.0, size=7)
    starts = rng.permutation(5)[:4].tolist()
    pairs = {k: Module(k + 2, float(rng.uniform(0.2, 1.5)), 2.0) for k in starts}
    found = in_modules(squares.tolist(), pairs.get)

    def product(begins: list[int]) -> float:
        ends = [*begins[1:], len(squares)]
        return math.prod(
            squares[a] if b == a + 1 else pairs[a].bound ** 2 * squares[a + 1]
            for a, b in zip(begins, ends, strict=True)
        )

    least = min(product(begins) for begins in pairings(len(squares), pairs))
    assert math.prod(found) == pytest.approx(least)
    assert len(found) == len(squares)


def test_a_layer_of_zeros_makes_the_product_0() -> None:
    assert math.prod(in_modules([0.0, 1.0, 4.0], lambda k: None)) == 0.0
    assert module_bound([(np.eye(2), np.zeros((2, 2)))], (0.5, 1.0)) == (0.25, 0.5)


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.LeakyReLU])
def test_a_module_is_proven_at_the_norm_that_training_keeps(act: type[nn.Module]) -> None:
    net = network(act)
    made = proven(net)
    layers, norms = kernel_layers(net, SHAPE)
    weights = tuple(layer.weight.detach() for layer in layers.values())
    ((ball, own),) = grouped(norms.balls, weights)
    r = min(b.norm_of(own) for b in (ball, ball.fitted(own))) ** 2
    assert made.lip == pytest.approx(r, rel=2e-6)
    assert made.method == "closed_form"
    assert made.lip < 0.95 * made.norm_product
    best = certify(net, SHAPE, structure="torus")
    assert best.lip <= made.lip * (1.0 + 1e-9)


def test_slopes_below_0_make_no_module() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanhshrink(), nn.Conv2d(4, 3, 1))
    assert proven(net).method == "closed_form"
    net[1] = nn.GELU()  # of slopes below 0
    assert proven(net).method == "norm_product"


def test_a_convolution_in_front_of_the_flattening_stands_on_the_torus_with_its_module() -> None:
    net = network(head=True)
    made = proven(net)
    assert [layer.activation for layer in made.slopes] == ["relu", "zero_padding", "relu"]
    assert made.switch == 2
    chain = furthest_chain(read_network(net, SHAPE))
    assert chain.image == (3, 2, 2)
    layers, norms = kernel_layers(net, SHAPE)
    weights = tuple(layer.weight.detach() for layer in layers.values())
    groups = [*grouped(norms.balls, weights)]
    assert [ball.layers for ball, _ in groups] == [2, 2]
    bound = math.prod(ball.fitted(own).norm_of(own) ** 2 for ball, own in groups)
    assert made.lip <= bound * (1.0 + 1e-6)
    assert made.lip < 0.9 * made.norm_product
    assert certify(net, SHAPE, structure="exact").lip <= made.lip
    exact_check(read_network(net, SHAPE), made)
    with pytest.raises(CertificateError):
        exact_check(read_network(net, SHAPE), dataclasses.replace(made, lip=0.5 * made.lip))


@pytest.mark.parametrize(
    "forge",
    [
        lambda c: {"lip": c.lip * (1.0 - 1e-4)},
        lambda c: {"multiplier": (tuple(2.5 * t for t in c.multiplier[0]), *c.multiplier[1:])},
        lambda c: {"multiplier": (tuple(0.4 * t for t in c.multiplier[0]), *c.multiplier[1:])},
    ],
)
def test_what_is_a_little_off_is_refused(forge: Any) -> None:
    net = network()
    made = proven(net)
    with pytest.raises(CertificateError):
        verify(dataclasses.replace(made, **forge(made)), net)


@pytest.mark.parametrize("head", [False, True])
def test_a_scale_moved_from_one_layer_to_the_other_changes_nothing(head: bool) -> None:
    def moved(power: float) -> Certificate:
        net = network(head=head).double()
        with torch.no_grad():
            for k in (0, 4) if head else (0,):
                net[k].weight.mul_(2.0**power)
                net[k + 2].weight.mul_(2.0**-power)
        return proven(net)

    near, far = moved(10.0), moved(90.0)
    assert far.lip == pytest.approx(near.lip, rel=1e-6)
    assert far.lip < 0.95 * far.norm_product
