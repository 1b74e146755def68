"""Inputs and models laid out in memory in any order: the same result, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from clipped_nets import convnet
from torch import Tensor, nn

from admm_lip.local import LocalCertificate, LocalConfig, certify_local, local_radii
from admm_lip.local.layers import live_layers
from admm_lip.local.training_loss import Plan, robust_loss
from admm_lip.local.warm_starts import WarmStarts

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "every second": lambda x: torch.stack([x, -x], dim=-1)[..., 0],
    "transposed pixels": lambda x: x.mT.contiguous().mT,
}
COLUMNS = ("center", "robust", "margin", "lip", "level", "varying", "ratio")
EPS = 0.05


def pictures(count: int = 6) -> Tensor:
    """Two channels, so that layouts differ; multiples of 1/64, which every dtype holds."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 65, (count, 2, 6, 6), generator=generator) / 64.0


def net(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), activation(), nn.Conv2d(4, 4, 3, stride=2)),
        *(activation(), nn.Flatten(), nn.Linear(16, 3)),
    )


def report(model: nn.Module, x: Tensor) -> LocalCertificate:
    y = model(x.to(next(model.parameters()))).argmax(1)
    return certify_local(model, x, EPS, y, config=LocalConfig("masked"))


def check_same(one: LocalCertificate, other: LocalCertificate) -> None:
    assert bool(one.robust.any())
    for name in COLUMNS:
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), rtol=0.0, atol=0.0, equal_nan=True
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_in_any_layout(layout: str) -> None:
    x = pictures()
    moved = LAYOUTS[layout](x)
    assert not moved.is_contiguous()
    check_same(report(net(), moved), report(net(), x))


def test_one_channel() -> None:
    model, x = convnet("relu"), torch.rand(4, 1, 8, 8)
    check_same(report(model, x.to(memory_format=torch.channels_last)), report(model, x))


def test_one_picture_expanded() -> None:
    x = pictures(1).expand(5, -1, -1, -1)
    check_same(report(net(), x), report(net(), x.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_inputs_in_any_precision(dtype: torch.dtype) -> None:
    check_same(report(net(), pictures().to(dtype)), report(net(), pictures()))


@pytest.mark.parametrize("activation", ["relu", "max_min", "clipped_max_min"])
def test_models_in_channels_last(activation: str) -> None:
    model, x = convnet(activation), torch.rand(4, 1, 8, 8)
    plain = report(model, x)
    check_same(report(model.to(memory_format=torch.channels_last), x), plain)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_local_radii_in_any_layout(layout: str) -> None:
    model, x = net(), pictures()
    y = model(x).argmax(1)
    config = LocalConfig("norms", rounds=3)
    plain, moved = (local_radii(model, v, y, config=config) for v in (x, LAYOUTS[layout](x)))
    assert torch.equal(plain.radius, moved.radius)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_training_loss_in_any_layout(layout: str) -> None:
    model, x = net(), pictures()
    layers = live_layers(model, (2, 6, 6))
    plan = Plan("bcp", True, 2, True, 0.1, (0.0, 1.0), True)
    batch = torch.zeros(len(x), dtype=torch.int64)
    losses = [
        robust_loss(
            layers, WarmStarts([s.operator for s in layers]), None, (v, batch), EPS, 0.5, plan
        )[0]
        for v in (x, LAYOUTS[layout](x))
    ]
    torch.testing.assert_close(losses[0], losses[1])
