"""Checkpoints: what goes in comes out; damage is named; nothing is half-written."""

import dataclasses
from pathlib import Path

import pytest
import torch

from admm_lip.solvers.native.splitting import WarmBall
from admm_lip.solvers.solve import Warm
from admm_lip.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

WARM = Warm("native", WarmBall(torch.rand(2, 2), torch.rand(2, 2), 0.5, 1.0))
TREE = {
    "state": {"consensus": (torch.rand(2, 3, dtype=torch.float64), torch.rand(1)), "rho": 0.1},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 1)}]},
    "history": [{"loss": 1 / 3, "status": "OPTIMAL"}, {"loss": 1e-300, "status": "LIMIT"}],
    "warm": WARM,
    "nothing": None,
    "flag": True,
}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and same(vars(a), vars(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_a_tree_survives_the_round_trip_bit_by_bit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", TREE)
    assert same(TREE, load_checkpoint(tmp_path / "c"))
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", TREE)
    with pytest.raises(TypeError, match="cannot store a set"):
        save_checkpoint(tmp_path / "c", {"x": {1, 2}})
    assert same(TREE, load_checkpoint(tmp_path / "c"))


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with pytest.raises(CheckpointError, match=r"expected a file at .*, found none"):
        load_checkpoint(path)
    save_checkpoint(path, TREE)
    whole = path.read_bytes()
    for size in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="is truncated or damaged"):
            load_checkpoint(path)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.rand(2)}, str(tmp_path / "c"))
    with pytest.raises(CheckpointError, match="expected format 'admm-lip-checkpoint-1'"):
        load_checkpoint(tmp_path / "c")
