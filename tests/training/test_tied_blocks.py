"""Networks with tied residual blocks, trained and projected under a bound."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from resumed_runs import check_goes_on
from torch import Tensor, nn

from admm_lip import Constraint, Lipschitz, TrainConfig, project, train, verify
from admm_lip.errors import UnsupportedModule
from admm_lip.networks.sorting_torch import MaxMin
from admm_lip.networks.tied import TiedBlock, TiedBlock2d
from admm_lip.training.kernel_layers import kernel_layers
from admm_lip.training.terms import TiedBall, grouped

IMAGE = (1, 6, 6)
QUICK = TrainConfig(bound=1.0, epochs=2, batch_size=32, loss="margin", eps=0.1, start="scratch")


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 4, 2, 1), MaxMin(), TiedBlock2d(4, 6), TiedBlock2d(4, 4, 1)),
        *(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)),
    )


def dense() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(36, 8), TiedBlock(8, 12), TiedBlock(8, 6), nn.Linear(8, 2))


def data(rows: int = 128) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, *IMAGE, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0, :3].sum((1, 2)) > 0).long()


def flat() -> tuple[Tensor, Tensor]:
    x, y = data()
    return x.flatten(1), y


NETS: dict[str, tuple[Callable[[], nn.Sequential], Callable[[], tuple[Tensor, Tensor]]]] = {
    "images": (small, data),
    "vectors": (dense, flat),
}


def norms_of(model: nn.Module, shape: tuple[int, ...]) -> list[float]:
    """The norms of the K of all blocks."""
    layers, norms = kernel_layers(model, shape)
    weights = [layer.weight.detach() for layer in layers.values()]
    pairs = grouped(norms.balls, weights)
    return [ball.own.norm(*own) for ball, own in pairs if isinstance(ball, TiedBall)]


@pytest.mark.parametrize("name", NETS)
def test_a_run_ends_under_its_bound_with_a_proof(name: str) -> None:
    make, given = NETS[name]
    inputs, targets = given()
    result = train(make(), (inputs, targets), QUICK, progress=False)
    assert [type(m) for m in result.model] == [type(m) for m in make()]
    verify(result.certificate, result.model)
    assert result.certificate.lip <= 1.0
    assert result.certificate.norm_product > 0.8
    shape = tuple(inputs.shape[1:])
    # Orthogonal from the start, and kept in the ball: all of it is used.
    assert norms_of(result.model, shape) == pytest.approx([math.sqrt(2.0)] * 2, rel=1e-2)
    assert max(norms_of(result.model, shape)) <= math.sqrt(2.0)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("bound", [0.5, 3.0])
def test_a_projection_meets_its_bound(name: str, bound: float) -> None:
    make, given = NETS[name]
    model, shape = make(), tuple(given()[0].shape[1:])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    assert max(norms_of(model, shape)) > 2.0
    found = project(model, bound, input_shape=shape)
    verify(found.certificate, found.model)
    assert 0.99 * bound < found.certificate.lip <= bound
    assert max(norms_of(found.model, shape)) <= math.sqrt(2.0)


def test_blocks_take_no_share_of_the_bound() -> None:
    layers, norms = kernel_layers(small(), IMAGE)
    assert [*layers] == ["0", "2.conv", "3.conv", "6", "8"]
    assert norms.sharing(5) == (True, False, False, True, True)
    assert norms.share(norms.gain * 8.0, 5) == pytest.approx(2.0)


def test_a_hand_written_loop_keeps_the_bound_and_goes_on_to_equal_bits() -> None:
    x, y = data()

    def begun() -> tuple[nn.Module, torch.optim.Optimizer, Constraint]:
        net = small()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        return net, optimizer, Constraint(net, Lipschitz(0.2), input_shape=IMAGE).attach(optimizer)

    def steps(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for rows in torch.arange(128).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()

    net, optimizer, constraint = begun()
    steps(net, optimizer)
    kept = copy.deepcopy((net.state_dict(), optimizer.state_dict(), constraint.state_dict()))
    steps(net, optimizer)
    other, other_optimizer, again = begun()
    other.load_state_dict(kept[0])
    other_optimizer.load_state_dict(kept[1])
    again.load_state_dict(kept[2])
    steps(other, other_optimizer)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    constraint.ask(Lipschitz(0.1))
    finished, certificate = constraint.finish()
    verify(certificate, finished)
    assert 0.05 < certificate.lip <= 0.1
    # The blocks have kept what they had.
    norms = (norms_of(net, IMAGE) for net in (finished, other))
    assert next(norms) == pytest.approx(next(norms), rel=0.1)


def test_a_run_goes_on_from_its_folder_to_equal_bits(tmp_path: Path) -> None:
    check_goes_on(small, data(), QUICK, tmp_path)


def test_frozen_blocks_stay_and_multiply_by_their_norm() -> None:
    model = small()
    with torch.no_grad():
        model[2].conv.weight.mul_(2.0 / norms_of(model, IMAGE)[0])
    model[2].requires_grad_(False)
    before = model[2].conv.weight.clone()
    config = dataclasses.replace(QUICK, start="model")
    result = train(model, data(), config, progress=False)
    verify(result.certificate, result.model)
    assert torch.equal(result.model[2].conv.weight, before)
    assert norms_of(result.model, IMAGE)[0] == pytest.approx(2.0)
    assert result.certificate.lip <= 1.0
    for k in (0, 6, 8):
        model[k].requires_grad_(False)
    with pytest.raises(ValueError, match="nothing else that moves shares the bound"):
        Constraint(model, Lipschitz(1e-3), input_shape=IMAGE)
    constraint = Constraint(model, Lipschitz(1e3), input_shape=IMAGE)
    assert constraint.finish().certificate.lip <= 1e3


def test_a_price_moves_what_shares_the_bound_alone() -> None:
    config = TrainConfig(mu=1e-2, epochs=2, batch_size=32, start="scratch")
    result = train(small(), data(), config, progress=False)
    verify(result.certificate, result.model)
    assert max(norms_of(result.model, IMAGE)) <= math.sqrt(2.0)


class Twice(nn.Module):
    """A block that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = TiedBlock2d(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


def shared(key: str) -> nn.Module:
    net = nn.Sequential(TiedBlock2d(2, 2), TiedBlock2d(2, 2))
    setattr(net[1].conv, key, getattr(net[0].conv, key))
    return nn.Sequential(nn.Conv2d(1, 2, 3), *net)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "twice": (Twice, "or of one that is applied twice"),
    "shared": (lambda: shared("weight"), r"2\.conv: shares its weight with 1\.conv"),
    "a bias shared": (lambda: shared("bias"), r"2\.conv: shares its bias with 1\.conv"),
    "steep": (
        lambda: TiedBlock2d(1, 2, activation=nn.SiLU()),
        r"activation \(silu\): a tied block needs an activation of slopes in \[0, 1\], and this",
    ),
    "sorting": (
        lambda: TiedBlock2d(1, 2, activation=MaxMin()),
        r"activation \(max_min\): a tied block needs an activation of slopes in \[0, 1\]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_tied_block_is_refused_by_name(name: str) -> None:
    make, match = REFUSED[name]
    with pytest.raises(UnsupportedModule, match=match):
        Constraint(make(), Lipschitz(1.0), input_shape=IMAGE)
