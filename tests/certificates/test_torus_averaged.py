"""Residual blocks of any activation on a torus: by the norms of their layers, each as one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from admm_lip import CertificateError, certify, verify
from admm_lip.certificates.torus.product import certify_product
from admm_lip.certificates.torus.read import furthest_chain
from admm_lip.certificates.torus.residual import Residual, pieces_of
from admm_lip.foreign.open import network_of
from admm_lip.networks.sorting_torch import GroupSort2, MaxMin

IMAGE = (4, 4, 5)
ACTS: dict[str, Callable[[], nn.Module]] = {
    "max_min": MaxMin,
    "group_sort2": GroupSort2,
    "silu": nn.SiLU,
    "leaky": lambda: nn.LeakyReLU(-0.5),
}


class Block(nn.Module):
    """``a S x + b G2 phi(G1 x)``, the terms in either order, S a layer or nothing."""

    def __init__(
        self,
        act: nn.Module,
        a: float | Tensor,
        b: float,
        *,
        first: bool = True,
        stride: int = 1,
        vectors: bool = False,
    ) -> None:
        super().__init__()
        self.a, self.b, self.act, self.first = a, b, act, first
        self.short: nn.Module = nn.Identity()
        if vectors:
            self.into, self.back = nn.Linear(4, 6), nn.Linear(6, 4)
            return
        self.into = nn.Conv2d(4, 6, 3, stride, 1)
        self.back = nn.Conv2d(6, 4, 3, padding=1)
        if stride > 1:
            self.short = nn.Conv2d(4, 4, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            return self.a * self.short(x) + self.b * self.back(self.act(self.into(x)))
        return self.b * self.back(self.act(self.into(x))) + self.short(x) * self.a


def norm(layer: nn.Module, grid: tuple[int, int]) -> float:
    weight = layer.weight.detach()
    if weight.ndim == 2:
        return float(torch.linalg.matrix_norm(weight, 2))
    waves = torch.fft.fft2(weight, s=grid).permute(2, 3, 0, 1)
    return float(torch.linalg.matrix_norm(waves, 2).max())


def scaled(net: nn.Module, size: float, grid: tuple[int, int]) -> nn.Module:
    """Every layer of the norm ``size``."""
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.mul_(size / norm(layer, grid))
    return net


def blocks_of(net: nn.Module, shape: tuple[int, ...]) -> int:
    steps = furthest_chain(network_of(net, shape)).steps
    return sum(isinstance(piece, Residual) for piece in pieces_of(steps))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("kind", ["max_min", "group_sort2"])
def test_a_chain_of_convex_combinations_grows_nothing(
    kind: str, vectors: bool, first: bool
) -> None:
    torch.manual_seed(0)
    blocks = [
        Block(ACTS[kind](), a, 1.0 - a, first=first, vectors=vectors) for a in (0.5, 0.1, 0.8)
    ]
    net = scaled(nn.Sequential(*blocks).double(), 1.0, (5, 6))
    shape = (4,) if vectors else IMAGE
    assert blocks_of(net, shape) == 3
    proof = certify_product(network_of(net, shape))
    verify(proof, net)
    assert proof.norm_product == pytest.approx(1.0, rel=1e-9)
    assert proof.lip == pytest.approx(1.0, rel=1e-5)
    assert proof.method == "norm_product"
    if vectors:
        assert certify(net, shape).lip <= proof.lip * (1.0 + 1e-9)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(sorted(ACTS)),
    st.floats(-1.5, 1.5).filter(lambda a: abs(a) > 0.05),
    *(st.floats(-1.5, 1.5), st.floats(0.2, 2.0), st.sampled_from((1, 2)), st.booleans()),
    st.integers(0, 2**16),
)
def test_the_bound_is_the_closed_form_and_no_sampled_slope_exceeds_it(
    kind: str, a: float, b: float, size: float, stride: int, first: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    shape = (4, 4, 4)
    blocks = [Block(ACTS[kind](), a, b, first=first), Block(ACTS[kind](), a, b, stride=stride)]
    net = scaled(nn.Sequential(*blocks).double(), size, (5, 5))
    proof = certify_product(network_of(net, shape))
    verify(proof, net)
    for x in 2.0 * torch.randn(4, 1, *shape).double():
        slope = torch.autograd.functional.jacobian(net, x)
        assert float(torch.linalg.matrix_norm(slope.reshape(-1, 64), 2)) <= proof.lip
    if stride == 1:
        steepest = {"silu": 1.0999}.get(kind, 1.0)
        each = abs(a) + abs(b) * steepest * size**2
        assert proof.lip == pytest.approx(each**2, rel=2e-4)


def test_factors_of_channels_and_branches_of_nothing() -> None:
    torch.manual_seed(1)
    factors = torch.tensor([0.5, -0.25, 0.5, 0.1]).double().reshape(4, 1, 1)
    net = scaled(nn.Sequential(Block(MaxMin(), factors, 0.5)).double(), 1.0, (5, 6))
    proof = certify_product(network_of(net, IMAGE))
    verify(proof, net)
    assert proof.lip == pytest.approx(1.0, rel=1e-5)
    for layer, size in ((net[0].back, 0.5), (net[0].into, 0.5)):
        with torch.no_grad():
            layer.weight.zero_()
        proof = certify_product(network_of(net, IMAGE))
        verify(proof, net)
        assert proof.lip == pytest.approx(size, rel=1e-3) or layer is net[0].into


def test_forgeries_are_refused() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(Block(MaxMin(), 0.5, 0.5) for _ in range(2)), nn.Flatten())
    net = scaled(net.double(), 1.0, (5, 6))
    proof = certify_product(network_of(net, IMAGE))
    first = proof.multiplier[0]
    low = {"lower_lip": 0.1, "sampled_lower": 0.1}
    forged = [
        dataclasses.replace(proof, lip=proof.lip * (1.0 - 1e-4), **low),
        dataclasses.replace(
            proof, multiplier=((0.5 * first[0], *first[1:]), *proof.multiplier[1:])
        ),
        dataclasses.replace(proof, multiplier=(first[:1] * len(first), *proof.multiplier[1:])),
        dataclasses.replace(proof, multiplier=(first[:-1], *proof.multiplier[1:])),
    ]
    for one in forged:
        with pytest.raises(CertificateError):
            verify(one, net)
    with torch.no_grad():
        net[1].into.weight.mul_(1.01)
    with pytest.raises(CertificateError):
        verify(proof, net)
    assert math.isfinite(proof.lip)
