"""Blocks ``a x + c g(x)`` of sorted pairs, or with factors, trained and projected under a bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from resumed_runs import check_goes_on
from torch import Tensor, nn

from admm_lip import TrainConfig, certify, project, train, verify
from admm_lip.errors import UnsupportedModule
from admm_lip.networks.convnets import build_convnet
from admm_lip.networks.residual import AveragedBlock, AveragedBlock2d, ResidualBlock
from admm_lip.networks.sorting_torch import MaxMin
from admm_lip.training.kernel_layers import kernel_layers

IMAGE = (1, 6, 6)
QUICK = TrainConfig(bound=1.0, epochs=2, batch_size=32, loss="margin", eps=0.1, start="scratch")


class Halved(AveragedBlock):
    """The same average in other words."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.back(self.activation(self.into(x)))) / 2.0


class Summed(AveragedBlock):
    """``x + g(x)``, which doubles."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(self.activation(self.into(x)))


def images() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = (AveragedBlock2d(4, 6), AveragedBlock2d(4, 4, 1, share=0.2))
    head = (nn.AvgPool2d(3), nn.Flatten(), nn.Linear(4, 2))
    return nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), MaxMin(), *blocks, *head)


def vectors(block: Callable[[int, int], nn.Module] = AveragedBlock) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(36, 8), block(8, 12), block(8, 6), nn.Linear(8, 2))


def data(rows: int = 128) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, *IMAGE, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0, :3].sum((1, 2)) > 0).long()


def flat() -> tuple[Tensor, Tensor]:
    x, y = data()
    return x.flatten(1), y


def norms_of(model: nn.Module) -> list[float]:
    """The norms of all layers in blocks, on images of these sides or vectors."""
    shape = IMAGE if any(isinstance(m, nn.Conv2d) for m in model) else (36,)
    layers, norms = kernel_layers(model, shape)
    rows = zip(norms.balls, layers.values(), strict=True)
    return [ball.own.norm(layer.weight.detach()) for ball, layer in rows if not ball.shares]


def leaky(features: int, hidden: int) -> nn.Module:
    return AveragedBlock(features, hidden, activation=nn.LeakyReLU())


NETS: dict[str, tuple[Callable[[], nn.Sequential], Callable[[], tuple[Tensor, Tensor]]]] = {
    "images": (images, data),
    "vectors": (vectors, flat),
    "in other words": (lambda: vectors(Halved), flat),
    "sums": (lambda: vectors(Summed), flat),
    "leaky": (lambda: vectors(leaky), flat),
}


@pytest.mark.parametrize("name", NETS)
def test_a_run_ends_under_its_bound_with_a_proof(name: str) -> None:
    make, given = NETS[name]
    result = train(make(), given(), QUICK, progress=False)
    verify(result.certificate, result.model)
    assert 0.5 < result.certificate.lip <= 1.0
    norms = norms_of(result.model)
    assert len(norms) == 4
    # Orthogonal from the start, and kept in the ball: all of it is used.
    assert norms == pytest.approx([1.0] * 4, rel=1e-2)
    assert max(norms) <= 1.0


@pytest.mark.parametrize("name", NETS)
def test_a_projection_meets_its_bound(name: str) -> None:
    make, given = NETS[name]
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0)
    found = project(model, 0.5, input_shape=tuple(given()[0].shape[1:]))
    verify(found.certificate, found.model)
    assert found.certificate.lip <= 0.5
    assert found.certificate.norm_product > 0.99 * 0.5
    assert max(norms_of(found.model)) <= 1.0


def test_an_average_takes_no_share_and_a_sum_has_its_factor_in_the_gain() -> None:
    rows = {"vectors": 1.0, "in other words": 1.0, "sums": 4.0}
    for name, gain in rows.items():
        _, norms = kernel_layers(NETS[name][0](), (36,))
        assert norms.gain == pytest.approx(gain)
        assert norms.sharing(6) == (True, False, False, False, False, True)


def test_a_deep_chain_of_averages_is_certified_at_one_not_at_a_power_of_two() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), *(AveragedBlock(8, 8) for _ in range(8)), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(4.0)
    found = project(net, 1.0, input_shape=(6,))
    assert found.certificate.lip <= 1.0
    assert certify(found.model, (6,)).sampled_lower <= found.certificate.lip


def test_a_run_goes_on_from_its_folder_to_equal_bits(tmp_path: Path) -> None:
    check_goes_on(images, data(), QUICK, tmp_path)


def test_one_layer_of_a_block_may_be_frozen() -> None:
    model = images()
    model[2].back.requires_grad_(False)
    before = model[2].back.weight.clone()
    result = train(model, data(), TrainConfig(bound=0.5, epochs=1, loss="margin"), progress=False)
    verify(result.certificate, result.model)
    assert torch.equal(result.model[2].back.weight, before)
    assert result.certificate.lip <= 0.5


def test_the_named_network_has_them_behind_every_convolution() -> None:
    net = build_convnet("2C4M2F", (1, 8, 8), 3, width=0.25, activation="max_min")
    assert [type(m) for m in net[:4]] == [nn.Conv2d, MaxMin, AveragedBlock2d, AveragedBlock2d]


class Scaled(ResidualBlock):
    """A shortcut that is a layer, with a factor."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.past = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.past(x) + self.back(self.activation(self.into(x)))


def test_what_is_no_such_block_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModule, match=r"a sum with factors whose shortcut is the layer"):
        kernel_layers(Scaled(), (4,))
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"share: expected a number in \[0, 1\], got"):
            AveragedBlock(2, 2, share)
