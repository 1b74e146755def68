"""Residual blocks of one kernel on a torus: the figures of their own, and proofs with them."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip import CertificateError, certify, verify
from admm_lip.certificates.torus.block_figures import figures
from admm_lip.certificates.torus.product import certify_product
from admm_lip.certificates.torus.read import chains_of
from admm_lip.certificates.torus.residual import Residual, pieces_of
from admm_lip.certificates.torus.steps import half_of
from admm_lip.foreign.open import network_of
from admm_lip.networks.tied import TiedBlock, TiedBlock2d

IMAGE = (2, 3, 4)


GRID = (4, 5)


def scaled(block: TiedBlock2d | TiedBlock, norm: float) -> nn.Module:
    """A block whose K has this norm, on the torus of the images."""
    if isinstance(block, TiedBlock2d):
        waves = torch.fft.fft2(block.conv.weight.detach(), s=GRID)
        weight, found = block.conv.weight, torch.linalg.matrix_norm(waves.permute(2, 3, 0, 1), 2)
    else:
        weight, found = block.linear.weight, torch.linalg.matrix_norm(block.linear.weight, 2)
    with torch.no_grad():
        weight.mul_(norm / found.max())
    return block


def net_of(norm: float, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    with torch.random.fork_rng():
        torch.set_default_dtype(torch.float64)
        try:
            blocks = [scaled(TiedBlock2d(2, 5), norm), scaled(TiedBlock2d(2, 3), norm)]
            return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(24, 2))
        finally:
            torch.set_default_dtype(torch.float32)


def blocks_of(net: nn.Module) -> list[Residual]:
    chain = chains_of(network_of(net, IMAGE))[-1]
    return [piece for piece in pieces_of(chain.steps) if isinstance(piece, Residual)]


@pytest.mark.parametrize("norm", [0.5, math.sqrt(2.0) * (1.0 - 1e-7), 1.6, 3.0])
def test_the_figures_of_a_block_are_the_closed_form(norm: float) -> None:
    found = blocks_of(net_of(norm))
    assert len(found) == 2
    share, square = figures(found[0], half_of(GRID)[0], GRID) or (0.0, 0.0)
    assert share == pytest.approx(max(1.0, norm**2 - 1.0), rel=1e-6)
    assert square == pytest.approx(max(1.0, norm**2 - 1.0) ** 2, rel=1e-6)


@pytest.mark.parametrize("norm", [1.0, math.sqrt(2.0) * (1.0 - 1e-6), 1.7])
def test_blocks_of_norm_root_two_cost_nothing_and_are_proven(norm: float) -> None:
    net = net_of(norm)
    proof = certify_product(network_of(net, IMAGE))
    verify(proof, net)
    weight = net[3].weight.detach()
    head = float(torch.linalg.matrix_norm(weight, 2))
    most = max(1.0, norm**2 - 1.0) ** 2 * head
    assert proof.lip <= most * (1.0 + 1e-3)
    dense = certify(net, IMAGE, structure="exact")
    assert proof.lip >= dense.lower_lip
    slope = torch.autograd.functional.jacobian(net, torch.randn(1, *IMAGE).double())
    assert float(torch.linalg.matrix_norm(slope.reshape(2, -1), 2)) <= dense.lip


class Almost(nn.Module):
    """A tied block but for one entry of K', or with a layer for what passes."""

    def __init__(self, by: float, passing: float | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.act = nn.Conv2d(2, 3, 3, padding=1).double(), nn.ReLU()
        back = -self.into.weight.detach().transpose(0, 1).flip(2, 3)
        back[0, 0, 1, 1] += by
        self.back = nn.Conv2d(3, 2, 3, padding=1, bias=False)
        self.back.weight = nn.Parameter(back)
        self.skip = None if passing is None else nn.Conv2d(2, 2, 1, bias=False)
        if self.skip is not None:
            eye = (torch.eye(2).double() + float(passing or 0.0)).reshape(2, 2, 1, 1)
            self.skip.weight = nn.Parameter(eye)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        passed = x if self.skip is None else self.skip(x)
        return passed + self.back(self.act(self.into(x)))


@pytest.mark.parametrize(
    ("by", "passing", "blocks"), [(0.0, None, 1), (1e-3, None, 0), (0.0, 1e-18, 0), (0.0, 0.5, 0)]
)
def test_what_a_proof_takes_as_tied_is_tied(by: float, passing: float | None, blocks: int) -> None:
    net = nn.Sequential(Almost(by, passing), nn.Flatten(), nn.Linear(24, 2).double())
    found = blocks_of(net)
    tied = [figures(block, half_of(GRID)[0], GRID, untied=False) for block in found]
    assert sum(one is not None for one in tied) == blocks
    proof = certify_product(network_of(net, IMAGE))
    verify(proof, net)


def test_a_smaller_bound_is_refused() -> None:
    net = net_of(1.41)
    proof = certify_product(network_of(net, IMAGE))
    for lip in (proof.lip * 0.9, proof.lip * (1.0 - 1e-4)):
        low = min(proof.lower_lip, lip)
        forged = dataclasses.replace(proof, lip=lip, lower_lip=low, sampled_lower=low)
        with pytest.raises(CertificateError):
            verify(forged, net)
    larger = copy.deepcopy(net)
    with torch.no_grad():
        larger[0].conv.weight.mul_(1.05)
    with pytest.raises(CertificateError):
        verify(proof, larger)


@pytest.mark.parametrize("count", [1, 7])
def test_multipliers_of_a_block_are_one_for_each_channel(count: int) -> None:
    """As many numbers as it has channels, although all are alike."""
    net = net_of(1.41)
    proof = certify_product(network_of(net, IMAGE))
    first, *rest = proof.multiplier
    assert len(first) != count
    forged = dataclasses.replace(proof, multiplier=(first[:1] * count, *rest))
    with pytest.raises(CertificateError, match=r"multiplier\[0\]: expected \d+ numbers"):
        verify(forged, net)


def test_vectors_are_images_of_one_pixel() -> None:
    torch.manual_seed(2)
    net = nn.Sequential(
        *(nn.Linear(5, 6), TiedBlock(6, 9), TiedBlock(6, 4), nn.Linear(6, 3)), nn.ReLU()
    ).double()
    for block in (net[1], net[2]):
        scaled(block, math.sqrt(2.0) * (1.0 - 1e-6))
    proof = certify_product(network_of(net))
    verify(proof, net)
    norms = [float(torch.linalg.matrix_norm(net[k].weight.detach(), 2)) for k in (0, 3)]
    assert proof.lip == pytest.approx(math.prod(norms), rel=1e-5)
    assert certify(net).lip <= proof.lip


@settings(max_examples=12, deadline=None)
@given(
    *(st.integers(1, 3), st.sampled_from((1, 3, 5)), st.integers(1, 2), st.integers(0, 1)),
    *(st.tuples(st.integers(4, 6), st.integers(4, 6)), st.floats(0.5, 3.0), st.integers(0, 2**16)),
)
def test_no_sampled_slope_exceeds_what_is_proven(
    channels: int,
    kernel: int,
    stride: int,
    padding: int,
    sides: tuple[int, int],
    scale: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(TiedBlock2d(2, 3, kernel), nn.Conv2d(2, channels, 3, stride, padding)),
        *(TiedBlock2d(channels, 2, 3), TiedBlock2d(channels, 4, kernel), nn.Tanh()),
        nn.Conv2d(channels, 2, 2),
    ).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(scale)
    shape = (2, *sides)
    if min(sides) + 2 * padding - 2 < 2 * stride:
        return
    proof = certify_product(network_of(net, shape))
    verify(proof, net)
    for x in torch.randn(4, *shape).double():
        slope = torch.autograd.functional.jacobian(net, x[None])
        assert float(torch.linalg.matrix_norm(slope.reshape(-1, x.numel()), 2)) <= proof.lip
