"""Certified networks as folders: the same bits come back, and nothing else is let in."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy as st
import torch
from torch import nn

from admm_lip import (
    CertificateError,
    TrainConfig,
    TrainResult,
    Units,
    certified_radii,
    certify,
    cli,
    from_pretrained,
    predict,
    project,
    train,
)
from admm_lip.data.options import DataError
from admm_lip.errors import NetworkError, RunFolderError, UnitsError, WriteError
from admm_lip.networks.storage import WEIGHTS
from admm_lip.sharing import CARD, CERTIFICATE, FILES, UNITS, save


def net(outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, outputs))


@pytest.fixture(scope="module")
def result() -> TrainResult:
    torch.manual_seed(0)
    x = torch.rand(64, 4)
    words = ["no" if row.sum() < 2 else "yes" for row in x]
    return train(net(), (x, words), TrainConfig(bound=1.0, epochs=2), progress=False)


@pytest.fixture(scope="module")
def saved(result: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return result.save_pretrained(tmp_path_factory.mktemp("there") / "a net")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(saved, tmp_path / "net")


def test_the_same_bits_come_back(result: TrainResult, saved: Path, tmp_path: Path) -> None:
    found = from_pretrained(saved)
    pairs = zip(found.model.parameters(), result.model.parameters(), strict=True)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)
    assert found.certificate == result.certificate
    assert found.verified and not found.model.training
    assert found.units is not None and found.units.classes == ("no", "yes")
    again = found.save_pretrained(tmp_path / "again", name="a net")
    assert {p.name for p in again.iterdir()} == set(FILES)
    for name in set(FILES) - {CARD}:
        assert (again / name).read_bytes() == (saved / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_dtype_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    model = net().to(dtype)
    found = from_pretrained(save(tmp_path / "net", model, certify(model)))
    assert {p.dtype for p in found.model.parameters()} == {dtype}


def test_projections_and_bounds_of_pairs_are_shared_too(tmp_path: Path) -> None:
    model = net(3)
    moved = project(model, bound=0.5)
    assert from_pretrained(moved.save_pretrained(tmp_path / "a")).certificate == moved.certificate
    pairs = certify(model, kind="pairwise", progress=False)
    assert "largest" in repr(from_pretrained(save(tmp_path / "b", model, pairs)))


def test_the_card_says_every_figure_and_how_to_check_it(
    result: TrainResult, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (saved / CARD).read_text()
    for fact in result.facts():
        said = re.sub(r"([\\|`*_\[\]#])", r"\\\1", fact.said)
        assert f"| {fact.label} | {said} |" in text
    (command,) = re.findall(r"^admm-lip (verify) FOLDER$", text, re.MULTILINE)
    assert cli.main([command, str(saved)]) == 0
    assert capsys.readouterr().out.startswith("verified: ")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    exec(code.replace("FOLDER", str(saved)), {})
    assert "proof checked               when it was loaded" in capsys.readouterr().out


def test_names_stay_in_their_cells_of_the_card(tmp_path: Path) -> None:
    evil = "<script>|\n# head `x`"
    model, units = net(), Units(input_names=("a", "b", "c", evil))
    found = save(tmp_path / "net", model, certify(model, units=units), units=units, name=evil)
    text = (found / CARD).read_text()
    assert "<script>" not in text and "\n# head" not in text
    table = [line for line in text.splitlines() if line.startswith("| proven Lipschitz")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in table] == [4]


def flipped(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("verify", [True, False])
def test_a_weight_changed_by_one_bit_is_refused(folder: Path, verify: bool) -> None:
    size = (folder / WEIGHTS).stat().st_size
    for back in (1, 4, 40, 80):
        flipped(folder / WEIGHTS, size - back)
        with pytest.raises((CertificateError, NetworkError)):
            from_pretrained(folder, verify=verify)
        flipped(folder / WEIGHTS, size - back)
    from_pretrained(folder, verify=verify)


@pytest.mark.parametrize("verify", [True, False])
def test_the_certificate_of_another_network_is_refused(folder: Path, verify: bool) -> None:
    certify(net()).save(folder / CERTIFICATE)
    with pytest.raises(CertificateError, match="digest"):
        from_pretrained(folder, verify=verify)


def test_a_bound_made_smaller_is_refused_unless_nobody_looks(folder: Path) -> None:
    found = from_pretrained(folder)
    smaller = found.certificate.lip * 0.5

    forged = dataclasses.replace(found.certificate, lip=smaller, lower_lip=0.0, sampled_lower=0.0)
    forged.save(folder / CERTIFICATE)
    with pytest.raises(CertificateError):
        from_pretrained(folder)
    unchecked = from_pretrained(folder, verify=False)
    assert not unchecked.verified and "proof checked               no" in unchecked.summary()


@pytest.mark.parametrize("name", [name for name in FILES if name not in (CARD, UNITS)])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises((NetworkError, CertificateError), match=re.escape(name)):
        from_pretrained(folder)


def test_units_are_those_of_the_bound(tmp_path: Path) -> None:
    model, units = net(), Units(input_scale=2.0, input_names=("a", "b", "c", "d"))
    proof = certify(model, units=units)
    folder = save(tmp_path / "net", model, proof, units=units)
    assert from_pretrained(folder).units == units
    data = json.loads((folder / UNITS).read_text())
    for wrong in (data | {"input_scale": 3.0}, data | {"input_names": ["a"]}, {"a": 1}, []):
        (folder / UNITS).write_text(json.dumps(wrong))
        with pytest.raises(UnitsError, match="units"):
            from_pretrained(folder)
    (folder / UNITS).unlink()
    with pytest.raises(UnitsError, match="units: expected those of the certificate"):
        from_pretrained(folder)
    with pytest.raises(UnitsError, match="classes: expected 2"):
        save(tmp_path / "b", model, certify(model), units=Units(classes=("a", "b", "c")))


def test_rows_are_predicted_by_such_a_folder(
    result: TrainResult, saved: Path, tmp_path: Path
) -> None:
    x = torch.rand(5, 4)
    found = predict(saved, x.tolist())
    assert result.classes is not None
    assert list(found.classes) == [result.classes[k] for k in result.model(x).argmax(1)]
    labels = result.model(x).argmax(1)
    radii = certified_radii(result.model, x, labels, certificate=result.certificate)
    assert found.radius is not None and found.lip == result.certificate.lip
    assert torch.allclose(torch.from_numpy(found.radius), radii, rtol=1e-4)
    model = net(1)
    units = Units(input_scale=2.0, output_scale=3.0, input_names=("a", "b", "c", "d"))
    raw = save(tmp_path / "raw", model, certify(model, units=units), units=units)
    rows = dict(zip("abcd", x.T.tolist(), strict=True))
    values = torch.from_numpy(predict(raw, rows).values).float()
    assert torch.allclose(values, 3.0 * model(x / 2.0), atol=1e-5)
    mixed = save(tmp_path / "mixed", model, certify(model), units=units)
    with pytest.raises(DataError, match="expected a certificate in the units beside it"):
        predict(mixed, rows)


def test_there_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="folder: expected a folder of a saved network"):
        from_pretrained(tmp_path / "none")


def test_nothing_else_is_overwritten(result: TrainResult, folder: Path) -> None:
    with pytest.raises(RunFolderError, match="overwrite=True"):
        result.save_pretrained(folder)
    result.save_pretrained(folder, overwrite=True)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"\(thesis.tex\)"):
        result.save_pretrained(folder, overwrite=True)
    with pytest.raises(RunFolderError, match=r"\(README\.md\)"):
        result.save_pretrained(folder / "README.md", overwrite=True)
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_a_model_that_was_changed_is_not_saved(tmp_path: Path) -> None:
    model = net()
    proof = certify(model)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1.0
    with pytest.raises(CertificateError, match="digest"):
        save(tmp_path / "net", model, proof)
    assert not list(tmp_path.iterdir())


def test_what_could_not_be_finished_leaves_nothing(
    result: TrainResult, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(path: Path, content: bytes, **_: Any) -> None:
        raise WriteError(path, OSError(28, "No space left on device"))

    monkeypatch.setattr("admm_lip.sharing.write_atomic", full)
    with pytest.raises(WriteError):
        result.save_pretrained(folder, overwrite=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_nothing_is_unpickled(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x80\x04cposix\nsystem\n(S'touch /tmp/x'\ntR.")
    with pytest.raises(NetworkError, match=r"weights\.safetensors: truncated or damaged"):
        from_pretrained(folder)


class TestHub:
    """No network: the client's calls are recorded."""

    def test_a_result_goes_up_and_comes_back(
        self, result: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
        from admm_lip.hub import from_hub, push_to_hub

        store = tmp_path / "store"

        class Api:
            def __init__(self, token: str | None) -> None:
                assert token is None

            def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
                assert (repo_id, private, exist_ok) == ("me/net", True, True)

            def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> Any:
                shutil.copytree(folder_path, store)
                return type("Commit", (), {"commit_url": f"there/{repo_id}"})()

        def snapshot(repo_id: str, *, allow_patterns: list[str], **_: Any) -> str:
            assert repo_id == "me/net" and allow_patterns == list(FILES)
            return str(store)

        monkeypatch.setattr(hub, "HfApi", Api)
        monkeypatch.setattr(hub, "snapshot_download", snapshot)
        assert push_to_hub(result, "me/net", private=True) == "there/me/net"
        assert (store / CARD).read_text().count("\n# net\n") == 1
        assert from_hub("me/net").certificate == result.certificate
        arrays = dict(st.load_file(store / WEIGHTS))
        st.save_file({name: 2.0 * array for name, array in arrays.items()}, store / WEIGHTS)
        with pytest.raises(CertificateError, match="digest"):
            from_hub("me/net")
