"""Tables on the command line: constants in both units, bounds in the file's, predictions."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from admm_lip import Certificate, Units, cli, predict, verify
from admm_lip.data import DataError
from admm_lip.networks.built import build_module
from admm_lip.networks.storage import load_network

SCALES = np.array([1e6, 1e-6, 1.0, 1e3])
QUICK = ["--model.hidden", "[8]", "--evaluate.steps", "5", "--evaluate.samples", "50", "--quiet"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path: Path, header: list[str], rows) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def regression(path: Path) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(300, 4))
    rows = np.column_stack([x * SCALES, 2e5 * x[:, 0]])
    write(path, ["a", "b", "c", "d", "t"], rows.tolist())
    return rows


def classes(path: Path) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(200, 2))
    words = np.where(x[:, 0] + x[:, 1] > 0, "yes", "no")
    scaled = x * (1e-3, 1e3) + 5.0
    write(
        path,
        ["u", "v", "label"],
        [[*row, w] for row, w in zip(scaled.tolist(), words, strict=True)],
    )
    return scaled


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs that several tests only read: a regression and a classification."""
    root = tmp_path_factory.mktemp("tables")
    regression(root / "t.csv")
    classes(root / "c.csv")
    table = ["train", "--data", f"csv:{root / 't.csv'}", "--epochs", "20", "--bound", "2"]
    assert cli.main([*table, "--run-dir", str(root / "run"), *QUICK]) == 0
    words = ["train", "--data", f"csv:{root / 'c.csv'}", "--table.task", "classification"]
    assert cli.main([*words, "--epochs", "20", "--run-dir", str(root / "words"), *QUICK]) == 0
    return root


def slope_of_the_curve(folder: Path, raw: np.ndarray) -> float:
    """Largest gradient of the fitted raw function, by finite differences between raw rows."""
    units = Units.from_json(json.loads((folder / "units.json").read_text()))
    module = build_module(load_network(folder)).double()
    x = torch.from_numpy(raw).requires_grad_()
    shift, scale = (
        torch.tensor(v, dtype=torch.float64) for v in (units.input_shift, units.input_scale)
    )
    out = module((x - shift) / scale) * torch.tensor(units.output_scale, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    return float(gradient.norm(dim=1).max())


def test_the_slope_is_told_in_both_units(trained, capsys):
    assert cli.main(["train", "--config", str(trained / "run/config.yaml"), "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "of standardised columns   (asked for 2)" in text
    assert "t per (a, b, c, d), in the units of the file" in text
    assert " t, in the units of the file" in text


def test_the_raw_constant_is_that_of_the_raw_curve(trained):
    run = trained / "run"
    raw, own = (Certificate.load(run / f"certificate{s}.json") for s in (".raw", ""))
    verify(raw, run)
    verify(own, run)
    assert own.units is None
    assert own.lip <= 2.0
    rows = np.random.default_rng(7).normal(size=(5000, 4)) * SCALES
    seen = slope_of_the_curve(run, rows)
    # Measured: the gradient reaches the constant to a part in a million.
    assert seen <= raw.lip * (1.0 + 1e-9) <= 1.05 * seen
    assert raw.lip < 0.2 * own.lip * 2e5 / 1e-6


def test_each_column_has_its_own_limit(trained):
    run = trained / "run"
    about = json.loads((run / "summary.json").read_text())["units"]
    units = Units.from_json(json.loads((run / "units.json").read_text()))
    module = build_module(load_network(run)).double()
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    (gradient,) = torch.autograd.grad(module(x).sum(), x)
    steepest = gradient.abs().amax(dim=0).numpy() * units.output_scale / units.input_scale
    limits = np.array([about["slopes"]["t"][name] for name in "abcd"])
    assert (steepest <= limits).all()


def test_certify_and_verify_take_a_run_as_it_is(trained, capsys):
    run = str(trained / "run")
    assert cli.main(["verify", run]) == 0
    assert "t per (a, b, c, d)" in capsys.readouterr().out
    assert cli.main(["certify", run, "--output", "raw.json"]) == 0
    assert "t per (a, b, c, d), l2, in the units of the run's data" in capsys.readouterr().out
    kept = Certificate.load(trained / "run/certificate.raw.json")
    assert Certificate.load("raw.json").lip == pytest.approx(kept.lip, rel=1e-3)
    assert cli.main(["certify", run, "--units", "standardised", "--output", "own.json"]) == 0
    assert Certificate.load("own.json").units is None
    assert cli.main(["certify", run, "--kind", "per_output", "--output", "each.json"]) == 0
    verify("each.json", run)


@pytest.mark.parametrize("share", [1.0, 0.05])
def test_a_bound_in_the_units_of_the_file_holds_there(trained, share, capsys):
    raw = Certificate.load(trained / "run/certificate.raw.json").lip
    options = ["--units", "raw", "--bound", repr(share * raw), "--run-dir", "raw"]
    assert cli.main(["train", "--config", str(trained / "run/config.yaml"), *options]) == 0
    proof = Certificate.load("raw/certificate.json")
    verify(proof, "raw")
    assert proof.units is not None
    assert proof.requested == share * raw
    assert proof.lip <= share * raw
    rows = np.random.default_rng(7).normal(size=(2000, 4)) * SCALES
    assert slope_of_the_curve(Path("raw"), rows) <= proof.lip * (1.0 + 1e-9)
    text = capsys.readouterr().out
    assert f"in the units of the file   (asked for {share * raw:g})" in text
    # The target depends on the column that the bound leaves free: nothing is lost.
    error, other = (
        json.loads((folder / "summary.json").read_text())["evaluation"]["rmse"]
        for folder in (Path("raw"), trained / "run")
    )
    assert error <= 1.2 * other
    assert yaml.safe_load(Path("raw/config.yaml").read_text())["units"] == "raw"
    assert not Path("raw/certificate.raw.json").exists()


def test_raw_units_need_a_table_and_a_bound(trained, capsys):
    assert cli.main(["train", "--units", "raw", "--bound", "1"]) == 2
    assert "units: raw goes with --data csv:FILE, got digits" in capsys.readouterr().err
    table = ["train", "--data", f"csv:{trained / 't.csv'}", "--units", "raw"]
    assert cli.main(table) == 2
    assert "bound: --units raw needs a bound in the units of the file" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_project_meets_a_bound_in_either_unit(trained, capsys):
    run = trained / "run"
    raw = Certificate.load(run / "certificate.raw.json").lip
    half = ["--units", "raw", "--bound", repr(0.5 * raw), "--run-dir", "half"]
    assert cli.main(["project", str(run), *half]) == 0
    proof = Certificate.load("half/certificate.json")
    verify(proof, "half")
    assert 0.49 * raw <= proof.lip <= 0.5 * raw
    assert (run / "units.json").read_text() == Path("half/units.json").read_text()
    assert cli.main(["project", str(run), "--bound", "1", "--run-dir", "one"]) == 0
    assert Certificate.load("one/certificate.json").lip <= 1.0
    verify("one/certificate.raw.json", "one")
    # What the raw bound asks is of column b alone, so the fit stays.
    fit = json.loads(Path("half/summary.json").read_text())["evaluation"]["r2"]
    assert fit >= json.loads((run / "summary.json").read_text())["evaluation"]["r2"] - 0.01


class TestPredict:
    def test_rows_come_out_in_the_targets_unit(self, trained, capsys):
        rows = np.random.default_rng(3).normal(size=(5, 4)) * SCALES
        write(Path("new.csv"), ["id", "d", "c", "b", "a"], [[9, *r[::-1]] for r in rows.tolist()])
        run = trained / "run"
        assert cli.main(["predict", str(run), "new.csv", "--output", "out.csv"]) == 0
        text = capsys.readouterr().out
        assert "5 rows written to out.csv" in text
        assert "t per (a, b, c, d), l2" in text
        assert "left out: id" in text
        with Path("out.csv").open() as file:
            found = list(csv.DictReader(file))
        assert list(found[0]) == ["t", "slope_bound"]
        units = Units.from_json(json.loads((run / "units.json").read_text()))
        module = build_module(load_network(run)).double()
        by_hand = units.from_model(module(torch.from_numpy(units.to_model(rows))).detach())
        assert [float(r["t"]) for r in found] == by_hand[:, 0].tolist()
        lip = Certificate.load(run / "certificate.raw.json").lip
        assert {float(r["slope_bound"]) for r in found} == {lip}
        assert np.abs(by_hand[:, 0] - 0.2 * rows[:, 0]).max() < 1e5
        for kind in (rows, torch.from_numpy(rows), dict(zip("abcd", rows.T, strict=True))):
            assert np.array_equal(predict(run, kind).values, by_hand)

    def test_a_data_frame_is_read_by_name(self, trained):
        pandas = pytest.importorskip("pandas")
        rows = np.random.default_rng(3).normal(size=(5, 4)) * SCALES
        frame = pandas.DataFrame(rows, columns=list("abcd"))
        found = predict(trained / "run", frame[["c", "d", "b", "a"]])
        assert np.array_equal(found.values, predict(trained / "run", rows).values)

    def test_classes_come_out_by_name_with_a_raw_radius(self, trained, capsys):
        rows = np.array([[5.0 + 2e-3, 5.0 + 1e3], [5.0 - 2e-3, 5.0 - 1e3]])
        write(Path("new.csv"), ["u", "v"], rows.tolist())
        assert cli.main(["predict", str(trained / "words"), "new.csv"]) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[0] == "class,certified_radius"
        assert [line.split(",")[0] for line in out[1:]] == ["yes", "no"]
        found = predict(trained / "words", rows)
        assert found.radius.tolist() == [float(line.split(",")[1]) for line in out[1:]]
        rng, reach = np.random.default_rng(0), found.radius[0]
        assert 0.0 < reach < 1e-2
        way = rng.normal(size=(2000, 2))
        near = rows[0] + 0.999 * reach * way / np.linalg.norm(way, axis=1, keepdims=True)
        assert set(predict(trained / "words", near).classes) == {"yes"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a,b,c\n1,2,3\n", "expected the columns a, b, c, d; missing: d"),
            ("a,b,c,d\n1,2,3,\n", "line 2, column 'd': expected a finite number, got ''"),
            ("a,b,c,d\n1,nan,3,4\n", "line 2, column 'b': expected a finite number, got 'nan'"),
            ("a,b,c,d\n", "expected rows of numbers below the header, got none"),
            ("1,2,3\n", "or exactly these 4 columns without one, got 3 columns"),
        ],
    )
    def test_rows_that_cannot_be_read_are_named(self, trained, text, message, capsys):
        Path("bad.csv").write_text(text)
        assert cli.main(["predict", str(trained / "run"), "bad.csv"]) == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (np.ones((3, 3)), r"expected shape \(rows, 4\)"),
            ([[1.0, np.nan, 2.0, 3.0]], "got nan in row 0, column 'b'"),
            ({"a": [1.0]}, "missing: b, c, d"),
            ([["x", 1, 2, 3]], "rows: expected numbers"),
        ],
    )
    def test_arrays_that_cannot_be_read_are_named(self, trained, rows, message):
        with pytest.raises(DataError, match=message):
            predict(trained / "run", rows)

    def test_an_edited_unit_is_no_proof(self, trained):
        import shutil

        shutil.copytree(trained / "run", "run")
        data = json.loads(Path("run/units.json").read_text())
        data["output_scale"] = [1.0]
        Path("run/units.json").write_text(json.dumps(data))
        with pytest.raises(DataError, match="expected a certificate in the units beside it"):
            predict("run", np.ones((1, 4)))

    def test_nothing_is_overwritten(self, trained, capsys):
        Path("out.csv").write_text("mine")
        write(Path("new.csv"), list("abcd"), [[1, 2, 3, 4]])
        assert cli.main(["predict", str(trained / "run"), "new.csv", "--output", "out.csv"]) == 2
        assert Path("out.csv").read_text() == "mine"


def test_several_targets_and_a_dropped_column(capsys):
    x = np.random.default_rng(0).normal(size=(100, 2))
    rows = np.column_stack([np.arange(100), x, 1e4 * x[:, 0], 1e-4 * x[:, 1]])
    write(Path("t.csv"), ["id", "u", "v", "far", "near"], rows.tolist())
    options = ["--data", "csv:t.csv", "--table.target", "far,near", "--table.drop", "id"]
    assert cli.main(["train", *options, "--epochs", "30", "--run-dir", "run", *QUICK]) == 0
    text = capsys.readouterr().out
    assert "columns left out            id" in text
    assert " far, " in text
    assert " near, in the units of the file" in text
    found = predict("run", {"u": x[:, 0], "v": x[:, 1]})
    assert found.names == ("far", "near")
    spread = found.values.std(axis=0)
    assert 3e3 < spread[0] < 3e4
    assert 3e-5 < spread[1] < 3e-4
    again = ["--config", "run/config.yaml", "--run-dir", "again", "--quiet"]
    assert cli.main(["train", *again]) == 0


def test_radii_of_a_table_are_raw_where_asked(trained):
    options = ["--units", "raw", "--bound", "3e3", "--eps", "2e-4"]
    settings = str(trained / "words/config.yaml")
    assert cli.main(["train", "--config", settings, *options, "--run-dir", "raw"]) == 0
    evaluation = json.loads(Path("raw/summary.json").read_text())["evaluation"]
    assert evaluation["report_radius"] == pytest.approx(1e-4, rel=0.3)
    assert evaluation["clean_accuracy"] > 0.8
    assert 0.0 < evaluation["certified_at_report"] <= evaluation["attacked_at_report"]
