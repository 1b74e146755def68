"""The engine of the studies: a grid of cells, run by workers, resumable, failures recorded.

Within ``joblib.parallel_config("dask")``, or another backend of joblib, the cells run there.

A study is a table of settings (``settings/NAME.yaml``) and four functions: ``cells`` lists what is
to be run, ``run_cell`` runs one and returns a flat row, ``tabulate`` makes the table a reader sees
and ``draw`` the plots, both from rows alone.  Each finished cell is written to
``results/cells/NAME`` at once, under the hash of what it ran, so an interrupted study goes on where
it stopped and a changed setting is run anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from admm_lip.parallel import finished_tasks
from admm_lip.records import read_json, write_json

from . import record
from .catalogue import parser_of

Cell = dict[str, Any]
Row = dict[str, Any]
SETTINGS = Path(__file__).parent / "settings"


@dataclass(frozen=True)
class Study:
    """One study.

    Attributes:
        name: of its settings and its record.
        cells: ``(settings) -> cells``; a cell is plain data and decides its row completely.
        run_cell: ``(cell, data_dir) -> row``; picklable.
        tabulate: ``(rows) -> markdown``; rows without errors, at least one.
        draw: ``(rows, folder) -> pictures written``; the same rows.
        jobs: cells at a time unless asked otherwise.
        timed: whether seconds are what is measured, so that cells run one at a time only.
    """

    name: str
    cells: Callable[[dict[str, Any]], list[Cell]]
    run_cell: Callable[[Cell, str | None], Row]
    tabulate: Callable[[list[Row]], str]
    draw: Callable[[list[Row], Path], list[Path]]
    jobs: int = 2
    timed: bool = False


def read_settings(name: str, quick: bool) -> dict[str, Any]:
    """Settings of a study; the section ``quick`` overrides the rest in quick mode."""
    settings: dict[str, Any] = yaml.safe_load((SETTINGS / f"{name}.yaml").read_text())
    overrides = settings.pop("quick", {})
    return settings | overrides if quick else settings


def cell_key(cell: Cell) -> str:
    """Hash of what a cell runs."""
    text = json.dumps(cell, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_study(
    study: Study,
    settings: dict[str, Any],
    *,
    data_dir: str | None,
    jobs: int,
    folder: Path,
    minutes: float = math.inf,
) -> list[Row]:
    """Run the missing cells of a study in parallel, one thread each; returns all rows.

    A cell that raises becomes a row with ``error``; it is run again the next time.

    Args:
        study: what to run.
        settings: of the study.
        data_dir: folder of the data sets.
        jobs: cells at a time.
        folder: of the finished cells.
        minutes: no cell starts later than this; those left are rows with ``error``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cells = study.cells(settings)
    missing = [c for c in cells if not (folder / f"{cell_key(c)}.json").is_file()]
    deadline = time.time() + 60.0 * minutes
    run = partial(guarded, study.run_cell, data_dir=data_dir, deadline=deadline)
    names = [f"cell {cell_key(cell)}" for cell in missing]
    work = finished_tasks(run, missing, names, n_jobs=jobs)
    failed: dict[str, Row] = {}
    for _, (cell, row) in tqdm(work, total=len(missing), desc=study.name, unit="cell"):
        if "error" in row:
            failed[cell_key(cell)] = row
            continue
        write_json(folder / f"{cell_key(cell)}.json", row)
    return [failed.get(cell_key(c)) or read_json(folder / f"{cell_key(c)}.json") for c in cells]


def guarded(
    run_cell: Callable[[Cell, str | None], Row],
    cell: Cell,
    data_dir: str | None,
    deadline: float = math.inf,
) -> tuple[Cell, Row]:
    """Run one cell on one thread; an exception becomes part of its row."""
    torch.set_num_threads(1)
    begun = time.perf_counter()
    if time.time() > deadline:
        return cell, cell | {"error": "not run: the study was out of time"}
    try:
        row = run_cell(cell, data_dir)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        # The file's name alone: a committed record holds no folder of anybody's machine.
        where = f"{Path(last.filename).name}:{last.lineno} in {last.name}"
        row = {"error": f"{type(error).__name__}: {error}", "where": where}
    return cell, cell | row | {"cell_seconds": time.perf_counter() - begun}


def succeeded(rows: list[Row]) -> list[Row]:
    """The rows of cells that ran to their end."""
    return [row for row in rows if "error" not in row]


def run_from_command_line(study: Study, argv: Sequence[str]) -> None:
    """``python -m benchmarks NAME [--data-dir DIR] [--jobs N] [--minutes M] [--quick]``."""
    parser = parser_of(study.name)
    parser.add_argument("--data-dir", default=None, help="folder of the image sets and tables")
    parser.add_argument("--jobs", type=int, default=study.jobs, help="cells at a time")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no cell after this")
    parser.add_argument("--quick", action="store_true", help="small settings: does it run?")
    options = parser.parse_args(argv)
    if study.timed and options.jobs != 1:
        parser.error(
            f"--jobs: expected 1, since cells side by side slow each other, got {options.jobs}"
        )
    settings = read_settings(study.name, options.quick)
    name = study.name + ("_quick" if options.quick else "")
    rows = run_study(
        study,
        settings,
        data_dir=options.data_dir,
        jobs=options.jobs,
        folder=record.RESULTS / "cells" / name,
        minutes=options.minutes,
    )
    record.save(name, settings | {"jobs": options.jobs}, rows)
    if good := succeeded(rows):
        print(study.tabulate(good))
        if not options.quick:
            for path in study.draw(good, record.RESULTS):
                print(f"plot: benchmarks/results/{path.name}")
    for row in rows:
        if "error" in row:
            print("failed:", row["error"])
