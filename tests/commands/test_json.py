"""``--json``: one strict object on standard output and nothing else, from every command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from admm_lip import cli, strict_json
from admm_lip.certificates.certificate import Certificate
from admm_lip.networks.chain import read_network
from admm_lip.networks.storage import save_network

QUICK = ["--epochs", "1", "--evaluate.steps", "1", "--evaluate.samples", "10"]
TABLE = "area,rooms,price\n" + "".join(f"{i % 7},{i % 3},{i % 5 + i % 7}\n" for i in range(60))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, a run on it, and a network alone."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "t.csv").write_text(TABLE)
    words = ["train", "--data", f"csv:{folder}/t.csv", "--run-dir", f"{folder}/run", "--quiet"]
    assert cli.main([*words, *QUICK]) == 0
    torch.manual_seed(0)
    layers = torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3)
    (folder / "net").mkdir()
    save_network(read_network(torch.nn.Sequential(*layers)), folder / "net")
    return folder


Printed = pytest.CaptureFixture[str]


def printed(words: list[str], capsys: Printed, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main([*words, "--json"]) == code
    text = capsys.readouterr().out
    assert text.count("\n") == 1
    found: dict[str, Any] = strict_json.loads(text)
    assert found["command"] == words[0]
    return found


def test_certify_names_the_bound_and_its_unit(home: Path, capsys: Printed) -> None:
    found = printed(["certify", f"{home}/run", "--output", f"{home}/c.json"], capsys)
    own = Certificate.load(home / "c.json")
    assert (found["lip"], found["norm"], found["kind"]) == (own.lip, "l2", "global")
    assert found["unit"] == own.units.ratio()
    assert found["written"] == f"{home}/c.json"
    assert found["replaced"] is None


def test_verify(home: Path, capsys: Printed) -> None:
    found = printed(["verify", f"{home}/run"], capsys)
    claims = found["verified"]
    units = Certificate.load(home / "run" / "certificate.raw.json").units
    assert [claim["unit"] for claim in claims] == [None, units.ratio()]
    assert claims[0]["lip"] == Certificate.load(home / "run" / "certificate.json").lip
    assert claims[0]["not_proven"]["solver"] == "native"


def test_predict(home: Path, capsys: Printed) -> None:
    found = printed(["predict", f"{home}/run", f"{home}/t.csv"], capsys)
    assert len(found["rows"]) == 60
    assert set(found["rows"][0]) == {"price", "slope_bound"}
    assert found["rows"][0]["slope_bound"] == found["lip"]
    assert found["left_out"] == ["price"]
    assert found["unit"].startswith("price per")


def test_train_compare_project_and_plot(home: Path, capsys: Printed) -> None:
    new = ["--run-dir", f"{home}/second", "--data", "toy2d", *QUICK]
    found = printed(["train", *new], capsys)
    summary = json.loads((home / "second" / "summary.json").read_text())
    assert {key: found[key] for key in summary} == summary
    assert found["bounds"]["norm"] == "l2"
    assert found["run"] == f"{home}/second"
    grid = ["--mus", "[0.1]", "--bounds", "[]", "--run-dir", f"{home}/grid"]
    (row,) = printed(["compare", *grid, *new[2:]], capsys)["rows"]
    assert row["mode"] == "penalty"
    assert math.isfinite(row["lip"])
    found = printed(["project", f"{home}/net", "--bound", "0.1"], capsys)
    assert found["bounds"]["lip"] <= 0.1
    assert found["distance"] > 0.0
    assert printed(["plot", f"{home}/grid"], capsys)["plots"] == [f"{home}/grid/plots/front.png"]


def test_solvers_help_and_version(capsys: Printed) -> None:
    assert printed(["solvers"], capsys)["solvers"]["native"]["usable"] is True
    assert printed(["--version"], capsys)["version"]
    assert set(printed(["help"], capsys)["commands"]) == set(cli._COMMANDS)
    assert printed(["verify", "--help"], capsys) == {"command": "verify", "notes": []}


def test_a_bound_without_end_is_null(home: Path, capsys: Printed) -> None:
    """A constant network never changes its class: the radius is infinite, which JSON has not."""
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(layer.weight)
    (home / "flat").mkdir()
    save_network(read_network(torch.nn.Sequential(layer)), home / "flat")
    (home / "flat" / "config.yaml").write_text("{}\n")
    (home / "two.csv").write_text("1,2\n3,4\n")
    assert cli.main(["certify", f"{home}/flat"]) == 0
    words = ["predict", f"{home}/flat", f"{home}/two.csv", "--task", "classification"]
    assert [row["certified_radius"] for row in printed(words, capsys)["rows"]] == [None, None]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verify", "nowhere"], "found none"),
        (["certify", "nowhere"], "found none"),
        (["certfy"], "did you mean 'certify'"),
        (["predict", "nowhere", "t.csv"], "found none"),
        (["train", "--bund", "1"], "did you mean --bound?"),
        (["project", "nowhere"], "expected --bound L"),
        (["plot", "nowhere"], "does not exist"),
    ],
)
def test_an_error_is_an_object_with_the_same_exit_code(
    words: list[str], said: str, capsys: Printed
) -> None:
    assert said in printed(words, capsys, code=2)["error"]


def test_an_interrupt_is_one_too(capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("admm_lip.commands.solvers.run", interrupt)
    assert printed(["solvers"], capsys, code=130)["error"] == "interrupted"
