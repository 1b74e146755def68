"""Convolutions under L = 1 by this package and by others: accuracy, and cost over no bound.

    python -m benchmarks image_peers --data-dir DIR

One network, one loop, one loss and one schedule for all; step sizes are chosen on validation rows.
A row of test rows trains the network without a bound, the contender, and the network without a
bound again, one after another, so that the ratio compares times taken under the same load; the
start and the certificate, once a run, are not in it but in ``besides``.  Whatever a package claims,
every bound here is the product of the norms of plain layers (of modules, where they are what is
trained), proven and checked again.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from admm_lip import TrainConfig, TrainResult
from admm_lip.certificates.torus.product import certify_product
from admm_lip.networks.chain import read_network
from admm_lip.networks.convnets import build_convnet
from admm_lip.networks.sorting_torch import MaxMin
from admm_lip.research.comparators import METHODS
from admm_lip.training.method import Method

from .contenders import Pair, data_of, judged
from .image_bounds import deep_random
from .peer_convolutions import OrthogoniumConvolutions, TorchlipConvolutions
from .study import Cell, Row, Study, run_from_command_line
from .tables import groups, markdown, mean, spread
from .whole_run import train, with_share_of_core

# Packages whose versions a row states, by method.
DISTRIBUTIONS = {"torchlip": "deel-torchlip", "orthogonium": "orthogonium"}
PEERS: dict[str, type[Method]] = {
    "nominal": METHODS["nominal"],
    "torchlip": TorchlipConvolutions,
    "orthogonium": OrthogoniumConvolutions,
}
# Settings of a bound, which others have not.
_OURS = ("round_steps", "balls")


def cells(settings: Cell) -> list[Cell]:
    """Validation rows of some step sizes, and test rows of every contender, network and seed."""
    found = []
    for task, about in settings["tasks"].items():
        like = {key: about[key] for key in ("data", "limit", "eps", "network", "accuracy")}
        for name, row in settings["contenders"].items():
            if task not in row["seeds"]:
                continue
            config = {**settings["train"], **about["train"], **row.get("train", {})}
            cell = {**like, "task": task, "contender": name, "method": row["method"]}
            cell["activation"] = row["activation"]
            held = settings["rates"] if about["accuracy"] and row["validated"] else []
            found += [
                {**cell, "train": {**config, "lr": lr}, "seed": 0, "validation": True}
                for lr in held
            ]
            found += [
                {**cell, "train": config, "seed": seed, "validation": False}
                for seed in range(row["seeds"][task])
            ]
    return found


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Train the contender, between two runs without a bound where seconds are compared."""
    data = data_of({**cell, "limit": None}, data_dir).as_images()
    (x, y), (u, v) = data.train, data.test
    x, y = x[: cell["limit"]], y[: cell["limit"]]
    middle = x.mean(dim=0)
    rows, unseen = (x - middle, y), (u - middle, v)
    model = network(cell, data.shape, data.n_outputs)
    if cell["validation"]:
        return _judged(_trained(model, rows, cell)[0], unseen, cell)
    free = {**cell, "method": "nominal"}
    # The first run of a process is slower than those behind it: it is not counted.
    few = (rows[0][: 4 * cell["train"]["batch_size"]], y[: 4 * cell["train"]["batch_size"]])
    _trained(model, few, {**free, "train": {**cell["train"], "epochs": 1}})
    before = _trained(model, rows, free)[1]
    begun = time.process_time()
    result, seconds = _trained(model, rows, cell)
    besides = time.process_time() - begun - seconds
    plain = 0.5 * (before + _trained(model, rows, free)[1])
    row: Row = {
        "cpu_seconds": seconds,
        "besides": besides,
        "plain": plain,
        "ratio": seconds / plain,
    }
    if (package := DISTRIBUTIONS.get(cell["method"])) is not None:
        row["version"] = version(package)
    return {**row, **_judged(result, unseen, cell)} if cell["accuracy"] else row


def network(cell: Cell, shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """The network of a cell in plain layers, drawn by its seed."""
    if cell["network"] != "deep":
        return build_convnet(
            cell["network"], shape, outputs, activation=cell["activation"], seed=cell["seed"]
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell["seed"])
        layers = list(deep_random().model.children())
    if cell["activation"] == "max_min":
        layers = [MaxMin() if isinstance(m, nn.ReLU) else m for m in layers]
    return nn.Sequential(*layers)


def _trained(model: nn.Module, rows: Pair, cell: Cell) -> tuple[TrainResult, float]:
    """What training returns, and its processor seconds."""
    ours = cell["method"] == "admm"
    given = cell["train"] if ours else {k: v for k, v in cell["train"].items() if k not in _OURS}
    asked: dict[str, Any] = {"bound": 1.0, "start": "scratch"} if ours else {"lip": 1.0}
    config = TrainConfig(**asked, seed=cell["seed"], **given)
    method = None if ours else PEERS[cell["method"]]()
    result, share = with_share_of_core(
        lambda: train(model, rows, config, method=method, progress=False)
    )
    return result, result.seconds * share


def _judged(result: TrainResult, rows: Pair, cell: Cell) -> Row:
    """Accuracy on rows not seen, clean and certified by what the layers' norms prove."""
    proof = certify_product(read_network(result.model, tuple(rows[0].shape[1:])))
    return judged(result.model, proof, rows, cell["eps"])


def tabulate(rows: list[Row]) -> str:
    """Accuracies, bounds and seconds over those of the loop that enforces nothing."""
    header = ["task", "rows", "contender", "lr", "seeds", "clean %", "certified %", "L"]
    lines = []
    for (task, held, name, rate), some in groups(
        [{**row, "rate": row["train"]["lr"]} for row in rows],
        *("task", "validation", "contender", "rate"),
    ).items():
        judged = "certified" in some[0]
        lines.append(
            [
                task,
                "validation" if held else "test",
                name,
                f"{rate:g}",
                len(some),
                *(spread(some, key) if judged else "" for key in ("clean", "certified")),
                f"{mean(some, 'lip'):.4f}" if judged else "",
                *("" if held else f"{mean(some, key):.1f}" for key in ("cpu_seconds", "besides")),
                "" if held else spread(some, "ratio"),
            ]
        )
    return markdown([*header, "CPU s", "besides", "over no bound"], lines)


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """No picture."""
    return []


STUDY = Study("image_peers", cells, run_cell, tabulate, draw, jobs=1, timed=True)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
