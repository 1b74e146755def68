"""MNIST and Fashion-MNIST, 784-64-64-10: clean and certified accuracy of every method.

One network per method and radius, trained for that radius and certified at it.  Each method's step
size is the best of the same few candidates on a validation split of each data set
(``images_tuning``, which must have run); the test set is only looked at here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import record
from .contenders import build, data_of, train_contender
from .measures import accuracy, certified, steepest
from .pictures import Curve, Look, draw_panels
from .study import Cell, Row, Study, run_from_command_line, succeeded
from .tables import groups, half_width, markdown, mean, spread

TUNING = "images_tuning"
SLOPE_ROWS = 500


def cells(settings: Cell) -> list[Cell]:
    """Every seed, data set, radius and contender, seeds outermost."""
    chosen = tuned(record.load(TUNING)["rows"]) if settings["tuned"] else {}
    found = [
        cell_of(settings, name, data, eps, seed)
        for seed in range(max(row["seeds"][d] for row, d in _seeded(settings)))
        for data in settings["data"]
        for eps in settings["eps"]
        for name, row in settings["contenders"].items()
        if seed < row["seeds"][data] and eps in row.get("eps", settings["eps"])
    ]
    return [
        {**cell, "train": cell["train"] | chosen.get((cell["data"], cell["contender"]), {})}
        for cell in found
    ]


def _seeded(settings: Cell) -> list[tuple[Mapping[str, Any], str]]:
    return [(row, data) for row in settings["contenders"].values() for data in settings["data"]]


def cell_of(settings: Cell, name: str, data: str, eps: float, seed: int) -> Cell:
    """One contender at one radius; ``eps_field`` is the method's own name for the radius."""
    row = settings["contenders"][name]
    radius = {row["eps_field"]: eps * row.get("eps_factor", 1.0)} if "eps_field" in row else {}
    judge = {"judge": row["judge"]} if "judge" in row else {}
    return {
        "data": data,
        "limit": settings["limit"],
        "hidden": row.get("hidden", settings["hidden"]),
        "activation": row.get("activation", "relu"),
        "seed": seed,
        "eps": eps,
        "contender": name,
        "method": row["method"],
        "options": {**row.get("options", {}), **radius},
        "centre": settings.get("centre", False),
        **judge,
        "train": {**settings["train"], "eps": eps, **row.get("train", {})},
    }


def by_pairs(cell: Cell) -> bool:
    """Whether the network has no one small bound, and is certified for pairs of classes."""
    return bool(cell.get("judge") == "pairwise")


def tuned(rows: list[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """Per data set and contender, the step size with the most rows certified in validation."""
    best = {}
    for (data, name), some in groups(succeeded(rows), "data", "contender").items():
        rates = groups([{**row, "lr": row["train"]["lr"]} for row in some], "lr")
        best[data, name] = {"lr": max(rates, key=lambda rate: mean(rates[rate], "certified"))[0]}
    return best


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Train for the cell's radius and certify at it."""
    data = data_of(cell, data_dir)
    trained = train_contender(build(data.n_features, data.n_outputs, cell), data.train, cell)
    lower = steepest(trained.model, data.test[0][:SLOPE_ROWS])
    return {
        "lip": trained.lip,
        "proven": trained.certificate is not None,
        "tightness": lower / trained.lip,
        "clean": accuracy(trained.model, data.test),
        "certified": certified(trained, data.test, [cell["eps"]], by_pairs(cell))[0],
        "seconds": trained.seconds,
        "cpu_seconds": trained.cpu_seconds,
    }


def tabulate(rows: list[Row]) -> str:
    """Clean and certified accuracy at the trained radius, with 95 % intervals over seeds."""
    header = [
        "data",
        "radius",
        "method",
        "lr",
        "seeds",
        "clean %",
        "certified %",
        "L",
        "tightness",
        "CPU s",
    ]
    lines = [
        [
            data,
            f"{eps:g}",
            name,
            f"{some[0]['train']['lr']:g}",
            len(some),
            spread(some, "clean"),
            spread(some, "certified"),
            f"{mean(some, 'lip'):.4g}" + ("" if some[0]["proven"] else " (claimed)"),
            f"{mean(some, 'tightness'):.3f}",
            f"{mean(some, 'cpu_seconds'):.1f}",
        ]
        for (data, eps, name), some in groups(rows, "data", "eps", "contender").items()
    ]
    return markdown(header, lines)


def draw(rows: list[Row], folder: Path, name: str = "images") -> list[Path]:
    """Certified against clean accuracy at the radius trained for, a panel per set and radius.

    Networks that certify less than three quarters of the best one's rows are off the picture.
    """
    panels: dict[str, list[Curve]] = {}
    for (data, eps), some in groups(rows, "data", "eps").items():
        best = max(row["certified"] for row in some)
        panels[f"{data}, radius {eps:g}"] = [
            Curve(
                contender,
                [mean(mine, "clean")],
                [mean(mine, "certified")],
                error=[half_width([row["certified"] for row in mine])] if len(mine) > 2 else (),
                markers=True,
            )
            for (contender,), mine in groups(some, "contender").items()
            if mean(mine, "certified") > 0.75 * best
        ]
    path = folder / f"{name}.png"
    draw_panels(panels, path, Look("clean, %", "certified, %"))
    return [path]


STUDY = Study("images", cells, run_cell, tabulate, draw)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
