"""``admm-lip project`` of stored networks with convolutions, residual blocks and skips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from admm_lip import cli, export_onnx
from admm_lip.certificates.certificate import Certificate
from admm_lip.networks.chain import read_network
from admm_lip.networks.residual import ResidualBlock
from admm_lip.networks.storage import load_network, save_network
from admm_lip.records import read_json

QUICK = ["--epochs", "1", "--evaluate.steps", "3", "--evaluate.samples", "20", "--quiet"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lip_of(folder: str) -> float:
    """The bound, verified as a stranger would."""
    assert cli.main(["verify", folder]) == 0
    return Certificate.load(Path(folder) / "certificate.json").lip


@pytest.mark.parametrize("name", ["2C4T2F", "2C4R2F", "2C4M2F"])
def test_a_run_is_projected_and_judged(name: str) -> None:
    net = ["--convnet.name", name, "--convnet.width", "0.125"]
    assert cli.main(["train", "--data", "digits", *net, *QUICK, "--run-dir", "run"]) == 0
    assert cli.main(["project", "run", "--bound", "0.4", "--run-dir", "less"]) == 0
    assert 0.99 * 0.4 < lip_of("less") <= 0.4
    before, after = load_network("run"), load_network("less")
    assert [s.kind for s in after.layers] == [s.kind for s in before.layers]
    assert "clean_accuracy" in read_json(Path("less/summary.json"))["evaluation"]


def test_a_run_of_convolutions_is_fine_tuned() -> None:
    net = ["--convnet.name", "2C2F", "--convnet.width", "0.125"]
    assert cli.main(["train", "--data", "digits", *net, *QUICK, "--run-dir", "run"]) == 0
    words = ["project", "run", "--bound", "0.4", "--finetune", "digits", "--epochs", "1"]
    assert cli.main([*words, "--run-dir", "tuned"]) == 0
    assert lip_of("tuned") <= 0.4
    assert "after" in read_json(Path("tuned/summary.json"))


def test_files_of_networks_with_skips_and_frozen_slopes_are_projected() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.PReLU(), ResidualBlock(6, 5), nn.Linear(6, 2))
    Path("bare").mkdir()
    save_network(read_network(net), "bare")
    export_onnx(read_network(net), "net.onnx")
    for source in ("bare", "net.onnx"):
        assert cli.main(["project", source, "--bound", "0.2", "--run-dir", f"{source}-less"]) == 0
        assert 0.99 * 0.2 < lip_of(f"{source}-less") <= 0.2
        (slopes,) = (a for k, a in load_network(f"{source}-less").arrays.items() if a.size == 1)
        assert slopes.item() == pytest.approx(0.25)
