"""Linear residual layers ``x + K x``: their ball, trained, projected and certified."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from projected_nets import check_projected
from resumed_runs import check_goes_on
from torch import Tensor, nn

from admm_lip import Constraint, Lipschitz, TrainConfig, train, verify
from admm_lip.certificates.torus.product import certify_product
from admm_lip.errors import NetworkError, UnsupportedModule
from admm_lip.foreign.open import network_of
from admm_lip.networks.convnets import build_convnet
from admm_lip.networks.residual import SkipConv2d, SkipLinear
from admm_lip.networks.sorting_torch import MaxMin
from admm_lip.training.kernel_layers import kernel_layers
from admm_lip.training.skip_ball import SkipBall

IMAGE = (1, 6, 6)
QUICK = TrainConfig(bound=1.0, epochs=2, batch_size=32, loss="margin", eps=0.1, start="scratch")


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 4, 2, 1), MaxMin(), SkipConv2d(4), MaxMin(), SkipConv2d(4, 1), MaxMin()),
        *(nn.Flatten(), nn.Linear(36, 6), MaxMin(), SkipLinear(6), MaxMin(), nn.Linear(6, 2)),
    )


class ByHand(nn.Module):
    """The same layers, in somebody's own words."""

    def __init__(self, like: nn.Sequential) -> None:
        super().__init__()
        self.first, self.a, self.b = like[0], like[2].conv, like[4].conv
        self.second, self.c, self.last, self.act = like[7], like[9].linear, like[11], MaxMin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        x = self.act(self.a(x) + x)
        x = self.act(x + self.b(x))
        x = self.act(self.second(x.flatten(1)))
        return self.last(self.act(x + self.c(x)))


def data(rows: int = 128) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, *IMAGE, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0, :3].sum((1, 2)) > 0).long()


def dense_norm(conv: nn.Module, shape: tuple[int, ...]) -> float:
    """The norm of ``I + K`` as a matrix on zero-padded images."""
    eye = torch.eye(int(torch.tensor(shape).prod())).reshape(-1, *shape)
    with torch.no_grad():
        bias = conv(torch.zeros(1, *shape))
        rows = (eye + conv(eye) - bias).flatten(1)
    return float(torch.linalg.matrix_norm(rows, 2))


def test_the_ball_is_that_of_the_whole_layer() -> None:
    layers, norms = kernel_layers(small(), IMAGE)
    for ball, layer in zip(norms.balls, layers.values(), strict=True):
        if isinstance(ball, SkipBall):
            weight = layer.weight.detach().double()
            side = (weight.shape[1], 3, 3) if weight.ndim == 4 else (weight.shape[1],)
            exact = dense_norm(layer, side)
            assert exact <= ball.norm(weight) * (1.0 + 1e-6)
            assert ball.norm(torch.zeros_like(weight)) == pytest.approx(1.0)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from([(1, 3), (2, 3), (1, 1)]), st.floats(0.3, 2.0), st.integers(0, 2**16))
def test_the_nearest_kernel_is_inside_idempotent_and_optimal(
    shape: tuple[int, int], radius: float, seed: int
) -> None:
    groups, side = shape
    net = nn.Sequential(nn.Conv2d(4, 4, side, padding=side // 2, groups=groups).double())

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = net[0]

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(x)

    (ball,) = kernel_layers(Added(), (4, 5, 5))[1].balls
    assert isinstance(ball, SkipBall)
    generator = torch.Generator().manual_seed(seed)
    anchor = torch.randn(net[0].weight.shape, generator=generator, dtype=torch.float64)
    near = ball.nearest(anchor, radius, 1e-7)[0]
    assert ball.norm(near) <= radius * (1.0 + 1e-9)
    again = ball.nearest(near, radius, 1e-7)[0]
    torch.testing.assert_close(again, near, atol=1e-5, rtol=0.0)
    # Nothing in the ball lies in the direction of the anchor: the variational inequality.
    for _ in range(8):
        other = torch.randn(anchor.shape, generator=generator, dtype=torch.float64)
        other = ball.scaled((other,), (radius / ball.norm(other),))[0]
        assert float(((anchor - near) * (other - near)).sum()) <= 1e-4 * float(anchor.norm())


def test_a_run_ends_under_its_bound_and_by_hand_it_is_the_same() -> None:
    results = [train(net, data(), QUICK, progress=False) for net in (small(), ByHand(small()))]
    for result in results:
        verify(result.certificate, result.model)
        assert result.certificate.norm_product > 0.95
        assert result.certificate.lip <= 1.0
    first, second = (
        [p for layer in kernel_layers(r.model, IMAGE)[0].values() for p in layer.parameters()]
        for r in results
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    net = results[0].model.double()
    for x in torch.randn(5, 1, *IMAGE, dtype=torch.float64):
        slope = torch.autograd.functional.jacobian(net, x).reshape(2, -1)
        assert float(torch.linalg.matrix_norm(slope, 2)) <= results[0].certificate.lip


@pytest.mark.parametrize("bound", [0.3, 5.0])
def test_a_trained_network_is_projected_under_a_bound(bound: float) -> None:
    check_projected(small, bound, IMAGE)


def test_a_run_goes_on_from_its_folder_to_equal_bits(tmp_path: Path) -> None:
    check_goes_on(small, data(), QUICK, tmp_path)


def test_what_is_frozen_stays_and_a_price_moves_the_rest() -> None:
    model = small()
    model[2].requires_grad_(False)
    before = model[2].conv.weight.clone()
    config = dataclasses.replace(QUICK, start="model", bound=None, mu=1e-2)
    result = train(model, data(), config, progress=False)
    verify(result.certificate, result.model)
    assert torch.equal(result.model[2].conv.weight, before)
    bounded = train(model, data(), dataclasses.replace(QUICK, start="model"), progress=False)
    assert torch.equal(bounded.model[2].conv.weight, before)
    assert bounded.certificate.lip <= 1.0


def test_a_smaller_bound_scales_the_function() -> None:
    net, (x, _) = small(), data(8)
    constraint = Constraint(net, Lipschitz(1.0), input_shape=IMAGE)
    with torch.no_grad():
        before = net(x) - net(0.0 * x)
        constraint.ask(Lipschitz(0.25))
        after = net(x) - net(0.0 * x)
    torch.testing.assert_close(after, 0.25 * before, atol=1e-5, rtol=1e-3)


def test_the_norm_of_a_layer_is_not_that_of_two() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(SkipConv2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)).double()
    proof = certify_product(network_of(net, (3, 3, 3)))
    verify(proof, net)
    head = float(torch.linalg.matrix_norm(net[3].weight.detach(), 2))
    (ball, _) = kernel_layers(net, (3, 3, 3))[1].balls
    product = ball.norm(net[0].conv.weight.detach()) * head
    assert proof.norm_product == pytest.approx(product, rel=1e-6)
    assert proof.lip <= product


def test_the_named_network_has_them_behind_every_convolution() -> None:
    net = build_convnet("2C4L2F", (1, 8, 8), 3, width=0.25, activation="max_min")
    assert [type(m) for m in net[:6]] == [
        *(nn.Conv2d, MaxMin, SkipConv2d, MaxMin, SkipConv2d, MaxMin)
    ]


class Added(nn.Module):
    """``x + conv(x)`` of any convolution."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


REFUSED: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "off the taps": (
        lambda: Added(nn.Conv2d(1, 1, (2, 2), dilation=2, padding=1)),
        UnsupportedModule,
        "conv: of residual layers x",
    ),
    "another grid": (lambda: Added(nn.Conv2d(1, 1, 3)), NetworkError, "adds values of the shapes"),
    "strides": (lambda: Added(nn.Conv2d(1, 1, 3, 2, 1)), NetworkError, "adds values of the shapes"),
    "even": (lambda: SkipConv2d(1, 2), ValueError, "kernel: expected an odd number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_such_layer_is_refused_by_name(name: str) -> None:
    make, kind, match = REFUSED[name]
    with pytest.raises(kind, match=match):
        Constraint(make(), Lipschitz(1.0), input_shape=IMAGE)
