"""Residual blocks with a layer as shortcut: the ball of their bound, trained and projected."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from projected_nets import check_projected
from resumed_runs import check_goes_on
from torch import Tensor, nn

from admm_lip import Constraint, Lipschitz, TrainConfig, certify, project, train, verify
from admm_lip.certificates.torus.product import certify_product
from admm_lip.errors import UnsupportedModule
from admm_lip.foreign.open import network_of
from admm_lip.networks.sorting_torch import MaxMin
from admm_lip.training.kernel_layers import kernel_layers
from admm_lip.training.residual_ball import from_diagonal, on_diagonal
from admm_lip.training.shortcut_ball import ShortcutBall

IMAGE = (1, 8, 8)
QUICK = TrainConfig(bound=1.0, epochs=2, batch_size=32, loss="margin", eps=0.1, start="scratch")
Weights = tuple[Tensor, Tensor, Tensor]


class Dense(nn.Module):
    """Its shortcut comes last."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.into, self.back = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.past, self.act = nn.Linear(inputs, outputs), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.act(self.into(x))) + self.past(x)


class Kernels(nn.Module):
    """Its shortcut comes first, and something that does nothing stands between."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        out: int,
        kernels: tuple[int, int, int],
        stride: int,
        pads: str = "zeros",
    ) -> None:
        super().__init__()
        first, second, past = kernels
        self.past = nn.Conv2d(channels, out, past, stride, past // 2, padding_mode=pads)
        self.into = nn.Conv2d(channels, hidden, first, stride, first // 2, padding_mode=pads)
        self.back = nn.Conv2d(hidden, out, second, padding=second // 2, padding_mode=pads)
        self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        beside = self.past(x)
        return beside + self.back(torch.relu(self.norm(self.into(x))))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), Kernels(4, 5, 6, (3, 3, 1), 2), nn.ReLU()),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 2)),
    )


def data(rows: int = 128) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, *IMAGE, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0, :4].sum((1, 2)) > 0).long()


def ball_of(block: nn.Module, shape: tuple[int, ...]) -> ShortcutBall:
    (ball,) = kernel_layers(block.double(), shape)[1].balls
    assert isinstance(ball, ShortcutBall)
    return ball


def random(like: nn.Module, seed: int, size: float = 1.0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    first, second, past = (
        size * torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
        for layer in (like.into, like.back, like.past)
    )
    return first, second, past


def inequality(weights: Weights, bound: float, balance: float = 1.0) -> np.ndarray:
    """That of the block with multipliers ``b^2 r``, before any Schur complement."""
    g1, g2, s = (w.numpy() for w in weights)
    t = balance**2 * bound
    inner = np.block(
        [[bound**2 * np.eye(g1.shape[1]), -t * g1.T], [-t * g1, 2 * t * np.eye(len(g1))]]
    )
    beside = np.hstack((s, g2))
    return inner - beside.T @ beside


@settings(max_examples=25, deadline=None)
@given(
    *(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    *(st.floats(0.05, 2.0), st.floats(0.5, 2.0), st.integers(0, 2**16)),
)
def test_the_norm_is_the_least_bound_of_the_matrix_inequality(
    inputs: int, hidden: int, outputs: int, size: float, balance: float, seed: int
) -> None:
    block = Dense(inputs, hidden, outputs)
    ball, weights = ball_of(block, (inputs,)), random(block, seed, size)
    ball = dataclasses.replace(ball, balance=balance)
    bound = ball.norm_of(weights) ** 2
    scale = max(1.0, bound**2)
    for factor, holds in ((1.0 - 1e-4, False), (1.0 + 1e-9, True), (1.5, True), (40.0, True)):
        least = np.linalg.eigvalsh(inequality(weights, factor * bound, balance))[0]
        assert (least >= -1e-9 * scale * factor**2) if holds else least < 0.0
    # The best multiplier is that of the certificate, and no slope is above what it proves.
    best = ball.fitted(weights)
    found = ball.gain_of(weights)
    assert best.norm_of(weights) ** 2 == pytest.approx(found, rel=1e-6)
    assert found <= bound * (1.0 + 1e-3)
    g1, g2, s = weights
    for mask in torch.rand(20, hidden, dtype=torch.float64):
        slope = s + g2 @ (mask.round()[:, None] * g1)
        assert float(torch.linalg.matrix_norm(slope, 2)) <= found * (1.0 + 1e-9)


def test_factors_scale_the_norm_and_the_function() -> None:
    block = Dense(3, 4, 2)
    ball, weights = ball_of(block, (3,)), random(block, 0)
    norm = ball.norm_of(weights)
    assert ball.norm_of(ball.scaled(weights, (1.7, 1.7, 1.0))) == pytest.approx(1.7 * norm)
    fitted = ball.fitted(weights)
    gauged = ball.scaled(weights, fitted.factors)
    assert ball.norm_of(gauged) == pytest.approx(fitted.norm_of(weights))
    assert ball.norm_of(tuple(0.0 * w for w in weights)) == 0.0


@pytest.mark.parametrize("balance", [1.0, 0.7, 1.5])
def test_the_nearest_weights_are_those_of_a_solver(balance: float) -> None:
    block = Dense(3, 4, 2)
    ball, anchor = dataclasses.replace(ball_of(block, (3,)), balance=balance), random(block, 3)
    radius = 0.6 * ball.norm_of(anchor)
    near = ball.nearest_to(anchor, radius, 1e-9)[0]
    assert ball.norm_of(near) <= radius * (1.0 + 1e-9)
    bound, t = radius**2, balance**2 * radius**2
    g1, g2, s = (cp.Variable(tuple(w.shape)) for w in anchor)
    whole = cp.bmat(
        [
            [bound**2 * np.eye(3), -t * g1.T, s.T],
            [-t * g1, 2.0 * t * np.eye(4), g2.T],
            [s, g2, np.eye(2)],
        ]
    )
    distance = sum(cp.sum_squares(v - w.numpy()) for v, w in zip((g1, g2, s), anchor, strict=True))
    cp.Problem(cp.Minimize(distance), [whole >> 0]).solve(solver="CLARABEL")
    for one, other in zip(near, (g1, g2, s), strict=True):
        np.testing.assert_allclose(one.numpy(), other.value, atol=1e-4)


GEOMETRIES = {
    "strided": ((3, 3, 1), 2),
    "wider": ((3, 3, 1), 1),
    "a large shortcut": ((1, 3, 3), 2),
    "a large second kernel": ((3, 5, 1), 2),
}


def in_groups(block: nn.Module, groups: tuple[int, int, int]) -> nn.Module:
    """The block with other layers, of these groups of channels."""
    for name, count in zip(("into", "back", "past"), groups, strict=True):
        own = getattr(block, name)
        like = (own.kernel_size, own.stride, own.padding)
        setattr(block, name, nn.Conv2d(own.in_channels, own.out_channels, *like, groups=count))
    return block


GROUPS = ((1, 1, 1), (2, 1, 2), (2, 2, 1))


@pytest.mark.parametrize("groups", GROUPS)
def test_groups_count_as_zeros_off_the_diagonal(groups: tuple[int, int, int]) -> None:
    block = in_groups(Kernels(2, 4, 2, (3, 3, 1), 2), groups)
    whole = Kernels(2, 4, 2, (3, 3, 1), 2)
    full = tuple(map(on_diagonal, random(block, 0), groups))
    for w, count, own in zip(full, groups, random(block, 0), strict=True):
        assert torch.equal(from_diagonal(w, count), own)
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        for name, one, two in zip(("into", "back", "past"), random(block, 0), full, strict=True):
            getattr(block.double(), name).weight.copy_(one)
            getattr(whole.double(), name).weight.copy_(two)
            getattr(whole, name).bias.copy_(getattr(block, name).bias)
    torch.testing.assert_close(block(x), whole(x))
    norms = ball_of(block, (2, 6, 6)), ball_of(whole, (2, 6, 6))
    assert norms[0].norm_of(random(block, 0)) == pytest.approx(norms[1].norm_of(full))


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_nearest_kernels_are_inside_and_optimal(name: str, groups: tuple[int, int, int]) -> None:
    block = in_groups(Kernels(2, 4, 2, *GEOMETRIES[name]), groups)
    ball, anchor = ball_of(block, (2, 8, 6)), random(block, 1)
    radius = 0.7 * ball.norm_of(anchor)
    near = ball.nearest_to(anchor, radius, 1e-7)[0]
    assert ball.norm_of(near) <= radius * (1.0 + 1e-9)
    for one, two in zip(ball.nearest_to(near, radius, 1e-7)[0], near, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0.0)
    size = sum(float(w.square().sum()) for w in anchor)
    for k in range(6):  # the variational inequality
        other = random(block, k + 2)
        share = radius / ball.norm_of(other)
        other = ball.scaled(other, (share, share, 1.0))
        rows = zip(anchor, near, other, strict=True)
        assert sum(float(((v - w) * (o - w)).sum()) for v, w, o in rows) <= 1e-3 * size


@pytest.mark.parametrize("pads", ["zeros", "circular"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_norm_is_that_of_the_matrices_on_a_torus_which_bounds_padded_images(
    name: str, pads: str
) -> None:
    block, shape = Kernels(1, 2, 2, *GEOMETRIES[name], pads).double(), (1, 12, 12)
    ball = ball_of(block, shape)
    with torch.no_grad():
        for layer, w in zip((block.into, block.back, block.past), random(block, 0), strict=True):
            layer.weight.copy_(w)
            layer.bias.zero_()
    eye = torch.eye(144).double().reshape(-1, *shape)
    with torch.no_grad():
        hidden = block.into(eye)
        inner = torch.eye(hidden[0].numel()).double().reshape(-1, *hidden.shape[1:])
        images = hidden, block.back(inner), block.past(eye)
    whole = tuple(part.flatten(1).T for part in images)
    bound = ball.norm_of(random(block, 0)) ** 2
    assert np.linalg.eigvalsh(inequality(whole, bound))[0] >= -1e-9 * bound**2
    if pads == "circular":
        assert np.linalg.eigvalsh(inequality(whole, (1.0 - 1e-4) * bound))[0] < 0.0


@pytest.mark.parametrize("kernels", [True, False])
def test_a_block_is_proven_at_its_bound_not_at_the_product_of_norms(kernels: bool) -> None:
    torch.manual_seed(1)
    block = (Kernels(2, 3, 4, (3, 3, 1), 2) if kernels else Dense(5, 4, 3)).double()
    shape = (2, 6, 6) if kernels else (5,)
    net = nn.Sequential(block, nn.ReLU()).double()
    proof = certify_product(network_of(net, shape))
    verify(proof, net)
    found = ball_of(block, shape)
    weights = tuple(w.weight.detach() for w in (block.into, block.back, block.past))
    assert proof.lip == pytest.approx(found.gain_of(weights), rel=1e-4)
    assert proof.lip < 0.95 * proof.norm_product
    assert proof.lip >= certify(net, shape, structure="exact").lower_lip
    forged = dataclasses.replace(proof, lip=0.99 * proof.lip, lower_lip=0.1, sampled_lower=0.1)
    with pytest.raises(Exception, match="exceeds"):
        verify(forged, net)


def test_a_run_ends_under_its_bound_and_goes_on_to_equal_bits(tmp_path: Path) -> None:
    result = train(small(), data(), QUICK, progress=False)
    verify(result.certificate, result.model)
    assert 0.5 < result.certificate.lip <= 1.0
    net = result.model.double()
    for x in torch.randn(5, 1, *IMAGE, dtype=torch.float64):
        slope = torch.autograd.functional.jacobian(net, x).reshape(2, -1)
        assert float(torch.linalg.matrix_norm(slope, 2)) <= result.certificate.lip
    torus = certify(result.model, IMAGE, structure="torus")
    assert torus.lip <= result.certificate.lip * (1.0 + 1e-6)
    check_goes_on(small, data(), QUICK, tmp_path)


def test_a_price_moves_the_bound_and_a_start_keeps_the_function() -> None:
    price = TrainConfig(mu=1e-2, epochs=1, batch_size=32, start="scratch")
    result = train(small(), data(), price, progress=False)
    verify(result.certificate, result.model)
    # A network inside its bound is scaled layer by layer, biases alike: it stays as it is.
    model = small().double()
    x = data()[0][:8].double()
    before = model(x).detach()
    Constraint(model, Lipschitz(bound=1e3), input_shape=IMAGE)
    assert not torch.equal(model[2].past.weight, small()[2].past.weight.double())
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("bound", [0.3, 20.0])
def test_a_trained_network_is_projected_under_a_bound(bound: float) -> None:
    check_projected(small, bound, IMAGE)


def test_frozen_blocks_stay_and_a_part_of_one_does_not() -> None:
    model = small()
    model[2].requires_grad_(False)
    before = model[2].past.weight.clone()
    config = dataclasses.replace(QUICK, start="model")
    result = train(model, data(), config, progress=False)
    assert result.certificate.lip <= 1.0
    assert torch.equal(before, result.model[2].past.weight)
    model[2].into.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="all weights of a residual block are"):
        train(model, data(), config, progress=False)


class Sorted(Dense):
    def __init__(self) -> None:
        super().__init__(2, 2, 2)
        self.act = MaxMin()


class Apart(Kernels):
    """Strides that differ."""

    def __init__(self) -> None:
        super().__init__(2, 2, 2, (3, 3, 1), 2)
        self.past = nn.Conv2d(2, 2, (6, 6), (1, 1), (1, 1))


class Deeper(Dense):
    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.act(self.into(x))) + torch.relu(self.past(x))


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "strides apart": (
        Apart,
        (2, 6, 6),
        "into: of residual blocks with a shortcut are trained",
    ),
    "sorting": (Sorted, (2,), "a residual block needs an activation of slopes"),
    "a shortcut that acts": (lambda: Deeper(2, 2, 2), (2,), "of skip connections or branches"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_such_block_is_refused_by_name(name: str) -> None:
    make, shape, match = REFUSED[name]
    with pytest.raises(UnsupportedModule, match=match):
        kernel_layers(make(), shape)


def test_the_bound_of_two_ends_is_that_of_a_layer() -> None:
    """Without a branch the shortcut alone, without a shortcut the module's ball."""
    block = Dense(3, 4, 2)
    ball, (g1, g2, s) = ball_of(block, (3,)), random(block, 5)
    alone = ball.norm_of((0.0 * g1, 0.0 * g2, s)) ** 2
    assert alone == pytest.approx(float(torch.linalg.matrix_norm(s, 2)))
    module = torch.linalg.matrix_norm(torch.cat((g1.T, g2)), 2) / math.sqrt(2.0)
    assert ball.norm_of((g1, g2, 0.0 * s)) == pytest.approx(float(module))


class Residual(nn.Module):
    """As in ResNets: batch normalisation behind every convolution, the shortcut's as well."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(out), nn.BatchNorm2d(out)])
        past = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.past = past if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norms[1](self.second(torch.relu(self.norms[0](self.first(x)))))
        return torch.relu(branch + self.past(x))


def test_a_residual_network_with_batch_norm_is_fine_tuned_under_a_bound() -> None:
    torch.manual_seed(0)
    stem = (nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    blocks = (Residual(4, 4, 1), Residual(4, 6, 2))
    net = nn.Sequential(*stem, *blocks, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(6, 2))
    x, y = data(64)
    net(x)
    alone = project(net.eval(), 0.5, input_shape=IMAGE)
    found = project(net.eval(), 0.5, finetune=(x, y), epochs=1, progress=False)
    for one in (alone, found):
        verify(one.certificate, one.model)
        assert one.certificate.lip <= 0.5
    assert not torch.equal(alone.model(x), found.model(x))
    with pytest.raises(UnsupportedModule, match="fold_batch_norm"):
        train(net, data(), QUICK, progress=False)


def test_another_loop_drives_it() -> None:
    model, (x, y) = small(), data(32)
    constraint = Constraint(model, Lipschitz(bound=1.0), input_shape=IMAGE)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    constraint.attach(optimizer)
    for _ in range(8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    finished, proof = constraint.finish()
    verify(proof, finished)
    assert proof.lip <= 1.0
