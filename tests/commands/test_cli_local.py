"""``admm-lip train --method local``: a verdict for every test sample, stopped and continued."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from admm_lip import cli
from admm_lip.commands import samples as module
from admm_lip.data import load_data
from admm_lip.evaluation.falsification import SoundnessError
from admm_lip.local import LocalConfig, certify_local
from admm_lip.networks.built import build_module
from admm_lip.networks.storage import load_network

NET = ["--convnet.name", "2C2F", "--convnet.width", "0.25", "--convnet.activation", "clipped_relu"]
LOCAL = ["--method", "local", "--eps", "0.2", *NET, "--lr", "3e-3"]
QUICK = [*LOCAL, "--epochs", "4", "--evaluate.steps", "5", "--evaluate.samples", "60", "--quiet"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "run"
    assert cli.main(["train", "--run-dir", str(folder), *QUICK]) == 0
    return folder


def verdicts(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_the_verdicts_are_those_of_the_network_on_disk(trained):
    rows = verdicts(trained)
    assert len(rows) == 60
    for row in rows:
        assert row["certified"] <= row["robust"] <= row["correct"]
        assert row["correct"] == (row["predicted"] == row["label"])
        assert row["certified"] == (row["margin"] is not None and row["margin"] > 0.0)
    data = load_data("digits").as_images()
    picked = [row["row"] for row in rows]
    x, y = data.test[0][picked], data.test[1][picked]
    model = build_module(load_network(trained))
    report = certify_local(model, x, 0.2, y, config=LocalConfig("masked", decide=True))
    assert report.robust.tolist() == [row["certified"] for row in rows]
    assert y.tolist() == [row["label"] for row in rows]
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["network"] == "2C2F x 0.25, clipped_relu"
    assert summary["samples"]["certified_accuracy"] == float(report.robust.double().mean())
    assert 0.0 < summary["samples"]["certified_accuracy"] <= summary["samples"]["attacked_accuracy"]


def test_history_settings_and_pictures(trained):
    rows = [json.loads(line) for line in (trained / "epochs.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert {"varying", "local_ratio", "loss"} <= rows[-1].keys()
    settings = yaml.safe_load((trained / "config.yaml").read_text())
    assert (settings["eps"], settings["method_settings"]["eps"]) == (0.2, 0.2)
    assert settings["convnet"] == {"name": "2C2F", "width": 0.25, "activation": "clipped_relu"}
    assert [p.name for p in (trained / "plots").iterdir()] == ["epochs.png"]
    assert cli.main(["plot", str(trained)]) == 0


def test_its_settings_give_the_same_network_again(trained):
    again = ["train", "--config", str(trained / "config.yaml"), "--run-dir", "again", "--quiet"]
    assert cli.main(again) == 0
    assert load_network("again").digest() == load_network(trained).digest()
    assert verdicts(Path("again")) == verdicts(trained)


def test_a_perceptron_under_the_global_bound(capsys):
    options = ["--method-settings", '{"bound": "global", "surrogate": "gloro"}']
    quick = ["--method", "local", *options, *QUICK[-7:], "--epochs", "2"]
    assert cli.main(["train", "--run-dir", "run", *quick]) == 0
    text = capsys.readouterr().out
    assert "64-32-32-10 relu, trained on digits for 2 epochs by local" in text
    assert "by the global bound" in text


def test_ctrl_c_and_resume_end_the_same():
    options = [*QUICK, "--epochs", "8"]
    assert cli.main(["train", "--run-dir", "whole", *options]) == 0
    command = [sys.executable, "-m", "admm_lip", "train", "--run-dir", "cut", *options]
    process = subprocess.Popen(
        [*command, "--checkpoint-seconds", "0"], stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not Path("cut/checkpoint.safetensors").exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "continue with: admm-lip train --resume cut" in output
    assert not Path("cut/samples.jsonl").exists()
    assert cli.main(["train", "--resume", "cut", "--quiet"]) == 0
    assert load_network("cut").digest() == load_network("whole").digest()
    assert verdicts(Path("cut")) == verdicts(Path("whole"))


def test_a_checkpoint_of_another_architecture_is_refused(trained, capsys):
    before = {p.name: p.read_bytes() for p in trained.iterdir() if p.is_file()}
    assert cli.main(["train", "--resume", str(trained), "--convnet.width", "0.5"]) == 2
    said = capsys.readouterr().err
    assert "is a run with convnet" in said
    assert "'width': 0.5" in said
    assert {p.name: p.read_bytes() for p in trained.iterdir() if p.is_file()} == before


def test_a_broken_certificate_fails_the_run(monkeypatch, capsys):
    def lying(*arguments, **keywords):
        report = certify_local(*arguments, **keywords)
        report.margin.fill_(1.0)  # behind the record's own checks
        report.center.fill_(1.0)
        return report

    monkeypatch.setattr(module, "certify_local", lying)
    assert cli.main(["train", "--run-dir", "run", *QUICK, "--eps", "3"]) == 2
    assert "certified at radius 3, but" in capsys.readouterr().err
    assert not Path("run/samples.jsonl").exists()
    assert not Path("run/summary.json").exists()
    assert issubclass(SoundnessError, AssertionError)


def test_a_recipe_lies_below_the_options(capsys):
    options = ["--recipe", "mnist_4c3f_quarter", "--data", "digits", "--convnet.name", "2C2F"]
    quick = ["--epochs", "1", "--evaluate.samples", "10", "--quiet", "--eps", "0.1"]
    assert cli.main(["train", "--run-dir", "run", *options, *quick]) == 0
    settings = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (settings["eps"], settings["method_settings"]["eps"]) == (0.1, 1.75)
    assert settings["convnet"]["width"] == 0.25
    assert settings["data"] == "digits"
