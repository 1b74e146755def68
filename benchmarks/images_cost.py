"""What each method of ``images`` costs over the same loop without a constraint.

Cells run one at a time.  Each trains the plain network, then the contender, then the plain network
again, so that the ratio compares times taken under the same load; certification is not included.
Beside the contenders of ``images`` there are wider networks, for the ratio alone: a few epochs.
"""

from __future__ import annotations

from pathlib import Path

from . import images
from .contenders import build, data_of, train_contender
from .pictures import Curve, Look, draw_panels
from .study import Cell, Row, Study, read_settings, run_from_command_line
from .tables import groups, markdown, spread

PLAIN = {"method": "nominal", "options": {}}


def cells(settings: Cell) -> list[Cell]:
    """Every repeat and contender, on the first data set at one radius."""
    base = read_settings("images", quick=False) | settings
    base["contenders"] = base["contenders"] | settings["wide"]
    found = [
        {**images.cell_of(base, name, base["data"][0], settings["radius"], 0), "repeat": repeat}
        for repeat in range(settings["repeats"])
        for name in base["contenders"]
    ]
    return [{**c, "train": {**c["train"], "epochs": _epochs(c, settings)}} for c in found]


def _epochs(cell: Cell, settings: Cell) -> int:
    """Those of a wide contender are its own."""
    return int(settings["wide"].get(cell["contender"], settings)["epochs"])


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Plain, contender, plain, after a short run that warms the machine up."""
    data = data_of(cell, data_dir)
    model = build(data.n_features, data.n_outputs, cell)
    train_contender(model, data.train, cell | PLAIN | {"train": cell["train"] | {"epochs": 1}})
    before = train_contender(model, data.train, cell | PLAIN).cpu_seconds
    seconds = train_contender(model, data.train, cell).cpu_seconds
    after = train_contender(model, data.train, cell | PLAIN).cpu_seconds
    return {
        "cpu_seconds": seconds,
        "plain": 0.5 * (before + after),
        "ratio": 2 * seconds / (before + after),
    }


def tabulate(rows: list[Row]) -> str:
    """Seconds of both, and their ratio."""
    header = ["method", "epochs", "repeats", "plain, CPU s", "CPU s", "ratio"]
    lines = [
        [
            name,
            some[0]["train"]["epochs"],
            len(some),
            *(spread(some, key) for key in ("plain", "cpu_seconds", "ratio")),
        ]
        for (name,), some in groups(rows, "contender").items()
    ]
    return markdown(header, lines)


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """The ratios of all repeats."""
    curves = [
        Curve(name, [row["repeat"] for row in some], [row["ratio"] for row in some], markers=True)
        for (name,), some in groups(rows, "contender").items()
    ]
    path = folder / "images_cost.png"
    draw_panels({"cost over plain training": curves}, path, Look("repeat", "ratio of seconds"))
    return [path]


STUDY = Study("images_cost", cells, run_cell, tabulate, draw, jobs=1, timed=True)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
