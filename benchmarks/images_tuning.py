"""The step sizes of ``images``: the same candidates for every method, judged on a validation split.

A sixth of the training set is held out; the test set is not loaded into any cell.
"""

from __future__ import annotations

from pathlib import Path

from . import images
from .contenders import build, data_of, train_contender
from .measures import accuracy, certified
from .pictures import Curve, Look, draw_panels
from .study import Cell, Row, Study, read_settings, run_from_command_line
from .tables import groups, markdown


def cells(settings: Cell) -> list[Cell]:
    """Every data set, contender and step size, at one radius and seed."""
    base = read_settings("images", quick=False) | settings
    return [
        {**cell, "validation": True, "train": {**cell["train"], "lr": rate}}
        for data in base["data"]
        for name, row in base["contenders"].items()
        if row["seeds"][data] > 0
        for cell in [images.cell_of(base, name, data, settings["radius"], 0)]
        for rate in settings["rates"]
    ]


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Train on the rest, count on the rows held out."""
    data = data_of(cell, data_dir)
    trained = train_contender(build(data.n_features, data.n_outputs, cell), data.train, cell)
    return {
        "lip": trained.lip,
        "clean": accuracy(trained.model, data.test),
        "certified": certified(trained, data.test, [cell["eps"]], images.by_pairs(cell))[0],
        "seconds": trained.seconds,
        "cpu_seconds": trained.cpu_seconds,
    }


def tabulate(rows: list[Row]) -> str:
    """Validation accuracy of every candidate."""
    header = ["data", "method", "lr", "clean %", "certified %", "CPU s"]
    lines = [
        [
            row["data"],
            row["contender"],
            f"{row['train']['lr']:g}",
            f"{row['clean']:.2f}",
            f"{row['certified']:.2f}",
            f"{row['cpu_seconds']:.1f}",
        ]
        for row in rows
    ]
    return markdown(header, lines)


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Validation accuracy against the step size, of the methods that bound L."""
    panels = {}
    for (data,), some in groups(rows, "data").items():
        panels[data] = [
            Curve(
                name,
                [row["train"]["lr"] for row in mine],
                [row["certified"] for row in mine],
                markers=True,
            )
            for (name,), mine in groups(some, "contender").items()
            if name != "plain"
        ]
    path = folder / "images_tuning.png"
    draw_panels(panels, path, Look("step size", "certified in validation, %", log_x=True))
    return [path]


STUDY = Study(
    "images_tuning",
    cells,
    run_cell,
    tabulate,
    draw,
)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
