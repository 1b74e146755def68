"""The paper's 2D toy: 2-10-10-3 tanh on 50 points in three concentric classes.

Decision regions, and the softmax along y = 0.5, of the nominal network, L2 regularisation, the
Lipschitz-margin loss, the penalty mu L^2 and the enforced bound.  Every run takes full batches for
the same number of Adam steps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from admm_lip.data import load_data

from .contenders import build, data_of, predictions, train_contender
from .measures import accuracy, steepest
from .pictures import Curve, Look, draw_panels, draw_regions
from .study import Cell, Row, Study, run_from_command_line
from .tables import groups, markdown, spread

SIDE, LINE = 101, 201
CLASSES = 3


def cells(settings: Cell) -> list[Cell]:
    """Every contender and seed."""
    return [
        {
            "data": "toy2d",
            "hidden": settings["hidden"],
            "activation": "tanh",
            "seed": seed,
            "contender": name,
            "method": row["method"],
            "options": row.get("options", {}),
            "train": settings["train"],
        }
        for seed in settings["seeds"]
        for name, row in settings["contenders"].items()
    ]


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Train, and look at the unit square."""
    data = data_of(cell, data_dir)
    trained = train_contender(build(2, CLASSES, cell), data.train, cell)
    axis = torch.linspace(0.0, 1.0, SIDE)
    second, first = torch.meshgrid(axis, axis, indexing="ij")
    regions = predictions(trained.model, torch.stack([first, second], dim=2).reshape(-1, 2))
    line = torch.linspace(0.0, 1.0, LINE)
    with torch.no_grad():
        logits = trained.model(torch.stack([line, torch.full_like(line, 0.5)], dim=1))
    return {
        "lip": trained.lip,
        "sampled": steepest(trained.model, data.test[0]),
        "train_accuracy": accuracy(trained.model, data.train),
        "test_accuracy": accuracy(trained.model, data.test),
        "seconds": trained.seconds,
        "cpu_seconds": trained.cpu_seconds,
        "confidence": [[round(v, 4) for v in p] for p in logits.softmax(dim=1).T.tolist()],
        "regions": "".join(map(str, regions.tolist())),
    }


def tabulate(rows: list[Row]) -> str:
    """Proven L, the steepest slope found, accuracy."""
    header = ["method", "seeds", "proven L", "sampled slope", "train %", "test %"]
    keys = ("lip", "sampled", "train_accuracy", "test_accuracy")
    lines = [
        [name, len(some), *(spread(some, key, 1) for key in keys)]
        for (name,), some in groups(rows, "contender").items()
    ]
    return markdown(header, lines)


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """The first seed: regions, and the confidence in each class along y = 0.5."""
    first = min(row["seed"] for row in rows)
    chosen = [row for row in rows if row["seed"] == first]
    points, labels = load_data("toy2d").train
    regions = {
        f"{row['contender']}, L = {row['lip']:.3g}": np.array(
            list(row["regions"]), dtype=np.uint8
        ).reshape(SIDE, SIDE)
        for row in chosen
    }
    pictures = [folder / "toy2d_regions.png", folder / "toy2d_confidence.png"]
    draw_regions(regions, points.double().numpy(), labels.numpy(), pictures[0])
    line = np.linspace(0.0, 1.0, LINE).tolist()
    panels = {
        f"class {k}": [Curve(row["contender"], line, row["confidence"][k]) for row in chosen]
        for k in range(CLASSES)
    }
    draw_panels(panels, pictures[1], Look("first input, at second input 0.5", "softmax"))
    return pictures


STUDY = Study("toy2d", cells, run_cell, tabulate, draw)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
