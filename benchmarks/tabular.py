"""Regression tables with their published splits: error against the bound.

Features and targets are standardised on the training rows, so L is in standard deviations of the
target per standard deviation of the features.  The one step size was chosen for ADMM, on rows held
out of the training part of split 0 of one table; every number is of test rows of the given splits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from admm_lip.data import DataError
from admm_lip.data.files import data_folder

from .contenders import Pair, build, train_contender
from .pictures import Curve, Look, draw_panels
from .study import Cell, Row, Study, run_from_command_line
from .tables import groups, markdown, mean, spread

SPLITS = "test_splits.npz"


def load_split(name: str, split: int, data_dir: str | None) -> tuple[Pair, Pair, float]:
    """Standardised training and test rows ``(n, d), (n, 1)``, and the target's deviation.

    Raises:
        DataError: when the folder ``tabular`` does not hold the table or the splits.
    """
    folder = data_folder(data_dir) / "tabular"
    for path in (folder / f"{name}.csv", folder / SPLITS):
        if not path.is_file():
            raise DataError(f"table {name!r}: looked for {path} and found none; pass --data-dir")
    table = np.loadtxt(folder / f"{name}.csv", delimiter=",", skiprows=1)
    with np.load(folder / SPLITS, allow_pickle=False) as splits:
        test = splits[name][split].astype(np.int64)
    train = np.setdiff1d(np.arange(len(table)), test)
    centre, deviation = table[train].mean(axis=0), table[train].std(axis=0)
    scaled = (table - centre) / np.where(deviation > 0.0, deviation, 1.0)
    return _pair(scaled[train]), _pair(scaled[test]), float(deviation[-1])


def _pair(table: NDArray[np.float64]) -> Pair:
    both = torch.from_numpy(table.astype(np.float32))
    return both[:, :-1].contiguous(), both[:, -1:].contiguous()


def cells(settings: Cell) -> list[Cell]:
    """Every split, table, contender and strength."""
    return [
        {
            "table": table,
            "split": split,
            "seed": split,
            "hidden": settings["hidden"],
            "contender": name,
            "strength": strength,
            "method": row["method"],
            "options": {row["knob"]: strength},
            "train": {**settings["train"], **row.get("train", {})},
        }
        for split in settings["splits"]
        for table in settings["tables"]
        for name, row in settings["contenders"].items()
        for strength in row["grid"]
    ]


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Train on one split, measure on its test rows."""
    train_rows, (x, y), deviation = load_split(cell["table"], cell["split"], data_dir)
    trained = train_contender(build(x.shape[1], 1, cell), train_rows, cell)
    with torch.no_grad():
        rmse = float((trained.model(x) - y).square().mean().sqrt())
    return {
        "lip": trained.lip,
        "rmse": rmse,
        "rmse_raw": rmse * deviation,
        "seconds": trained.seconds,
        "cpu_seconds": trained.cpu_seconds,
    }


def tabulate(rows: list[Row]) -> str:
    """Every point: strength, proven L, error in deviations and in raw units, seconds."""
    header = ["table", "method", "strength", "splits", "proven L", "RMSE", "RMSE, raw", "CPU s"]
    lines = [
        [
            table,
            name,
            f"{strength:g}",
            len(some),
            spread(some, "lip"),
            spread(some, "rmse", 3),
            f"{mean(some, 'rmse_raw'):.3g}",
            f"{mean(some, 'cpu_seconds'):.1f}",
        ]
        for (table, name, strength), some in groups(rows, "table", "contender", "strength").items()
    ]
    return markdown(header, lines)


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Error against the proven L, one panel per table."""
    panels = {}
    for (table,), some in groups(rows, "table").items():
        panels[table] = [
            Curve(name, *_front(mine), markers=True)
            for (name,), mine in groups(some, "contender").items()
        ]
    path = folder / "tabular.png"
    draw_panels(
        panels, path, Look("proven Lipschitz constant", "test RMSE, deviations", log_x=True)
    )
    return [path]


def _front(rows: list[Row]) -> tuple[list[float], list[float]]:
    points = sorted((mean(r, "lip"), mean(r, "rmse")) for r in groups(rows, "strength").values())
    return [lip for lip, _ in points], [rmse for _, rmse in points]


STUDY = Study("tabular", cells, run_cell, tabulate, draw)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
