"""Where a certificate is written: over an earlier one of the same claim, and over nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from admm_lip import cli
from admm_lip.certificates.certificate import Certificate, load_certificate
from admm_lip.networks.chain import read_network
from admm_lip.networks.storage import save_network

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return _saved(tmp_path / "net")


def _saved(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    layers = torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3)
    save_network(read_network(torch.nn.Sequential(*layers)), folder)
    return folder


def test_a_second_certificate_says_what_it_replaced(net: Path, capsys: Printed) -> None:
    assert cli.main(["certify", "net", "--solver.tol", "0.1"]) == 0
    assert "in place of" not in capsys.readouterr().out
    first = Certificate.load(net / "certificate.json").lip
    assert cli.main(["certify", "net"]) == 0
    second = Certificate.load(net / "certificate.json").lip
    assert f"lip {first:.9g} before, {second:.9g} now" in capsys.readouterr().out
    _saved(net)
    assert cli.main(["certify", "net"]) == 0
    assert "in place of an earlier certificate of other weights" in capsys.readouterr().out
    assert cli.main(["verify", "net"]) == 0


def test_another_claim_is_written_beside(net: Path, capsys: Printed) -> None:
    assert cli.main(["certify", "net"]) == 0
    before = (net / "certificate.json").read_bytes()
    for words, name in (
        (["--kind", "pairwise"], "certificate.pairwise.json"),
        (["--norm", "linf"], "certificate.linf.json"),
        (["--input-scale", "2"], "certificate.raw.json"),
        (["--kind", "per_output", "--norm", "linf"], "certificate.per_output-linf.json"),
    ):
        assert cli.main(["certify", "net", *words]) == 0
        out = capsys.readouterr().out
        assert name in out
        load_certificate(net / name)
        assert cli.main(["verify", "net", "--certificate", f"net/{name}"]) == 0
    assert (net / "certificate.json").read_bytes() == before


def test_what_is_no_certificate_is_replaced_in_its_own_place_only(
    net: Path, capsys: Printed
) -> None:
    (net / "certificate.json").write_text('{"damaged": 1}')
    assert cli.main(["certify", "net"]) == 0
    assert "in place of a file that was no certificate of this version" in capsys.readouterr().out
    assert cli.main(["verify", "net"]) == 0
    letter = Path("letter.json")
    letter.write_text("dear reader")
    for words in (["letter.json"], ["net/certificate.json", "--kind", "pairwise"]):
        assert cli.main(["certify", "net", "--output", *words]) == 2
        assert "name another file with --output" in capsys.readouterr().err
    assert letter.read_text() == "dear reader"
