"""MNIST 14 x 14 with 196-50-10 and MNIST with 784-50-50-10, the paper's networks.

Accuracy, proven L, accuracy under Gaussian and uniform noise (the paper's figure) and under
projected gradient ascent, for the nominal network, L2 regularisation, the Lipschitz-margin loss,
the penalty and the enforced bound, all on plain cross-entropy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .contenders import build, data_of, train_contender
from .measures import accuracy, attacked, steepest, under_noise
from .pictures import Curve, Look, draw_panels
from .study import Cell, Row, Study, run_from_command_line
from .tables import groups, markdown, mean, spread


def cells(settings: Cell) -> list[Cell]:
    """Every case, contender and seed."""
    shared = {key: settings[key] for key in ("noise", "radii", "attacked_rows", "limit")}
    return [
        {
            **shared,
            **case,
            "case": name,
            "seed": seed,
            "contender": contender,
            "method": row["method"],
            "options": row.get("options", {}),
            "train": {**settings["train"], **row.get("train", {})},
        }
        for seed in settings["seeds"]
        for name, case in settings["cases"].items()
        for contender, row in settings["contenders"].items()
    ]


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Train, then disturb the test inputs."""
    data = data_of(cell, data_dir)
    trained = train_contender(build(data.n_features, data.n_outputs, cell), data.train, cell)
    x, y = data.test
    few = (x[: cell["attacked_rows"]], y[: cell["attacked_rows"]])
    return {
        "lip": trained.lip,
        "sampled": steepest(trained.model, few[0]),
        "clean": accuracy(trained.model, data.test),
        "attacked": attacked(trained.model, few, cell["radii"]),
        "seconds": trained.seconds,
        "cpu_seconds": trained.cpu_seconds,
        **{
            name: under_noise(trained.model, data.test, name, sizes)
            for name, sizes in cell["noise"].items()
        },
    }


def tabulate(rows: list[Row]) -> str:
    """Clean accuracy, proven L, and accuracy at the strongest noise and at each attack."""
    noise, radii = rows[0]["noise"], rows[0]["radii"]
    header = ["network", "method", "seeds", "proven L", "clean %"]
    header += [f"{name} {sizes[-1]:g}" for name, sizes in noise.items()]
    header += [f"PGD {r:g}" for r in radii]
    lines = []
    for (case, name), some in groups(rows, "case", "contender").items():
        line: list[Any] = [case, name, len(some), spread(some, "lip"), spread(some, "clean")]
        line += [f"{_at(some, noise_name, -1):.1f}" for noise_name in noise]
        lines.append([*line, *(f"{_at(some, 'attacked', k):.1f}" for k in range(len(radii)))])
    return markdown(header, lines)


def _at(rows: list[Row], key: str, place: int) -> float:
    return mean([{"value": row[key][place]} for row in rows], "value")


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Per network: accuracy against each noise, and against the attack's radius."""
    noise, radii = rows[0]["noise"], rows[0]["radii"]
    swept = [(name, f"{name} noise", sizes) for name, sizes in noise.items()]
    swept.append(("attacked", "attack, l2", [0.0, *radii]))
    panels = {}
    for (case,), some in groups(rows, "case").items():
        for key, label, sizes in swept:
            panels[f"{case}: {label}"] = [
                Curve(name, sizes, _means(mine, key, len(sizes)), markers=True)
                for (name,), mine in groups(some, "contender").items()
            ]
    path = folder / "mnist_noise.png"
    draw_panels(panels, path, Look("size of the disturbance", "accuracy, %"))
    return [path]


def _means(rows: list[Row], key: str, count: int) -> list[float]:
    """Mean curve; the attack's begins at the clean accuracy."""
    found = [_at(rows, key, k) for k in range(len(rows[0][key]))]
    return found if len(found) == count else [mean(rows, "clean"), *found]


STUDY = Study(
    "mnist_noise",
    cells,
    run_cell,
    tabulate,
    draw,
)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
