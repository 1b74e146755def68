"""Every study in its quick mode, the engine, and the report."""

from __future__ import annotations

import importlib
import json
import math
import signal
from pathlib import Path

import pytest
import torch

from admm_lip import TrainConfig, train
from admm_lip.records import read_json
from admm_lip.training.callbacks import Callback, Moment
from benchmarks import __main__ as command
from benchmarks import catalogue, gpu, images, record, report, study, tabular, whole_run
from benchmarks.measures import jacobian_norms, steepest
from benchmarks.square_wave import DENSE, best_error, grid
from benchmarks.tables import groups, half_width, markdown, spread

NO_FILES = (
    "toy2d",
    "mnist_noise",
    "front",
    "images",
    "images_cost",
    "images_wide",
    "square_wave",
    "backends",
    "ablation",
    "scaling",
)


def run_quick(name: str, folder: Path, data_dir: str | None = None) -> list[study.Row]:
    found = importlib.import_module(f"benchmarks.{name}").STUDY
    settings = study.read_settings(name, quick=True)
    return study.run_study(found, settings, data_dir=data_dir, jobs=1, folder=folder)


def check(name: str, rows: list[study.Row], folder: Path) -> None:
    found = importlib.import_module(f"benchmarks.{name}").STUDY
    assert [row.get("where") for row in rows if "error" in row] == []
    table = found.tabulate(rows).splitlines()
    assert len(table) > 2
    assert len({line.count("|") for line in table}) == 1
    pictures = found.draw(rows, folder)
    assert pictures
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)


@pytest.mark.parametrize("name", NO_FILES)
def test_the_quick_mode_runs_tabulates_and_draws(name: str, tmp_path: Path) -> None:
    rows = run_quick(name, tmp_path / "cells")
    check(name, rows, tmp_path)
    proven = [(row["lip"], row.get("options", {}).get("bound")) for row in rows if "lip" in row]
    assert all(lip <= bound * (1 + 1e-6) for lip, bound in proven if bound and lip)


def test_convolutions_are_trained_proven_and_tabulated(tmp_path: Path) -> None:
    rows = run_quick("image_training", tmp_path)
    assert [row.get("where") for row in rows if "error" in row] == []
    table = importlib.import_module("benchmarks.image_training").STUDY.tabulate(rows)
    assert len({line.count("|") for line in table.splitlines()}) == 1
    proven = [row for row in rows if "bound" in row]
    assert all(row["lip"] <= row["bound"] and row["certified"] <= row["clean"] for row in proven)
    assert len(proven) == len(rows) - 1


def test_claims_are_held_against_exact_margins_and_one_above_is_seen(tmp_path: Path) -> None:
    rows = run_quick("enumerated_balls", tmp_path)
    assert [row.get("where") for row in rows if "error" in row] == []
    assert sum(row["keep"] for row in rows) > 0
    module = importlib.import_module("benchmarks.enumerated_balls")
    assert module.STUDY.tabulate(rows).splitlines()[-1].startswith("| together |")
    cell = module.cells(study.read_settings("enumerated_balls", True))[0]
    model, *balls = module._drawn(cell, 0)
    exact, _ = module._exact_margins(model, *balls, cell)
    with pytest.raises(AssertionError, match="claims more than the exact value"):
        module._held(model, tuple(balls), exact - 10.0, "norms", cell)


def test_certified_balls_withstand_and_planted_ones_do_not(tmp_path: Path) -> None:
    rows = run_quick("attacked_balls", tmp_path)
    assert [row.get("where") for row in rows if "error" in row] == []
    again = [read_json(path) for path in sorted(tmp_path.glob("*.json"))]
    table = importlib.import_module("benchmarks.attacked_balls").STUDY.tabulate(again)
    assert table.splitlines()[-1].startswith("| together |")
    assert all(row["balls"] > 0 and (row["nearest_ratio"] or math.inf) >= 1.0 for row in again)
    planted, caught = (sum(r[k] for r in again) for k in ("planted", "planted_broken"))
    assert planted > 200
    assert caught > 0.8 * planted


def test_regression_tables_run_on_their_published_splits(tmp_path: Path, shared_data: Path) -> None:
    rows = run_quick("tabular", tmp_path / "cells", str(shared_data))
    check("tabular", rows, tmp_path)
    (x, y), (u, v), _ = tabular.load_split("yacht", 0, str(shared_data))
    assert (len(y) + len(v), x.shape[1], u.shape[1]) == (308, 6, 6)
    assert float(y.mean()) == pytest.approx(0.0, abs=1e-5)


def test_tuning_hides_the_test_set_and_the_study_takes_the_best_rate(tmp_path: Path) -> None:
    rows = run_quick("images_tuning", tmp_path / "cells")
    check("images_tuning", rows, tmp_path)
    assert all(row["validation"] for row in rows)
    best = max(rows, key=lambda row: row["certified"])
    assert images.tuned(rows) == {("digits", "ADMM"): {"lr": best["train"]["lr"]}}


def test_finished_cells_are_not_run_again_and_failed_ones_are(tmp_path: Path) -> None:
    calls: list[int] = []

    def run_cell(cell: study.Cell, data_dir: str | None) -> study.Row:
        calls.append(cell["k"])
        if cell["k"] == 1 and calls.count(1) == 1:
            raise RuntimeError("no luck")
        return {"square": cell["k"] ** 2}

    made = study.Study(
        "made", lambda s: [{"k": k} for k in range(3)], run_cell, lambda r: "", lambda r, f: []
    )
    options = {"data_dir": None, "jobs": 1, "folder": tmp_path}
    first = study.run_study(made, {}, **options)
    assert [row.get("square") for row in first] == [0, None, 4]
    assert first[1]["error"] == "RuntimeError: no luck"
    assert "run_cell" in first[1]["where"]
    second = study.run_study(made, {}, **options)
    assert [row["square"] for row in second] == [0, 1, 4]
    assert calls == [0, 1, 2, 1]


def test_a_study_out_of_time_says_which_cells_are_missing(tmp_path: Path) -> None:
    found = importlib.import_module("benchmarks.square_wave").STUDY
    settings = study.read_settings("square_wave", quick=True)
    rows = study.run_study(found, settings, data_dir=None, jobs=1, folder=tmp_path, minutes=-1.0)
    assert {row["error"] for row in rows} == {"not run: the study was out of time"}


def test_the_best_error_is_that_of_the_ramps() -> None:
    x, _ = grid(DENSE)
    for bound in (1.0, 5.0, 10.0):
        jumps = x.new_tensor([-1.0, 0.0, 1.0])
        distance = (x - jumps).abs()
        nearest = distance.min(dim=1).values
        off = (0.5 - bound * nearest).clamp_min(0.0)
        assert float(off.square().mean()) == pytest.approx(best_error(bound), rel=1e-3)


def test_the_slope_found_is_a_lower_bound_and_exact_for_an_affine_map() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3)
    x = torch.randn(8, 5)
    exact = float(torch.linalg.matrix_norm(layer.weight.detach(), 2))
    assert steepest(layer, x) == pytest.approx(exact, rel=1e-4)
    assert jacobian_norms(layer, x).tolist() == pytest.approx([exact] * 8, rel=1e-4)


def test_tables_group_average_and_format() -> None:
    rows = [{"k": "a", "v": 1.0}, {"k": "b", "v": 5.0}, {"k": "a", "v": 3.0}]
    assert [len(some) for some in groups(rows, "k").values()] == [2, 1]
    # Student's t with one degree of freedom: 12.706 deviations of the mean (deviation 2^.5).
    assert half_width([1.0, 3.0]) == pytest.approx(12.7062, rel=1e-4)
    assert math.isnan(half_width([1.0]))
    assert spread(rows[:2], "v", 1) == "1.0, 5.0"
    assert spread([*rows, rows[2]], "v", 1) == "3.0 ± 2.6"
    assert markdown(["x"], [[0.123456]]).splitlines() == ["| x |", "| --- |", "| 0.1235 |"]


COMMITTED = sorted(p.stem for p in record.RESULTS.glob("*.json") if "_quick" not in p.stem)


def test_every_record_is_on_the_page_or_left_out_with_a_reason() -> None:
    named = [*report.on_the_page(), *report.EXCLUDED]
    assert sorted(named) == COMMITTED
    assert all(report.EXCLUDED.values())


def test_every_module_with_a_main_is_in_the_catalogue() -> None:
    folder = Path(catalogue.__file__).parent
    commands = {p.stem for p in folder.glob("[!_]*.py") if "\ndef main(argv" in p.read_text()}
    assert commands == set(catalogue.BENCHMARKS)


def test_every_study_goes_by_the_name_of_its_module_and_has_settings() -> None:
    studies = {n: found for n in catalogue.BENCHMARKS if (found := report.study_of(n))}
    assert {name: found.name for name, found in studies.items()} == {n: n for n in studies}
    assert set(studies) == {p.stem for p in study.SETTINGS.glob("*.yaml")}


@pytest.mark.parametrize("name", catalogue.BENCHMARKS)
def test_the_help_of_every_benchmark_says_its_facts(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        command.main([name, "--help"])
    printed = capsys.readouterr().out
    facts = catalogue.BENCHMARKS[name]
    assert f"usage: python -m benchmarks {name} " in printed
    wanted = (catalogue.question_of(name), facts.shows, facts.data, facts.source)
    assert [fact for fact in (*wanted, catalogue.minutes(name)) if fact not in printed] == []


def test_the_list_names_every_benchmark_under_its_question(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main([]) == 0
    listed = capsys.readouterr().out
    assert command.main(["no_such"]) == 2
    for question, some in catalogue.QUESTIONS.items():
        _, _, after = listed.partition(f"\n{question}\n")
        assert [line.split()[0] for line in after.split("\n\n")[0].splitlines()[::2]] == [*some]


def test_the_time_of_a_benchmark_is_that_of_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    assert catalogue.minutes("images") == "not recorded"
    record.save("images", {"jobs": 2}, [{"cell_seconds": 100.0}, {"cell_seconds": 260.0}])
    assert catalogue.minutes("images") == "about 3 min"
    old = {"rows": [{"cpu_seconds_each": 2.0, "pictures": 60}, {"level": "none"}], "settings": {}}
    (tmp_path / "local_table.json").write_text(json.dumps(old))
    assert catalogue.minutes("local_table") == "over 2 min"
    (tmp_path / "local_table.json").write_text(json.dumps(old | {"seconds": 12.0, "rows": []}))
    assert catalogue.minutes("local_table") == "about 12 s"


def test_a_section_says_where_its_record_is_from_and_whether_it_is_old() -> None:
    present = record.machine_stamp()["versions"]["admm-lip"]
    made = {"versions": {"admm-lip": "0.0.9", "torch": "2.0"}, "cores": 2}
    found = {"name": "toy2d", "machine": made, "settings": {"jobs": 1}}
    found["rows"] = [{"seed": 3}, {"seed": 1}, {"seed": 3}]
    told = report.provenance(found)
    assert told[0] == f"source: {catalogue.BENCHMARKS['toy2d'].source}"
    assert told[1:3] == [
        "seeds: 1, 3; date: not stated; cores 2",
        "versions: admm-lip 0.0.9, torch 2.0",
    ]
    assert told[3:] == [f"stale: made by admm-lip 0.0.9; the present version is {present}"]
    new = found | {"machine": {"versions": {"admm-lip": present}}, "date": "2026-01-02"}
    told = report.provenance(new | {"settings": {"seeds": [0, 5]}})
    assert "seeds: 0, 5; date: 2026-01-02" in told[1]
    assert not [line for line in told if line.startswith("stale")]
    assert report.staleness("0.0.10")
    assert not report.staleness("99.0")


@pytest.mark.parametrize("name", report.on_the_page())
def test_every_record_gives_a_table(name: str) -> None:
    lines = report.table_of(name).splitlines()
    assert len(lines) > 2
    assert lines[0].startswith("| ")


def test_a_record_without_rows_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    record.save("counts", {}, [])
    with pytest.raises(ValueError, match=r"counts\.json: expected rows"):
        report.main(["--output", str(tmp_path / "page.html")])
    assert not (tmp_path / "page.html").exists()


def test_the_report_is_one_page_made_from_the_records_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run_quick("square_wave", tmp_path / "cells")
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    record.save("square_wave", {}, [*rows, {"error": "ValueError: <bad>"}])
    record.save("elsewhere", {}, [{"set": "a & b", "distance": 2.5}])
    report.main(["--output", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    assert "data:image/png;base64," in text
    assert "ValueError: &lt;bad&gt;" in text
    assert "a &amp; b" in text
    assert "http" not in text
    printed = capsys.readouterr().out
    assert "| L | method | seeds |" in printed
    assert read_json(tmp_path / "square_wave.json")["machine"]


def test_the_measurement_of_a_device_runs_and_compares(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    gpu.main(["--device", "cpu", "--quick", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(gpu.cases(quick=True))
    assert all("'difference': 0.0" in line for line in lines)
    gpu.main(["--device", "cpu", "--quick", "--minutes", "0"])
    assert "left_out" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


class _Told(Callback):
    """Sends this process the signal with which it is told to stop."""

    def on_round(self, moment: Moment) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_what_training_was_told_to_stop_at_is_not_recorded() -> None:
    data, config = (torch.randn(64, 3), torch.zeros(64).long()), TrainConfig(bound=1.0, epochs=50)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    assert train(model, data, config, progress=False, callbacks=[_Told()]).stopped == "terminated"
    cell = {"contender": "one"}

    def run_cell(cell: study.Cell, data_dir: str | None) -> study.Row:
        whole_run.train(model, data, config, progress=False, callbacks=[_Told()])
        return {}

    with pytest.raises(KeyboardInterrupt, match="terminated"):
        study.guarded(run_cell, cell, None)
