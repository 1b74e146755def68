"""Residual blocks of two kernels: the ball of their gain, trained, projected and certified."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from projected_nets import check_projected
from resumed_runs import check_goes_on
from torch import Tensor, nn

from admm_lip import CertificateError, TrainConfig, certify, train, verify
from admm_lip.certificates.torus.block_figures import least_square
from admm_lip.certificates.torus.product import certify_product
from admm_lip.errors import UnsupportedModule
from admm_lip.foreign.open import network_of
from admm_lip.networks.convnets import build_convnet
from admm_lip.networks.residual import ResidualBlock, ResidualBlock2d
from admm_lip.networks.sorting_torch import MaxMin
from admm_lip.training.kernel_layers import kernel_layers
from admm_lip.training.residual_ball import ResidualBall

IMAGE = (1, 6, 6)
QUICK = TrainConfig(bound=1.0, epochs=2, batch_size=32, loss="margin", eps=0.1, start="scratch")


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 4, 2, 1), MaxMin(), ResidualBlock2d(4, 6), ResidualBlock2d(4, 3, 1)),
        *(nn.Flatten(), nn.Linear(36, 6), MaxMin(), ResidualBlock(6, 5), nn.Linear(6, 2)),
    )


class ByHand(nn.Module):
    """The same layers, in somebody's own words."""

    def __init__(self, like: nn.Sequential) -> None:
        super().__init__()
        self.first, self.a, self.b = like[0], like[2], like[3]
        self.second, self.c, self.last, self.act = like[5], like[7], like[8], MaxMin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        for block in (self.a, self.b):
            x = block.back(nn.functional.relu(block.into(x))) + x
        x = self.act(self.second(torch.flatten(x, 1)))
        return self.last(x + self.c.back(self.c.into(x).relu()))


def data(rows: int = 128) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, *IMAGE, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0, :3].sum((1, 2)) > 0).long()


def ball_of(block: nn.Module, shape: tuple[int, ...], gain: float) -> ResidualBall:
    (ball,) = kernel_layers(block.double(), shape, growth=gain)[1].balls
    assert isinstance(ball, ResidualBall)
    return ball


def weights_of(block: nn.Module) -> tuple[Tensor, Tensor]:
    return block.into.weight.detach().double(), block.back.weight.detach().double()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.floats(1.01, 3.0),
    st.floats(0.05, 2.0),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_the_ball_is_the_matrix_inequality(
    width: int, hidden: int, gain: float, size: float, near: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    block = ResidualBlock(width, hidden).double()
    with torch.no_grad():
        block.into.weight.normal_().mul_(size)
        block.back.weight.normal_().mul_(size)
        if near:
            block.back.weight.mul_(0.1).sub_(block.into.weight.T)
    g1, g2 = weights_of(block)
    ball = ball_of(block, (width,), gain)
    beside = torch.cat((torch.eye(width).double(), g2), dim=1)
    whole = torch.block_diag(gain**2 * torch.eye(width), 2.0 * torch.eye(hidden)).double()
    whole[:width, width:], whole[width:, :width] = -g1.T, -g1
    least = float(torch.linalg.eigvalsh(whole - beside.T @ beside)[0])
    norm = ball.norm_of((g1, g2))
    assert (norm <= 1.0) == (least >= 0.0) or abs(least) < 1e-9
    # What one multiplier proves is at most what T = I and what the product of norms prove.
    found = ball.gain_of((g1, g2))
    product = 1.0 + float(torch.linalg.matrix_norm(g1, 2) * torch.linalg.matrix_norm(g2, 2))
    assert found <= product * (1.0 + 1e-9)
    assert found <= gain * (1.0 + 1e-6) or norm > 1.0
    share, square = least_square(g1.numpy()[None], g2.numpy()[None])
    assert found == pytest.approx(math.sqrt(square), rel=1e-9)
    scaled = dataclasses.replace(ball, gain=found + 1e-6, balance=math.sqrt(share))
    assert scaled.norm_of((g1, g2)) <= 1.0 + 1e-9


def anchor_of(ball: ResidualBall, block: nn.Module, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights_of(block)
    )
    return first, second


GROUPS = [(1, 1), (2, 1), (1, 2), (2, 2)]


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([(3, 3), (1, 3), (3, 1)]),
    st.sampled_from(GROUPS),
    st.floats(1.1, 2.0),
    st.floats(0.7, 1.5),
    st.integers(0, 2**16),
)
def test_the_nearest_weights_are_inside_idempotent_and_optimal(
    kernels: tuple[int, int], groups: tuple[int, int], gain: float, balance: float, seed: int
) -> None:
    block = ResidualBlock2d(2, 4)
    block.into = nn.Conv2d(2, 4, kernels[0], padding=kernels[0] // 2, groups=groups[0])
    block.back = nn.Conv2d(4, 2, kernels[1], padding=kernels[1] // 2, groups=groups[1])
    ball = dataclasses.replace(ball_of(block, (2, 5, 4), gain), balance=balance, radius=1.0)
    anchor = anchor_of(ball, block, seed)
    near = ball.nearest_to(anchor, 1.0, 1e-9)[0]
    assert ball.norm_of(near) <= 1.0 + 1e-9
    again = ball.nearest_to(near, 1.0, 1e-9)[0]
    for one, two in zip(again, near, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0.0)
    size = math.sqrt(sum(float(w.square().sum()) for w in anchor))
    for k in range(8):  # the variational inequality
        other = anchor_of(ball, block, seed + k + 1)
        other = tuple(w / ball.norm_of(other) for w in other)
        rows = zip(anchor, near, other, strict=True)
        assert sum(float(((v - w) * (o - w)).sum()) for v, w, o in rows) <= 1e-4 * size


@pytest.mark.parametrize("groups", GROUPS)
def test_the_ball_of_kernels_bounds_the_matrices_on_padded_images(groups: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block, shape = ResidualBlock2d(2, 4), (2, 4, 5)
    block.into = nn.Conv2d(2, 4, 3, padding=1, groups=groups[0])
    block.back = nn.Conv2d(4, 2, 3, padding=1, groups=groups[1])
    block = block.double()
    ball, weights = ball_of(block, shape, 1.5), weights_of(block)
    found = dataclasses.replace(ball, gain=ball.gain_of(weights))
    block.into.bias.data.zero_()
    block.back.bias.data.zero_()
    eye = torch.eye(40).double().reshape(-1, *shape)
    g1 = block.into(eye).flatten(1).T.detach()
    hidden = torch.eye(len(g1)).double().reshape(-1, 4, 4, 5)
    g2 = block.back(hidden).flatten(1).T.detach()
    _, square = least_square(g1.numpy()[None], g2.numpy()[None])
    assert math.sqrt(square) <= found.gain * (1.0 + 1e-3)
    x = torch.randn(1, *shape).double()
    slope = torch.autograd.functional.jacobian(block, x).reshape(40, 40)
    assert float(torch.linalg.matrix_norm(slope, 2)) <= found.gain


def test_a_run_ends_under_its_bound_and_by_hand_it_is_the_same() -> None:
    results = [train(net, data(), QUICK, progress=False) for net in (small(), ByHand(small()))]
    for result in results:
        verify(result.certificate, result.model)
        assert 0.9 < result.certificate.lip <= 1.0
        assert result.certificate.norm_product > 2.0
    first, second = (
        [p for layer in kernel_layers(r.model, IMAGE)[0].values() for p in layer.parameters()]
        for r in results
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    net = results[0].model.double()
    for x in torch.randn(5, 1, *IMAGE, dtype=torch.float64):
        slope = torch.autograd.functional.jacobian(net, x).reshape(2, -1)
        assert float(torch.linalg.matrix_norm(slope, 2)) <= results[0].certificate.lip
    forged = dataclasses.replace(results[0].certificate, lip=0.9, lower_lip=0.1, sampled_lower=0.1)
    with pytest.raises(CertificateError):
        verify(forged, results[0].model)


@pytest.mark.parametrize("bound", [0.5, 20.0])
def test_a_trained_network_is_projected_under_a_bound(bound: float) -> None:
    check_projected(small, bound, IMAGE)


def test_a_run_goes_on_from_its_folder_to_equal_bits(tmp_path: Path) -> None:
    check_goes_on(small, data(), QUICK, tmp_path)


def test_frozen_blocks_stay_and_half_of_one_does_not() -> None:
    model = small()
    model[2].requires_grad_(False)
    before = [w.clone() for w in weights_of(model[2])]
    config = dataclasses.replace(QUICK, start="model")
    result = train(model, data(), config, progress=False)
    verify(result.certificate, result.model)
    assert result.certificate.lip <= 1.0
    for one, two in zip(before, weights_of(result.model[2]), strict=True):
        assert torch.equal(one, two)
    model[3].back.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="all weights of a residual block are"):
        train(model, data(), config, progress=False)


def test_a_price_moves_what_shares_the_bound_and_blocks_keep_their_gain() -> None:
    config = TrainConfig(mu=1e-2, epochs=2, batch_size=32, start="scratch", residual_gain=1.5)
    result = train(small(), data(), config, progress=False)
    verify(result.certificate, result.model)
    layers, norms = kernel_layers(result.model, IMAGE, growth=1.5)
    weights = [layer.weight.detach().double() for layer in layers.values()]
    blocks = [ball for ball in norms.balls if isinstance(ball, ResidualBall)]
    assert [b.gain for b in blocks] == pytest.approx([1.5 ** (1.0 / 3.0)] * 3)
    for ball, k in zip(blocks, (1, 3, 6), strict=True):
        assert ball.norm_of((weights[k], weights[k + 1])) <= 1.0


def test_a_block_is_proven_at_its_gain_not_at_the_product_of_norms() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(ResidualBlock2d(2, 3), nn.Flatten(), nn.Linear(18, 2)).double()
    with torch.no_grad():
        net[0].back.weight.copy_(-0.7 * net[0].into.weight.transpose(0, 1).flip(2, 3))
    proof = certify_product(network_of(net, (2, 3, 3)))
    verify(proof, net)
    head = float(torch.linalg.matrix_norm(net[2].weight.detach(), 2))
    gain = ball_of(net[0], (2, 3, 3), 2.0).gain_of(weights_of(net[0]))
    assert proof.lip <= gain * head * (1.0 + 1e-4)
    assert proof.lip < 0.8 * proof.norm_product
    assert proof.lip >= certify(net, (2, 3, 3), structure="exact").lower_lip


def test_least_square_of_what_is_not_finite_or_nothing() -> None:
    zero = np.zeros((1, 2, 2))
    assert least_square(zero, zero) == (1.0, 1.0)
    assert least_square(zero, zero, zero) == (1.0, 0.0)
    assert least_square(zero + np.nan, zero)[1] == math.inf


def test_the_named_network_has_them_behind_every_convolution() -> None:
    net = build_convnet("2C4R2F", (1, 8, 8), 3, width=0.25, activation="max_min")
    assert [type(m) for m in net[:4]] == [nn.Conv2d, MaxMin, ResidualBlock2d, ResidualBlock2d]


def strided() -> nn.Module:
    block = ResidualBlock2d(2, 2)
    block.into = nn.Conv2d(2, 2, 2, 2)
    block.back = nn.Conv2d(2, 2, 2, padding=2)
    return block


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "strides": (strided, r"into: residual blocks are trained without strides, got stride=\(2, 2\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_such_block_is_refused_by_name(name: str) -> None:
    make, match = REFUSED[name]
    with pytest.raises(UnsupportedModule, match=match):
        kernel_layers(make(), (2, 6, 6))


@pytest.mark.parametrize("gain", [1.0, 0.5, math.inf])
def test_a_gain_of_no_ball_is_refused(gain: float) -> None:
    with pytest.raises(ValueError, match="residual_gain: expected a number above 1"):
        TrainConfig(residual_gain=gain)
