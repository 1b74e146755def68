"""Plain convolutions trained under L = 1, one norm ball per layer, beside a dense network.

    python -m benchmarks image_training --data-dir DIR

The first pictures of MNIST and of CIFAR-10, a few epochs; a contender's own data, radius or
settings stand in its row.  Every certificate is proven by the package and checked again; processor
seconds are of training and certificate together, on one thread, and ``cost`` is what they are over
those of the same loop over the same network with nothing enforced.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from admm_lip import TrainConfig, TrainResult, certify, project
from admm_lip.data import DataSet
from admm_lip.networks.convnets import build_convnet
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.research.comparators import METHODS
from admm_lip.training.finetune import FinetuneConfig
from admm_lip.training.projected import Projection

from .contenders import data_of, judged
from .study import Cell, Row, Study, run_from_command_line
from .tables import groups, markdown, mean, spread
from .whole_run import train

_NETWORK = ("convnet", "width", "hidden", "activation", "bound")
_TASK = ("data", "limit", "eps")
# Pixels by which moved pictures are shifted at most, each time anew; whose are mirrored as well.
_SHIFT, _MIRRORED = 2, ("cifar10",)


def cells(settings: Cell) -> list[Cell]:
    """The test rows of every contender and seed, and validation rows of some step sizes."""
    found = []
    for name, row in settings["contenders"].items():
        plain = {key: row[key] for key in (*_NETWORK, "moved", "given") if key in row}
        like = {**{k: row.get(k, settings[k]) for k in _TASK}, "contender": name, **plain}
        config = {**settings["train"], "eps": like["eps"], **row.get("train", {})}
        if row["validated"]:
            found += [
                {**like, "train": {**config, "lr": lr}, "seed": 0, "validation": True}
                for lr in settings["rates"]
            ]
        found += [
            {**like, "train": config, "seed": seed, "validation": False}
            for seed in range(row["seeds"])
        ]
    return found


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Train one network, certify it, and measure it on the rows that it has not seen."""
    data = data_of({**cell, "limit": None}, data_dir)
    data = data.as_images() if "convnet" in cell else data
    (x, y), (u, v) = data.train, data.test
    x, y = x[: cell["limit"]], y[: cell["limit"]]
    middle = x.mean(dim=0)
    begun = time.process_time()
    if cell.get("moved"):
        moves = {"shift": _SHIFT, "mirror": cell["data"] in _MIRRORED}
        cell = {**cell, "train": {**cell["train"], **moves}}
    model, given = _network(data, cell), Row()
    if "given" in cell:
        seen = (data.train[0] - middle, data.train[1])
        model, begun, given = _given(model, seen, (u - middle, v), cell)
    result = _trained(model, (x - middle, y), cell)
    spent = time.process_time() - begun
    proof = result.certificate if "bound" in cell else None
    found = judged(result.model, proof, (u - middle, v), cell["eps"])
    return {**given, "cpu_seconds": spent, **found}


def _network(data: DataSet, cell: Cell) -> nn.Module:
    if "convnet" in cell:
        how = {"width": cell.get("width", 1.0), "activation": cell["activation"]}
        return build_convnet(cell["convnet"], data.shape, data.n_outputs, **how, seed=cell["seed"])
    hidden = ModelConfig(tuple(cell["hidden"]), cell["activation"])
    return build_mlp(data.n_features, data.n_outputs, hidden, seed=cell["seed"])


def _given(model: nn.Module, rows: Any, test: Any, cell: Cell) -> tuple[nn.Module, float, Row]:
    """A network trained on all rows without a bound, when it was ready, and what it is."""
    config = TrainConfig(lip=1.0, seed=cell["seed"], **{**cell["train"], **cell["given"]})
    model = train(model, rows, config, method=METHODS["nominal"](), progress=False).model
    lip = certify(model, tuple(test[0].shape[1:])).lip
    with torch.no_grad():
        right = (model(test[0]).argmax(dim=1) == test[1]).double()
    found = {"given_lip": lip, "given_clean": 100.0 * float(right.mean())}
    return model, time.process_time(), found


def _trained(model: nn.Module, data: Any, cell: Cell) -> TrainResult | Projection:
    if "given" in cell:
        names = ("batch_size", "lr", "eps")
        tuning = FinetuneConfig(**{k: v for k, v in cell["train"].items() if k in names})
        epochs = cell["train"]["epochs"]
        return project(
            model, cell["bound"], finetune=data, epochs=epochs, config=tuning, progress=False
        )
    if "bound" in cell:
        config = TrainConfig(
            bound=cell["bound"], start="scratch", seed=cell["seed"], **cell["train"]
        )
        return train(model, data, config, progress=False)
    config = TrainConfig(lip=1.0, seed=cell["seed"], **cell["train"])
    return train(model, data, config, method=METHODS["nominal"](), progress=False)


def tabulate(rows: list[Row]) -> str:
    """Clean and certified accuracy, and seconds over those of the loop that enforces nothing."""
    header = ["rows", "network", "lr", "seeds", "clean %", "certified %", "L", "CPU s", "cost"]
    lines = []
    for (held, name, rate), some in groups(
        [{**row, "rate": row["train"]["lr"]} for row in rows], "validation", "contender", "rate"
    ).items():
        proven = "certified" in some[0]
        free = [row for row in rows if "bound" not in row and _work(row) == _work(some[0])]
        seconds = mean(some, "cpu_seconds")
        lines.append(
            [
                "validation" if held else "test",
                name,
                f"{rate:g}",
                len(some),
                spread(some, "clean"),
                spread(some, "certified") if proven else "",
                f"{mean(some, 'lip'):.4f}" if proven else "",
                f"{seconds:.1f}",
                f"{seconds / mean(free, 'cpu_seconds'):.2f}" if free else "",
            ]
        )
    return markdown(header, lines)


def _work(row: Row) -> tuple[object, ...]:
    """What is trained on what, for how long."""
    sizes = (row.get(key) for key in ("data", "limit", "convnet", "width", "hidden"))
    return (*map(str, sizes), row["train"]["epochs"])


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """No picture."""
    return []


STUDY = Study("image_training", cells, run_cell, tabulate, draw, jobs=1)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
