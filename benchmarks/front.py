"""Penalty against enforced bound, and what else trades accuracy for a small L: the whole front.

MNIST 14 x 14, 196-50-10, plain cross-entropy for every contender, each over a grid of its own
strength.  A point is (proven L, accuracy); certified accuracy is counted at fixed radii.
"""

from __future__ import annotations

from pathlib import Path

from .contenders import build, data_of, train_contender
from .measures import accuracy, certified, steepest
from .pictures import Curve, Look, draw_panels
from .study import Cell, Row, Study, run_from_command_line
from .tables import groups, markdown, mean, spread

COLLAPSED = 0.05
SLOPE_ROWS = 500


def cells(settings: Cell) -> list[Cell]:
    """Every seed, contender and strength."""
    shared = {key: settings[key] for key in ("data", "limit", "hidden", "radii", "train")}
    return [
        {
            **shared,
            "seed": seed,
            "contender": name,
            "strength": strength,
            "method": row["method"],
            "options": {**row.get("options", {}), row["knob"]: strength},
        }
        for seed in settings["seeds"]
        for name, row in settings["contenders"].items()
        for strength in row["grid"]
    ]


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """One point of the front."""
    data = data_of(cell, data_dir)
    trained = train_contender(build(data.n_features, data.n_outputs, cell), data.train, cell)
    return {
        "lip": trained.lip,
        "tightness": steepest(trained.model, data.test[0][:SLOPE_ROWS]) / max(trained.lip, 1e-12),
        "clean": accuracy(trained.model, data.test),
        "certified": certified(trained, data.test, cell["radii"]),
        "seconds": trained.seconds,
        "cpu_seconds": trained.cpu_seconds,
    }


def tabulate(rows: list[Row]) -> str:
    """Every point: strength, proven L, steepest slope found over it, accuracies, seconds."""
    radii = rows[0]["radii"]
    header = ["method", "strength", "seeds", "proven L", "tightness", "clean %"]
    header += [f"certified {r:g}" for r in radii] + ["CPU s"]
    lines = []
    for (name, strength), some in groups(rows, "contender", "strength").items():
        line = [name, f"{strength:g}", len(some), spread(some, "lip")]
        line += [f"{mean(some, 'tightness'):.3f}", spread(some, "clean")]
        line += [f"{_certified(some, k):.1f}" for k in range(len(radii))]
        lines.append([*line, f"{mean(some, 'cpu_seconds'):.1f}"])
    return markdown(header, lines)


def _certified(rows: list[Row], place: int) -> float:
    return mean([{"value": row["certified"][place]} for row in rows], "value")


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Clean accuracy, and certified accuracy at each radius, against the proven L.

    Networks that collapsed to a constant (``L < COLLAPSED``) are in the table alone.
    """
    rows = [row for row in rows if row["lip"] >= COLLAPSED]
    panels: dict[str, list[Curve]] = {"clean": []}
    panels |= {f"certified at {r:g}": [] for r in rows[0]["radii"]}
    for (name,), mine in groups(rows, "contender").items():
        points = sorted(
            (mean(some, "lip"), mean(some, "clean"), [_certified(some, k) for k in _places(some)])
            for some in groups(mine, "strength").values()
        )
        lips = [lip for lip, _, _ in points]
        panels["clean"].append(Curve(name, lips, [clean for _, clean, _ in points], markers=True))
        for place, radius in enumerate(rows[0]["radii"]):
            values = [proven[place] for _, _, proven in points]
            panels[f"certified at {radius:g}"].append(Curve(name, lips, values, markers=True))
    path = folder / "front.png"
    draw_panels(panels, path, Look("proven Lipschitz constant", "test rows, %", log_x=True))
    return [path]


def _places(rows: list[Row]) -> range:
    return range(len(rows[0]["radii"]))


STUDY = Study("front", cells, run_cell, tabulate, draw)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
