"""Batches kept on disk: an ended call goes on to the same result, another question is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_nets import network

from admm_lip import certify
from admm_lip.errors import CertificateError, RunFolderError
from admm_lip.local import LocalCertificate, LocalConfig, certify_local, local_radii, parts
from admm_lip.local.columns import TENSORS
from admm_lip.local.parts import remove_state

MODEL = network("relu", (5, 16, 12, 4), seed=2)
X = torch.randn(80, 5, generator=torch.Generator().manual_seed(0)).double()
Y = MODEL(X).argmax(1)
CONFIG = LocalConfig("tuned", steps=5)


def certified(state: Path | None, **other: Any) -> LocalCertificate:
    given = {"model": MODEL, "x": X, "radius": 0.3, "y": Y, "config": CONFIG} | other
    return certify_local(state=state, **given)


def assert_same(one: LocalCertificate, other: LocalCertificate) -> None:
    for name in TENSORS.keys() - {"seconds"}:
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        assert a is None or torch.equal(a, b), name


class Ended(BaseException):
    """What ends a process from outside."""


def end_after(monkeypatch: pytest.MonkeyPatch, count: int) -> list[int]:
    """Let so many batches be proven, and then end; the list holds the sizes of those made."""
    made: list[int] = []
    finished = parts.finished_tasks

    def counting(*given: Any, **more: Any) -> Any:
        for k, part in finished(*given, **more):
            if len(made) == count:
                raise Ended
            made.append(len(part))
            yield k, part

    monkeypatch.setattr(parts, "finished_tasks", counting)
    return made


@pytest.mark.parametrize("question", ["balls", "radii"])
def test_an_ended_call_goes_on(
    question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(state: Path | None) -> LocalCertificate:
        if question == "balls":
            return certified(state)
        config = LocalConfig("norms", rounds=2)
        return local_radii(MODEL, X, Y, config=config, state=state)

    whole, state = call(tmp_path / "whole"), tmp_path / "state"
    with monkeypatch.context() as patch:
        end_after(patch, 2)
        with pytest.raises(Ended):
            call(state)
    assert len(list(state.glob("rows-*"))) == 2
    with monkeypatch.context() as patch:
        made = end_after(patch, 100)
        assert_same(call(state), whole)
        assert sum(made) == 80 - 64
    remove_state(state)
    assert not state.exists()


def test_what_was_asked_otherwise_is_refused_by_name(tmp_path: Path) -> None:
    found = certified(tmp_path)
    other = network("relu", (5, 16, 12, 4), seed=3)
    for name, change in {
        "model": {"model": other},
        "x": {"x": X + 0.1},
        "y": {"y": (Y + 1) % 4},
        "radius": {"radius": 0.2},
        "steps": {"config": replace(CONFIG, steps=6)},
        "level": {"config": replace(CONFIG, level="norms")},
        "box": {"config": replace(CONFIG, box=(-9.0, 9.0))},
        "norm": {"config": replace(CONFIG, norm="linf")},
    }.items():
        with pytest.raises(RunFolderError, match=rf"with another {name} \(it has .*, this one "):
            certified(tmp_path, **change)
    with pytest.raises(RunFolderError, match="another question"):
        local_radii(MODEL, X, Y, config=CONFIG, state=tmp_path)
    assert_same(certified(tmp_path), found)


def test_a_batch_that_was_changed_is_not_taken(tmp_path: Path) -> None:
    certified(tmp_path)
    first, second = tmp_path / "rows-0-to-31.safetensors", tmp_path / "rows-32-to-63.safetensors"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(CertificateError, match=r"not of these rows; remove .* to begin anew"):
        certified(tmp_path)
    first.write_bytes(content[: len(content) // 2])
    with pytest.raises(CertificateError, match=r"rows-0-to-31\.safetensors: truncated or damaged"):
        certified(tmp_path)


@pytest.mark.parametrize("name", ["margin", "lip", "radius"])
def test_a_batch_that_claims_too_much_is_not_taken(name: str, tmp_path: Path) -> None:
    config = LocalConfig("closed")
    certified(tmp_path, config=config)
    path = tmp_path / "rows-32-to-63.safetensors"
    part = LocalCertificate.load(path)
    value = getattr(part, name)
    more = {"margin": value + 0.1, "lip": 0.9 * value, "radius": 2.0 * value}[name]
    replace(part, **{name: more}).save(path)
    with pytest.raises(CertificateError, match=r"rows-32-to-63.*not proven.* to begin anew"):
        certified(tmp_path, config=config)


@pytest.mark.parametrize("level", ["masked", "semidefinite"])
def test_kept_batches_of_any_level_are_proven_once_more(level: str, tmp_path: Path) -> None:
    config, whole = (
        LocalConfig(level, steps=2, dual_steps=5, decide=True),
        certify(MODEL, kind="pairwise"),
    )
    given = {"config": config, "certificate": whole, "x": X[:40], "y": Y[:40]}
    assert_same(certified(tmp_path, **given), certified(tmp_path, **given))


def test_only_what_was_kept_is_removed(tmp_path: Path) -> None:
    certified(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "rows-0-to-31.safetensors.99.tmp").write_text("left by a killed process")
    remove_state(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    remove_state(tmp_path / "nowhere")


def test_no_input_is_no_batch(tmp_path: Path) -> None:
    assert len(certified(tmp_path / "state", x=X[:0], y=Y[:0])) == 0
    assert not (tmp_path / "state").exists()
