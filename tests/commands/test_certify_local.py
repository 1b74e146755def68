"""``admm-lip certify --kind local``, ``verify`` of what it wrote, ``project --finetune``."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from admm_lip import cli
from admm_lip.data import load_data
from admm_lip.local import LocalCertificate, parts
from admm_lip.networks.chain import read_network
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.networks.storage import save_network
from admm_lip.parallel import finished_tasks
from admm_lip.research.comparators import METHODS
from admm_lip.training.train import TrainConfig, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that somebody trained plainly on digits."""
    path = tmp_path_factory.mktemp("given")
    fresh = build_mlp(64, 10, ModelConfig((16,)), seed=0)
    config = TrainConfig(epochs=20, loss="cross_entropy", lr=1e-2)
    data = load_data("digits")
    model = train(fresh, data.train, config, method=METHODS["nominal"](), progress=False).model
    save_network(read_network(model), path)
    return path


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_local_radii_are_written_and_verified(
    folder: Path, norm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--kind", "local", "--data", "digits", "--samples", "20", "--norm", norm]
    words += ["--output", "near.safetensors", "--input-scale", "0.5"]
    assert cli.main(["certify", str(folder), *words]) == 0
    found = LocalCertificate.load("near.safetensors")
    assert (len(found.radius), found.norm, found.input_scale) == (20, norm, (0.5,) * 64)
    assert bool((found.robust == (found.radius > 0.0)).all())  # what is stated, the record proves
    said = capsys.readouterr().out
    assert re.search(rf"mean radius +{float(found.radius.mean()):.6g}\n", said)
    assert "in raw units" in said
    assert cli.main(["verify", str(folder), "--certificate", "near.safetensors"]) == 0
    assert f"verified: local bounds ({norm})" in capsys.readouterr().out


def test_one_radius_states_the_share_that_is_certified(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--kind", "local", "--data", "digits", "--samples", "30", "--radius", "0.1"]
    assert cli.main(["certify", str(folder), *words, "--output", "near.safetensors"]) == 0
    found = LocalCertificate.load("near.safetensors")
    share = float(found.robust.double().mean())
    said = " ".join(capsys.readouterr().out.split())
    assert f"certified accuracy {share:.1%} mean radius" in said
    Path("near.pairs.json").unlink()
    code = cli.main(["verify", str(folder), "--certificate", "near.safetensors"])
    leans = bool((found.level == 1).any())
    assert code == (2 if leans else 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "data: --kind local needs --data NAME"),
        (["--data", "digits", "--samples", "0"], "samples: expected at least 1, got 0"),
        (["--data", "digits", "--radius", "-1"], "radius: expected finite numbers >= 0, got -1"),
        (
            ["--data", "digits", "--local.level", "hard"],
            "level: expected one of product, masked, norms",
        ),
    ],
)
def test_bad_options_are_one_message(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["certify", str(folder), "--kind", "local", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "local.safetensors").exists()


def test_exact_is_for_all_inputs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--kind", "per_output", "--norm", "linf", "--output", "out.json"]
    assert cli.main(["certify", str(folder), *words]) == 0
    assert cli.main(["verify", str(folder), "--certificate", "out.json", "--exact"]) == 0
    assert "verified (also in exact arithmetic)" in capsys.readouterr().out
    words = ["verify", str(folder), "--certificate", "near.safetensors", "--exact"]
    assert cli.main(words) == 2
    assert "exact: expected a certificate for all inputs" in capsys.readouterr().err


def test_a_fine_tuned_projection_says_what_it_bought(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--bound", "1", "--finetune", "digits", "--epochs", "2", "--eps", "0.1"]
    assert cli.main(["project", str(folder), *words, "--run-dir", "tuned"]) == 0
    said = capsys.readouterr().out
    at = r" +[\d.]+% at l2 radius 0.1 \(pairwise bounds, 360 rows\)\n"
    for when in ("before", "after"):
        assert re.search(f"certified accuracy {when}{at}", said)
    summary = json.loads(Path("tuned/summary.json").read_text())
    assert summary["finetuned"] == {"data": "digits", "epochs": 2}
    assert summary["after"]["certified"] > 0.5
    assert summary["before"]["radius"] == 0.1
    assert cli.main(["verify", "tuned"]) == 0


def test_levels_are_counted_and_rows_are_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--kind", "local", "--data", "digits", "--samples", "40", "--radius", "0.3"]
    words += ["--output", "near.safetensors", "--csv", "rows.csv", "--plot", "share.png"]
    assert cli.main(["certify", str(folder), *words, "--json"]) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    found = LocalCertificate.load("near.safetensors")
    assert record["levels"] == found.by_level()
    assert sum(level["rows"] for level in record["levels"]) == 40
    for level in record["levels"]:
        line = rf"{level['settled_by']} +{level['rows']} +{level['share']:.1%} +[\d.e-]+\n"
        assert re.search(line, printed.err)
    with Path("rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(40))
    assert [row["settled by"] for row in rows] == found.decided
    assert [float(row["certified margin (outputs)"]) for row in rows] == found.least_margin.tolist()
    assert {row["radius (l2 of model inputs)"] for row in rows} == {"0.3"}
    assert "seconds (s)" in rows[0] and "clean margin (outputs)" in rows[0]
    assert Path("share.png").read_bytes()[:4] == b"\x89PNG"
    assert "inputs beyond the range of the data, 0 to 1, count too" in printed.err
    attacked = re.search(r"accuracy under attack +([\d.]+)% at radius 0.3", printed.err)
    assert attacked and float(attacked[1]) / 100 >= float(found.robust.double().mean()) - 1e-3
    assert {p.name for p in Path().iterdir()} == {  # nothing of what was kept meanwhile
        *("near.safetensors", "near.pairs.json", "rows.csv", "share.png"),
    }
    assert cli.main(["certify", str(folder), *words]) == 2
    assert "csv: rows.csv exists; name another file with --csv" in capsys.readouterr().err


def test_a_stopped_command_goes_on_and_another_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["certify", str(folder), "--kind", "local", "--data", "digits", "--samples", "70"]
    words += ["--output", "near.safetensors", "--local.level", "norms"]

    def stopping(*given: Any, **more: Any) -> Any:
        yield next(finished_tasks(*given, **more))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts, "finished_tasks", stopping)
        assert cli.main([*words, "--radius", "0.1"]) == 130
    assert "kept in near.safetensors.parts: the same command goes on" in capsys.readouterr().out
    assert not Path("near.safetensors").exists()
    assert cli.main([*words, "--radius", "0.2"]) == 2
    said = capsys.readouterr().err
    assert "another radius (it has 70 times 0.1, this one 70 times 0.2)" in said
    solved: list[Any] = []
    monkeypatch.setattr("admm_lip.api.certify", lambda *given, **more: solved.append(given))
    assert cli.main([*words, "--radius", "0.1"]) == 0
    assert not solved  # the bounds for all inputs were kept too
    assert len(LocalCertificate.load("near.safetensors")) == 70
    assert not Path("near.safetensors.parts").exists()


def test_without_bounds_for_all_inputs_nothing_leans_on_them(folder: Path) -> None:
    words = ["--kind", "local", "--data", "digits", "--samples", "10", "--radius", "0.1"]
    words += ["--pairs", "false", "--output", "near.safetensors"]
    assert cli.main(["certify", str(folder), *words]) == 0
    assert "global" not in LocalCertificate.load("near.safetensors").decided
    assert [p.name for p in Path().iterdir()] == ["near.safetensors"]
    assert cli.main(["verify", str(folder), "--certificate", "near.safetensors"]) == 0
