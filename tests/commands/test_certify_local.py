"""``admm-lip certify --kind local``, ``verify`` of what it wrote, ``project --finetune``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from admm_lip import cli
from admm_lip.data import load_data
from admm_lip.local import LocalCertificate
from admm_lip.networks.chain import read_network
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.networks.storage import save_network
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
