"""Checkpoints: what goes in comes out; damage is named; nothing is half-written."""

from pathlib import Path

import pytest
import torch

from admm_lip.training.checkpoint import (
    CHECKPOINT,
    PREVIOUS,
    CheckpointError,
    load_checkpoint,
    load_last,
    save_checkpoint,
)

TREE = {
    "state": {"consensus": (torch.rand(2, 3, dtype=torch.float64), torch.rand(1)), "rho": 0.1},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 1)}]},
    "history": [{"loss": 1 / 3, "status": "OPTIMAL"}, {"loss": 1e-300, "status": "LIMIT"}],
    "nothing": None,
    "flag": True,
}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
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
    with pytest.raises(CheckpointError, match="expected format 'admm-lip-checkpoint-3'"):
        load_checkpoint(tmp_path / "c")


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_is_noticed_and_the_file_named(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, {"w": torch.rand(3, 2), "n": 1})
    whole = path.read_bytes()
    assert len(whole) < 2000
    for bit in range(8 * len(whole)):
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(CheckpointError, match=r"/c is truncated or damaged|expected format"):
            load_checkpoint(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(CheckpointError, match="/c is truncated or damaged"):
        load_checkpoint(path)


def test_a_string_cannot_pass_for_the_checksum(tmp_path: Path) -> None:
    forged = {"note": '"sha256":"' + "0" * 64 + '"'}
    save_checkpoint(tmp_path / "c", forged)
    assert load_checkpoint(tmp_path / "c") == forged


def test_the_one_before_is_read_where_the_last_one_is_damaged_or_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last, previous = tmp_path / CHECKPOINT, tmp_path / PREVIOUS
    for step in range(3):
        save_checkpoint(last, {"step": step})
    assert load_last(tmp_path) == {"step": 2}
    assert not caplog.records
    last.write_bytes(flipped(last.read_bytes(), 900))
    assert load_last(tmp_path) == {"step": 1}
    assert "is truncated or damaged" in caplog.text
    assert "the run goes on from" in caplog.text
    assert not last.exists()  # as between the two moves of a write
    assert load_last(tmp_path) == {"step": 1}
    save_checkpoint(last, {"step": 2})
    assert load_checkpoint(previous) == {"step": 1}  # no damaged one took its place
    for path in (last, previous):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"/{CHECKPOINT} is truncated or damaged"):
        load_last(tmp_path)
