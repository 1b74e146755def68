"""Convolutions of this package and of others under the same loop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from admm_lip.networks.convnets import build_convnet
from benchmarks import image_peers, study
from benchmarks.peer_convolutions import (
    OrthogoniumConvolutions,
    PeerConvolutions,
    TorchlipConvolutions,
)


def _rows(folder: Path) -> list[dict[str, Any]]:
    settings = study.read_settings("image_peers", True)
    return study.run_study(image_peers.STUDY, settings, data_dir=None, jobs=1, folder=folder)


def test_contenders_stand_beside_no_bound_with_proven_bounds(tmp_path: Path) -> None:
    rows = _rows(tmp_path)
    assert [row.get("where") for row in rows if "error" in row] == []
    table = image_peers.tabulate(rows)
    assert len({line.count("|") for line in table.splitlines()}) == 1
    assert all(row["certified"] <= row["clean"] for row in rows)
    ours = [row for row in rows if row["method"] == "admm"]
    assert len(ours) == 2
    assert all(row["lip"] <= 1.0 for row in ours)
    timed = [row for row in rows if not row["validation"]]
    assert all(row["ratio"] == row["cpu_seconds"] / row["plain"] > 0.0 for row in timed)


# Their sources warn of their own when they are read for the first time.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", [TorchlipConvolutions(), OrthogoniumConvolutions()])
def test_what_a_peer_trains_comes_back_as_the_same_function_in_plain_layers(peer: Any) -> None:
    model = build_convnet("2C2F", (1, 12, 12), 3, width=0.25, activation="max_min")
    try:
        theirs = peer.prepare(model)
    except ModuleNotFoundError as absent:
        assert "pip install" in str(absent)
        pytest.skip(str(absent))
    torch.manual_seed(0)
    x = torch.rand(5, 1, 12, 12)
    loss = theirs(x).square().sum()
    loss.backward()
    plain = peer.finish(theirs)
    assert {type(m) for m in plain} <= {nn.Conv2d, nn.Linear, nn.Flatten, type(model[1])}
    assert torch.allclose(plain(x), theirs(x), atol=1e-5)


class Normed(PeerConvolutions):
    """Layers whose weights are computed from others, by torch itself."""

    def layers(self) -> tuple[Any, Any]:
        return (
            lambda *sizes, **how: weight_norm(nn.Conv2d(*sizes, **how)),
            lambda *sizes: weight_norm(nn.Linear(*sizes)),
        )


@pytest.mark.parametrize("steps", [0, 3])
def test_computed_weights_come_back_as_those_in_effect(steps: int) -> None:
    method = Normed()
    theirs = method.prepare(build_convnet("2C2F", (1, 12, 12), 3, width=0.25))
    x = torch.rand(5, 1, 12, 12)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        theirs(x).square().sum().backward()
        optimizer.step()
    plain = method.finish(theirs)
    assert not any("parametrizations" in name for name, _ in plain.named_parameters())
    assert torch.equal(plain(x), theirs(x))


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    for name in [n for n in sys.modules if n.split(".")[0] == "orthogonium"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match="pip install orthogonium"):
        OrthogoniumConvolutions().prepare(nn.Sequential(nn.Linear(2, 2)))
