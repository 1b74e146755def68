"""The certified networks that come with the package, proven again, and their cards."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from admm_lip import certified_radii, cli, from_pretrained
from admm_lip.data import load_data

ZOO = Path(__file__).resolve().parents[1] / "zoo"
FOLDERS = sorted(path for path in ZOO.iterdir() if (path / "weights.safetensors").is_file())


def figure(folder: Path, label: str) -> str:
    """What a card says."""
    (said,) = re.findall(rf"^\| {label} \| (.*?) \|", (folder / "README.md").read_text(), re.M)
    return str(said)


def test_the_zoo_is_what_its_script_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ZOO)
    import make  # type: ignore[import-not-found]

    assert {path.name for path in FOLDERS} == make.RECIPES.keys()
    for folder in FOLDERS:
        config = make.RECIPES[folder.name].config
        assert figure(folder, "trained for l2 radius") == f"{config.eps}"
        assert figure(folder, "bound asked for") == f"{config.bound:g}"
        assert figure(folder, "epochs") == f"{config.epochs}"
    monkeypatch.delitem(sys.modules, "make")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_its_networks_are_small_and_proven(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2e6
    assert cli.main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("verified: ")
    found = from_pretrained(folder, verify=False)  # that was just done
    assert found.certificate.lip <= 1.0
    said = {fact.label: fact.said for fact in found.facts()}
    for label in ("proven Lipschitz constant", "product of layer norms", "relative gap"):
        assert figure(folder, label) == said[label]


def test_a_card_states_what_is_measured_again() -> None:
    folder = ZOO / "digits-relu-64-32-32-10"
    found, (x, y) = from_pretrained(folder), load_data("digits").test
    radii = certified_radii(found.model, x, y, certificate=found.certificate)
    with torch.no_grad():
        clean = float((found.model(x).argmax(dim=1) == y).double().mean())
    certified = float((radii >= 0.1).double().mean())
    assert figure(folder, "clean accuracy") == f"{clean:.1%} of 360 test rows"
    assert figure(folder, "certified accuracy") == f"{certified:.1%} at l2 radius 0.1"


def test_the_script_makes_the_same_figures_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ZOO)
    import make

    name = "digits-relu-64-32-32-10"
    make.make(name, None, home=tmp_path)
    again = from_pretrained(tmp_path / name)
    assert again.certificate.lip == pytest.approx(from_pretrained(ZOO / name).certificate.lip, 1e-3)
    assert figure(tmp_path / name, "clean accuracy") in capsys.readouterr().out
    monkeypatch.delitem(sys.modules, "make")
