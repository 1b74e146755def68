"""What a command says to type next can be typed, and does what is said of it."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch

from admm_lip import cli
from admm_lip.certificates.certificate import Certificate
from admm_lip.commands import hints
from admm_lip.commands.arguments import parse
from admm_lip.networks.chain import read_network
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.networks.storage import save_network

QUICK = ["--epochs", "2", "--evaluate.steps", "2", "--evaluate.samples", "20", "--quiet"]
TABLE = "a,b,c\n" + "".join(f"{i % 7},{i % 3},{i % 2}\n" for i in range(60))


@pytest.fixture(autouse=True)
def in_a_folder_with_a_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my runs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "my table.csv").write_text(TABLE)
    torch.manual_seed(0)
    (folder / "a net").mkdir()
    model = build_mlp(4, 3, ModelConfig((6,), "tanh", "torch"))
    save_network(read_network(model), folder / "a net")


def options_of(words: list[str]) -> dict:
    made = importlib.import_module(f"admm_lip.commands.{words[0]}").parser()
    options = parse(made, words[1:])
    found: dict = getattr(options, "as_dict", lambda: vars(options))()
    return found


def said_by(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The hints of a command: all of them parse, and every check of a proof succeeds."""
    assert cli.main(words) == 0
    found = [
        shlex.split(line.strip())[1:]
        for line in capsys.readouterr().out.splitlines()
        if re.match(r"\s+admm-lip ", line)
    ]
    for hint in found:
        options_of(hint)
        if hint[0] == "verify":
            assert cli.main(hint) == 0
    return found


def test_after_a_projection_comes_a_projection_of_the_same_network(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = [
        "project",
        "a net",
        "--bound",
        "0.25",
        "--run-dir",
        "to a quarter",
        "--solver.tol",
        "1e-5",
    ]
    verify, again = said_by(first, capsys)
    assert verify == ["verify", "to a quarter"]
    assert again[:2] == ["project", "a net"]
    changed = {"bound": 0.125, "run_dir": "to a quarter-bound0.125"}
    assert options_of(again) == options_of(first) | changed
    assert said_by(again, capsys)
    assert Certificate.load("to a quarter-bound0.125/certificate.json").lip <= 0.125


def test_a_fine_tuned_one_is_fine_tuned_again() -> None:
    module = importlib.import_module("admm_lip.commands.project")
    words = [
        "net.onnx",
        "--bound",
        "1",
        "--finetune",
        "digits",
        "--ridges",
        "[0.1]",
        "--even",
        "false",
    ]
    options = parse(module.parser(), words)
    again = shlex.split(module._half(options)[0])[2:]
    assert parse(module.parser(), again).as_dict() == options.as_dict() | {"bound": 0.5}


def test_after_training_come_the_same_data(capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "csv:my table.csv", "--table.task", "classification", "--table.target", "c"]
    first = ["train", *data, "--run-dir", "my run", "--bound", "3", *QUICK]
    verify, again, compare = said_by(first, capsys)
    assert verify == ["verify", "my run"]
    assert again == ["train", "--config", "my run/config.yaml", "--bound", "1.5"]
    assert options_of(again)["table"] == options_of(first)["table"]
    assert options_of(compare) == options_of(["compare", *data])
    assert said_by([*again, "--quiet", "--run-dir", "second"], capsys)
    assert Certificate.load("second/certificate.json").requested == 1.5


def test_where_nothing_is_enforced_no_bound_is_halved(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--mu", "0.1"], ["--method", "nominal"]):
        first = ["train", "--data", "toy2d", "--run-dir", f"r{words[1]}", *words, *QUICK]
        found = said_by(first, capsys)
        assert [hint[0] for hint in found] == ["verify", "compare"]
        assert found[1] == ["compare", "--data", "toy2d"]


@pytest.mark.parametrize(
    "more", [[], ["--output", "other.json"], ["--kind", "per_output", "--norm", "linf"]]
)
def test_after_certifying_the_file_that_was_written_is_checked(
    more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    written = more[1] if "--output" in more else "a net/certificate.json"
    (verify,) = said_by(["certify", "a net", *more], capsys)
    assert verify[:2] == ["verify", "a net"]
    assert Path(written).is_file()
    assert verify[2:] == (["--certificate", written] if "--output" in more else [])


def test_a_run_that_was_stopped_is_resumed_by_its_own_words() -> None:
    words = shlex.split(hints.typed("train", "--resume", Path("my run")))[1:]
    assert options_of(words)["resume"] == "my run"
