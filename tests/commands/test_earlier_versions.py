"""What version 0.1 wrote loads with the same meaning, or is refused with the command that helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from admm_lip import cli
from admm_lip.certificates.document import checksum
from admm_lip.training import checkpoint

QUICK = ["--epochs", "2", "--evaluate.steps", "1", "--evaluate.samples", "10", "--quiet"]
TABLE = "area,rooms,price\n" + "".join(f"{i % 7},{i % 3},{i % 5 + i % 7}\n" for i in range(60))
Printed = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on a table; its checkpoint is of an earlier format."""
    monkeypatch.chdir(tmp_path)
    Path("my table.csv").write_text(TABLE)
    with monkeypatch.context() as earlier:
        earlier.setattr(checkpoint, "FORMAT", "admm-lip-checkpoint-2")
        words = ["--data", "csv:my table.csv", "--run-dir", "run"]
        assert cli.main(["train", *words, *QUICK]) == 0
    return tmp_path / "run"


def without(path: Path, *names: str, **changed: Any) -> None:
    """The certificate's file, of a version that did not know these fields."""
    data = json.loads(path.read_text())
    data = {k: v for k, v in data.items() if k not in (*names, "checksum")} | changed
    path.write_text(json.dumps(data | {"checksum": checksum(data)}))


def test_a_certificate_without_later_fields_means_their_defaults(
    run: Path, capsys: Printed
) -> None:
    without(run / "certificate.json", "switch", "every_size", "phases")
    without(run / "certificate.raw.json", "phases")
    assert cli.main(["verify", "run"]) == 0
    assert cli.main(["predict", "run", "my table.csv"]) == 0
    without(run / "certificate.json", "method")
    assert cli.main(["verify", "run"]) == 2
    assert "['every_size', 'method', 'phases', 'switch']; certify the" in capsys.readouterr().err


def test_a_certificate_of_no_known_format_names_the_command(run: Path, capsys: Printed) -> None:
    without(run / "certificate.json", format=0)
    assert cli.main(["verify", "run"]) == 2
    assert "format: expected 2, got 0" in capsys.readouterr().err
    assert cli.main(["certify", "run", "--units", "standardised"]) == 0
    assert cli.main(["verify", "run"]) == 0


def test_a_run_on_a_table_without_its_units_is_not_taken_for_raw(
    run: Path, capsys: Printed
) -> None:
    (run / "units.json").unlink()
    (run / "certificate.raw.json").unlink()
    Path("rows.csv").write_text("1,2\n3,4\n")
    assert cli.main(["predict", "run", "rows.csv"]) == 2
    said = "standardised columns by a version that did not keep their units; train it anew with: "
    command = capsys.readouterr().err.partition(said)[2].strip()
    assert command == "admm-lip train --config run/config.yaml"


def test_an_earlier_checkpoint_is_refused_with_the_command_that_begins_anew(
    run: Path, capsys: Printed
) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    del settings["table"]["drop"], settings["lip"]  # which came later
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    before = (run / "config.yaml").read_bytes()
    assert cli.main(["train", "--resume", "run"]) == 2
    err = capsys.readouterr().err
    assert "got 'admm-lip-checkpoint-2'" in err
    assert "with: admm-lip train --config run/config.yaml)" in err
    assert (run / "config.yaml").read_bytes() == before
    again = ["--config", "run/config.yaml", "--run-dir", "again", "--quiet"]
    assert cli.main(["train", *again]) == 0


def test_a_setting_that_differs_is_still_no_way_to_resume(run: Path, capsys: Printed) -> None:
    assert cli.main(["train", "--resume", "run", "--table.seed", "3"]) == 2
    assert "is a run with table" in capsys.readouterr().err
