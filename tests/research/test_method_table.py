"""Every method of the table: it trains, ships a plain chain, and keeps its word."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from torch import nn

from admm_lip import certify
from admm_lip.data import load_data
from admm_lip.errors import UnsupportedModule
from admm_lip.networks.chain import read_network
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.research.comparators import METHODS
from admm_lip.training.method import Method
from admm_lip.training.train import TrainConfig, train

# A bound at which cross-entropy can tell ten digits apart.
SETTINGS: dict[str, dict[str, float]] = {
    name: {"bound": 20.0}
    for name in ("gouk", "parseval", "cayley", "aol", "sll", "sandwich", "barrier")
}
HERE = [name for name in METHODS if name != "torchlip"]  # an extra, tested in its own file
NO_CHAIN = {"sll"}


def method_of(name: str) -> Method:
    return METHODS[name](**SETTINGS.get(name, {}))


def trained_by(name: str) -> tuple[nn.Module, nn.Module, float | None, float]:
    """Given network, trained one, claimed bound, test accuracy on the digits."""
    data = load_data("digits")
    model = build_mlp(64, 10, ModelConfig(hidden=(24, 16)))
    result = train(
        model,
        data.train,
        TrainConfig(epochs=4, batch_size=64),
        method=method_of(name),
        progress=False,
    )
    x, y = data.test
    with torch.no_grad():
        accuracy = (result.model(x).argmax(dim=1) == y).double().mean().item()
    return model, result.model, result.claimed_lip, accuracy


@pytest.mark.parametrize("name", HERE)
def test_it_learns_the_digits_and_ships_what_it_promises(name: str) -> None:
    model, trained, claimed, accuracy = trained_by(name)
    assert accuracy > 0.7, "chance is 0.1"
    assert not any(m.training for m in trained.modules())
    assert build_mlp(64, 10, ModelConfig(hidden=(24, 16)))[0].weight.equal(model[0].weight)
    if name in NO_CHAIN:
        with pytest.raises(UnsupportedModule):
            read_network(trained)
    else:
        assert read_network(trained).chain().widths == (64, 24, 16, 10)
        assert set(trained.state_dict()) == set(model.state_dict())
    x = load_data("digits").test[0]
    step = 1e-2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        slopes = (trained(x + step) - trained(x)).norm(dim=1) / step.norm(dim=1)
    if claimed is not None:
        assert slopes.max().item() <= claimed * (1 + 1e-3)
    if "bound" in SETTINGS.get(name, {}) and name != "parseval":
        assert claimed is not None
        assert claimed <= 20.0 * (1 + 1e-6)


@pytest.mark.parametrize("name", ["gouk", "cayley", "aol", "sandwich", "barrier"])
def test_the_proven_bound_is_at_most_the_requested_one(name: str) -> None:
    data = load_data("digits")
    model = build_mlp(64, 10, ModelConfig(hidden=(12, 8)))
    config = TrainConfig(epochs=2, batch_size=64, loss="margin", lip=2.0)
    result = train(model, data.train, config, method=METHODS[name](bound=2.0), progress=False)
    proven = certify(result.model).lip
    assert 0.0 < proven <= 2.0
    if name == "cayley":
        assert proven > 1.9


@pytest.mark.parametrize("name", HERE)
def test_finish_keeps_the_function(name: str) -> None:
    method = method_of(name)
    net = method.prepare(build_mlp(64, 10, ModelConfig(hidden=(24, 16))))
    x = load_data("digits").test[0]
    net.eval()
    before = net(x).detach()
    after = method.finish(net)(x).detach()
    assert (after - before).abs().max().item() <= 1e-5 * before.abs().max().item()


@pytest.mark.parametrize("name", METHODS)
def test_the_table_is_complete_and_its_rows_are_frozen(name: str) -> None:
    cls = METHODS[name]
    assert cls.name == name
    assert cls.source
    assert cls.__doc__
    method = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.something = 1  # type: ignore[attr-defined]
    if name != "nominal":
        assert cls.source != Method.source


def test_the_same_seed_gives_the_same_network() -> None:
    for name in ("pgd", "lmt", "sandwich"):
        one, two = trained_by(name)[1].state_dict(), trained_by(name)[1].state_dict()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_importing_the_package_does_not_import_the_methods() -> None:
    code = "import sys, admm_lip; sys.exit('admm_lip.research.comparators' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
