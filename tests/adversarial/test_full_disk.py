"""Full and read-only disks, what a crash leaves lying about, and two runs in one folder."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from admm_lip import cli
from admm_lip.errors import RunFolderError, WriteError
from admm_lip.files import exclusive, make_writable, write_atomic
from admm_lip.networks.storage import load_network
from admm_lip.records import create_run, open_run
from admm_lip.training.checkpoint import CHECKPOINT, PREVIOUS, load_checkpoint, load_last

TRAIN = ("train", "--data", "toy2d", "--epochs", "200", "--quiet", "--model.hidden", "[6]")
QUICK = ("--evaluate.steps", "3", "--evaluate.samples", "20", "--checkpoint-seconds", "0")
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (26_000, 26_000))
from admm_lip.cli import main
sys.exit(main(sys.argv[1:]))
"""
HOLDING = """
import sys, time
from pathlib import Path
from admm_lip.files import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def python(script: str, *words: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *words], text=True, **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to; its files are only read."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main([*TRAIN, *QUICK, "--run-dir", str(folder)]) == 0
    return folder


def same(first: Path, second: Path) -> bool:
    content = [(f / "certificate.json").read_bytes() for f in (first, second)]
    return (
        load_network(first).digest() == load_network(second).digest() and content[0] == content[1]
    )


def test_a_disk_that_fills_up_in_training_keeps_the_last_round(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = python(
        LIMITED, *TRAIN, *QUICK, "--run-dir", str(run), stderr=subprocess.PIPE
    )  # a checkpoint grows with the history, so that one of them no longer fits
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2
    assert f"cannot write {run / CHECKPOINT}: File too large" in said
    assert "what was there before is unchanged. Make room" in said
    assert load_last(run)["loop"]["step"] > 0
    assert {p.name for p in run.iterdir()} == {"config.yaml", CHECKPOINT, PREVIOUS}
    assert cli.main(["train", "--resume", str(run), "--quiet"]) == 0
    assert same(run, whole)


NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
@pytest.mark.parametrize("at", ["open", "fsync"])
def test_a_failed_write_names_the_file_and_leaves_the_old_one(
    number: int, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"old")

    def fails(*arguments: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    owner = Path if at == "open" else os
    monkeypatch.setattr(owner, at, fails)
    message = f"cannot write {path}: {os.strerror(number)}; what was there before is unchanged"
    with pytest.raises(WriteError, match=message) as caught:
        write_atomic(path, b"new")
    assert (caught.value.errno, caught.value.filename) == (number, str(path))
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_new_run_on_a_full_disk_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"cannot write .*run \(No space left on device\)"):
        create_run(tmp_path / "run", {"seed": 0})
    assert not list(tmp_path.iterdir())


def test_a_read_only_folder_is_named_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.geteuid() == 0:  # who may write everywhere
        monkeypatch.setattr(os, "access", lambda path, mode: path != folder)
    with pytest.raises(WriteError, match=f"cannot write {folder}: Permission denied"):
        make_writable(folder)
    with pytest.raises(RunFolderError, match=rf"cannot write {folder} \(Permission denied\)"):
        create_run(folder, {})
    assert not list(folder.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no small disk can be mounted here")
    try:
        write_atomic(disk / "a", b"old")
        with pytest.raises(WriteError, match="No space left on device"):
            write_atomic(disk / "a", bytes(100_000))
        assert (disk / "a").read_bytes() == b"old"
        assert [p.name for p in disk.iterdir()] == ["a"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_a_crash_leaves_is_known_and_cleared(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", {"seed": 0})
    run.plots.mkdir()
    left = [run.path / f"{name}.4711.tmp" for name in (CHECKPOINT, "config.yaml", "summary.json")]
    left.append(run.plots / "bounds.png.12.tmp")
    for path in left:
        path.write_bytes(b"half")
    assert run.foreign_files() == []
    run.remove_leftovers()
    assert not any(path.exists() for path in left)
    left[0].write_bytes(b"half")
    create_run(run.path, {"seed": 1}, overwrite=True)
    assert [p.name for p in run.path.iterdir()] == ["config.yaml"]


def test_a_folder_with_nothing_but_half_of_its_settings_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml.99.tmp").write_text("seed")
    run = create_run(tmp_path / "run", {"seed": 0})
    assert [p.name for p in run.path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("name", ["thesis.tex.4711.tmp", "summary.json.tmp", "summary.json.x.tmp"])
def test_other_temporary_files_are_left_alone(name: str, tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", {"seed": 0})
    (run.path / name).write_text("mine")
    run.remove_leftovers()
    with pytest.raises(RunFolderError, match=f"files that no run wrote .{name}"):
        create_run(run.path, {}, overwrite=True)
    assert (run.path / name).read_text() == "mine"


def test_a_run_killed_while_it_was_replaced_can_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run(tmp_path / "run", {"seed": 0})
    run.summary.write_text("{}")
    run.metrics.write_text("{}")
    unlink, done = Path.unlink, []

    def dies(path: Path, *arguments: object, **more: object) -> None:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(path)
        unlink(path)

    monkeypatch.setattr(Path, "unlink", dies)
    with pytest.raises(KeyboardInterrupt):
        create_run(run.path, {"seed": 1}, overwrite=True)
    monkeypatch.undo()
    assert create_run(run.path, {"seed": 1}, overwrite=True) == open_run(run.path)


def test_two_runs_in_one_folder_are_refused_until_the_first_is_dead(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = create_run(tmp_path / "run", {"seed": 0}).path
    (run / CHECKPOINT).write_bytes((whole / CHECKPOINT).read_bytes())
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    process = python(HOLDING, str(run), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    for words in (["--resume", str(run)], ["--run-dir", str(run), "--overwrite"]):
        assert cli.main([*TRAIN, *QUICK, *words]) == 2
        assert f"another run is writing into {run}; wait until it" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with exclusive(run):
        assert create_run(run, {"seed": 1}, overwrite=True).path == run


@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    both: bool, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", CHECKPOINT, PREVIOUS):
        (run / name).write_bytes((whole / name).read_bytes())
    steps = [load_checkpoint(run / name)["loop"]["step"] for name in (CHECKPOINT, PREVIOUS)]
    assert steps[0] >= steps[1]
    for name in (CHECKPOINT, PREVIOUS)[: 1 + both]:
        content = bytearray((run / name).read_bytes())
        content[-5] ^= 4  # among the tensors
        (run / name).write_bytes(content)
    code = cli.main(["train", "--resume", str(run), "--quiet"])
    if both:
        assert code == 2
        said = capsys.readouterr().err
        assert f"{run / CHECKPOINT} is truncated or damaged (its checksum does not fit" in said
    else:
        assert code == 0
        assert same(run, whole)
