"""The product of norms on a torus, proven by multipliers at the edge of what proves anything."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from admm_lip import CertificateError, certify, verify
from admm_lip.certificates.torus import proof
from admm_lip.certificates.torus.check import torus_norm
from admm_lip.certificates.torus.product import certify_product
from admm_lip.certificates.torus.proven_product import product_multiplier
from admm_lip.certificates.torus.read import torus_chain
from admm_lip.certificates.torus.steps import Correlation, Pointwise, above, half_of
from admm_lip.networks.chain import read_network
from admm_lip.networks.sorting_torch import MaxMin

SHAPE = (2, 6, 6)


def rotations(sort: type[nn.Module] = MaxMin) -> nn.Sequential:
    """The product of its layers' norms is 4.5."""
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 1, bias=False), sort(), nn.Conv2d(4, 4, 1, bias=False), sort()),
        *(nn.Flatten(), nn.Linear(144, 3, bias=False)),
    ).double()
    return orthogonal(net)


def orthogonal(net: nn.Sequential) -> nn.Sequential:
    """Layers orthogonal up to factors of product 4.5."""
    torch.manual_seed(0)
    for layer, factor in zip((net[0], net[2], net[5]), (3.0, 0.5, 3.0), strict=True):
        nn.init.orthogonal_(layer.weight.data)
        layer.weight.data *= factor
    return net


def test_the_product_of_norms_is_proven() -> None:
    net = rotations()
    made = certify_product(read_network(net, SHAPE))
    verify(made, net)
    assert made.method == "norm_product" and made.switch == 2
    assert made.lip == pytest.approx(4.5, rel=1e-5)
    assert made.norm_product == pytest.approx(4.5, rel=1e-9)


@pytest.mark.parametrize("sort", [MaxMin, nn.ReLU, nn.Tanh, nn.LeakyReLU])
def test_no_bound_is_above_the_product(sort: Any) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, 2, 1), sort(), nn.AvgPool2d(1), nn.Conv2d(4, 6, 3, 1, 1), sort()),
        nn.Conv2d(6, 1, 2),
    )
    made = certify_product(read_network(net, SHAPE))
    verify(made, net)
    assert made.lip <= made.norm_product * (1.0 + 1e-5)


def test_certify_never_answers_more_than_the_product() -> None:
    """Square and orthogonal up to a factor, so that the product is the constant."""
    net = nn.Sequential(
        *(nn.Conv2d(4, 4, 1, bias=False), MaxMin(), nn.Conv2d(4, 4, 1, bias=False), MaxMin()),
        *(nn.Flatten(), nn.Linear(36, 36, bias=False)),
    ).double()
    made = certify(orthogonal(net), (4, 3, 3), structure="torus")
    verify(made, net)
    assert made.lip == pytest.approx(4.5, rel=2e-6)
    assert made.lip >= 4.5 - 1e-9


@pytest.mark.parametrize(
    "forge",
    [
        lambda c: {"lip": c.lip * (1.0 - 1e-4)},
        lambda c: {"multiplier": (tuple(1.001 * t for t in c.multiplier[0]), *c.multiplier[1:])},
        lambda c: {"multiplier": (tuple(0.999 * t for t in c.multiplier[0]), *c.multiplier[1:])},
        lambda c: {"multiplier": ((-c.multiplier[0][0], *c.multiplier[0][1:]), *c.multiplier[1:])},
    ],
)
def test_what_is_a_little_off_is_refused(forge: Any) -> None:
    net = rotations()
    made = certify_product(read_network(net, SHAPE))
    with pytest.raises(CertificateError):
        verify(dataclasses.replace(made, **forge(made)), net)


def test_the_multipliers_stand_where_the_slack_is_singular() -> None:
    chain = torus_chain(read_network(rotations(), SHAPE), 2)
    p = 9.0
    for t in product_multiplier(chain)[0]:
        assert t * p == pytest.approx([1.0, 1.0, 2.0, 2.0], rel=1e-6)
        p *= 0.25


@pytest.mark.parametrize("seed", range(20))
def test_a_multiple_of_the_identity_gives_what_the_recursion_gives(seed: int) -> None:
    """Behind an activation, from ``p I``: the inverse by the formula, inside the range it has."""
    rng = np.random.default_rng(seed)
    p, beta = rng.uniform(0.1, 10.0), rng.uniform(0.1, 2.0, size=3)
    alpha = np.where(rng.random(3) < 0.4, -beta, -rng.uniform(0.0, 1.0, size=3))
    t = rng.uniform(0.1, 1.8, size=3) / p
    step = Pointwise("tanh", np.array([3, 0, 1]), alpha, beta)
    p_of = np.tile(p * np.eye(4, dtype=complex), (2, 1, 1))
    (by_inverse, _), by_multiple = (
        proof._by_inverse(p_of, step, t, 1),
        proof._of_multiple(p_of, step, t),
    )
    np.testing.assert_allclose(by_multiple, by_inverse, rtol=1e-7, atol=1e-7)
    assert (np.linalg.eigvalsh(by_multiple - (1.0 - 1e-10) * by_inverse) > -1e-12).all()
    assert proof._of_multiple(p_of, step, np.where(np.arange(3) == 1, 2.01, 1.0) / p) is None


@pytest.mark.parametrize(("channels", "out", "stride"), [(2, 5, 1), (5, 2, 1), (2, 5, 2)])
def test_the_norm_of_a_step_is_that_of_its_matrix_on_the_torus(
    channels: int, out: int, stride: int
) -> None:
    """With more channels than it takes as with fewer, and asked for twice."""
    kernel = np.random.default_rng(0).standard_normal((out, channels, 3, 3))
    step, grid = Correlation(kernel, stride=(stride, stride)), (6, 6)
    last = (6 // stride, 6 // stride)
    fine = above(half_of(last)[0], last, step.stride)
    x = np.eye(channels * 36).reshape(-1, channels, 6, 6)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 2), (0, 2)), mode="wrap")
    moved = nn.functional.conv2d(torch.tensor(padded), torch.tensor(kernel), stride=stride)
    norm = float(torch.linalg.matrix_norm(moved.reshape(len(x), -1), 2))
    assert torus_norm(step, fine, grid) == pytest.approx(norm, rel=1e-12)
    assert torus_norm(step, fine, grid) == torus_norm(step, fine, grid)
