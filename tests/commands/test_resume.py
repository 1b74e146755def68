"""``--resume`` on the command line: what may change, is written back, is not done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from admm_lip import cli
from admm_lip.commands import compare
from admm_lip.networks.storage import load_network
from admm_lip.records import read_rows, read_yaml

QUICK = ["--evaluate.steps", "3", "--evaluate.samples", "20"]
SMALL = ["--data", "toy2d", "--model.hidden", "[4]", *QUICK]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ["train", *SMALL, "--epochs", "40", "--quiet", "--run-dir", str(folder)]
    assert cli.main(words) == 0
    return folder


def test_a_longer_run_says_so_and_is_written_back(
    trained: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    resume = ["train", "--resume", str(trained), "--quiet"]
    assert cli.main([*resume, "--epochs", "48"]) == 0
    assert "the run ends after 48 instead of 40" in caplog.text
    assert read_yaml(trained / "config.yaml")["epochs"] == 48
    assert cli.main([*resume, "--epochs", "8"]) == 2
    assert "has done 48 epochs, so it cannot end after 8" in capsys.readouterr().err
    assert read_yaml(trained / "config.yaml")["epochs"] == 48
    assert cli.main([*resume, "--threads", "2"]) == 2
    assert "is a run with threads 1, not 2; resume with the same" in capsys.readouterr().err


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_bytes((trained / "config.yaml").read_bytes())
    assert cli.main(["train", "--resume", str(tmp_path), "--quiet"]) == 0
    assert "holds nothing to go on from yet; it begins anew" in capsys.readouterr().out
    assert (tmp_path / "summary.json").is_file()


def test_a_projection_is_resumed_with_its_own_options(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--bound", "2", "--finetune", "toy2d", "--epochs", "2", "--solver.tol", "1e-5"]
    folder = tmp_path / "half"
    assert cli.main(["project", str(trained), *words, "--run-dir", str(folder)]) == 0
    before = load_network(folder).digest()
    assert cli.main(["project", "--resume", str(folder)]) == 0
    assert load_network(folder).digest() == before
    assert cli.main(["project", "--resume", str(folder), "--bound", "3"]) == 2
    assert "is a run with bound 2.0, not 3.0" in capsys.readouterr().err
    assert read_yaml(folder / "project.yaml")["bound"] == 2.0


def test_a_larger_grid_adds_to_a_comparison_and_other_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, done, real = tmp_path / "run", [], compare._one
    monkeypatch.setattr(compare, "_one", lambda job, at: (done.append(at), real(job, at))[1])
    words = ["compare", *SMALL, "--epochs", "8", "--mus", "[]", "--bounds"]
    assert cli.main([*words, "[1]", "--run-dir", str(folder)]) == 0
    first = read_rows(folder / "front.jsonl")
    assert cli.main(["compare", "--resume", str(folder), "--bounds", "[1,2]"]) == 0
    assert done == [1.0, 2.0]
    assert read_rows(folder / "front.jsonl")[:1] == first
    assert read_yaml(folder / "config.yaml")["bounds"] == [1.0, 2.0]
    assert cli.main(["compare", "--resume", str(folder), "--lr", "0.5"]) == 2
    assert "is a run with lr 0.01, not 0.5" in capsys.readouterr().err
