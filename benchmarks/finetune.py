"""What a trained network is worth as a start under a bound, against training from scratch.

MNIST 784-64-64-10 networks that somebody trained, plainly or against PGD, are brought under bound 1
in two epochs on all or some of the training rows, and compared with two epochs from an orthogonal
start on the same rows.  The variants leave out one part of the recipe at a time; ``all, no labels``
sees inputs alone.  What scratch is granted (step size, batch size) is chosen for every number of
rows on held-out rows, by networks trained on the others; nothing of the recipe was chosen on test
rows.  The networks given have seen all labels, the fine-tuning only those of its rows.
"""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from admm_lip import TrainConfig, certified_radii, certify, project
from admm_lip.certificates.certificate import AnyCertificate
from admm_lip.data import DataSet, load_data
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.training.finetune import FinetuneConfig

from .certificates import SUBJECTS, timed, trained
from .contenders import Pair
from .measures import accuracy
from .study import Cell, Row, Study, run_from_command_line
from .tables import groups, markdown, mean, spread
from .whole_run import train

_SHARED = ("data", "hidden", "bound", "eps", "epochs")


def cells(settings: Cell) -> list[Cell]:
    """Every number of rows, variant, network given and seed."""
    shared = {key: settings[key] for key in _SHARED}
    found: list[Cell] = []
    for (variant, options), rows in itertools.product(
        settings["variants"].items(), settings["samples"]
    ):
        subjects = [None] if options.get("scratch") else settings["subjects"]
        if rows not in options.get("samples", [rows]):
            continue
        cell = {**shared, "samples": rows, "variant": variant}
        for subject, seed in itertools.product(subjects, settings["seeds"]):
            found.append({**cell, "subject": subject, "seed": seed, "options": options})
    return found


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Fine-tune or train, then count."""
    data = load_data(cell["data"], data_dir)
    run = next((f for name, f in _RUNS.items() if cell["options"].get(name)), _from_given)
    row, model, certificate = run(cell, data, data_dir)
    row["clean"] = accuracy(model, data.test)
    row["certified"] = _certified(model, data.test, certificate, cell["eps"])
    if cell["options"].get("untouched"):  # elsewhere pairs add .1 to .2
        pairs = certify(model, kind="pairwise", progress=False)
        row["certified_pairs"] = _certified(model, data.test, pairs, cell["eps"])
    return row


def _from_scratch(
    cell: Cell, data: DataSet, data_dir: str | None
) -> tuple[Row, nn.Module, AnyCertificate]:
    """Orthogonal start; step and batch size chosen on held-out rows."""
    held = data.split(validation=1 / 6, seed=0)
    grid = cell["options"]["grid"]
    choices = [dict(zip(grid, v, strict=True)) for v in itertools.product(*grid.values())]

    def judged(choice: Row) -> float:
        result, _ = _trained(cell, choice, _first(held.train, cell["samples"]), 100)
        return _certified(result.model, held.test, result.certificate, cell["eps"])

    best = max(choices, key=judged) if len(choices) > 1 else choices[0]
    result, cost = _trained(cell, best, _first(data.train, cell["samples"]), cell["seed"])
    return {**best, "cpu_seconds": cost}, result.model, result.certificate


def _trained(cell: Cell, choice: Row, pair: Pair, seed: int) -> tuple[Any, float]:
    fresh = build_mlp(pair[0].shape[1], 10, ModelConfig(tuple(cell["hidden"])), seed=seed)
    config = TrainConfig(
        bound=cell["bound"],
        epochs=cell["epochs"],
        loss="margin",
        eps=cell["eps"],
        start="scratch",
        seed=seed,
        **choice,
    )
    result, cost = timed(lambda: train(fresh, pair, config, progress=False))
    return result, cost.cpu


def _from_given(
    cell: Cell, data: DataSet, data_dir: str | None
) -> tuple[Row, nn.Module, AnyCertificate]:
    """A network that somebody trained, brought under the bound."""
    given = _given(cell["subject"], cell["data"], data_dir, tuple(cell["hidden"]), cell["seed"])
    options = dict(cell["options"])
    labels = options.pop("labels", True)
    options.pop("samples", None)
    x, y = _first(data.train, cell["samples"])
    config = FinetuneConfig(eps=cell["eps"], seed=cell["seed"], **options)
    found, cost = timed(
        lambda: project(
            given,
            cell["bound"],
            finetune=(x, y) if labels else x,
            epochs=cell["epochs"],
            config=config,
            judge=False,
            progress=False,
        )
    )
    return {"distance": found.distance, "cpu_seconds": cost.cpu}, found.model, found.certificate


def _as_given(
    cell: Cell, data: DataSet, data_dir: str | None
) -> tuple[Row, nn.Module, AnyCertificate]:
    """A network that somebody trained, untouched."""
    given = _given(cell["subject"], cell["data"], data_dir, tuple(cell["hidden"]), cell["seed"])
    certificate = certify(given)
    return {"lip": certificate.lip, "cpu_seconds": 0.0}, given, certificate


# What a variant's options say of where its network comes from.
_RUNS = {"scratch": _from_scratch, "untouched": _as_given}


@cache
def _given(
    subject: str, name: str, data_dir: str | None, hidden: tuple[int, ...], seed: int
) -> nn.Module:
    return trained(SUBJECTS[subject], load_data(name, data_dir).train, seed, hidden).eval()


def _first(pair: Pair, count: int | None) -> Pair:
    """Some rows of a pair, drawn by a fixed seed: files are often sorted by label."""
    order = torch.randperm(len(pair[1]), generator=torch.Generator().manual_seed(1))[:count]
    return pair[0][order], pair[1][order]


def _certified(model: nn.Module, pair: Pair, certificate: AnyCertificate, eps: float) -> float:
    radii = certified_radii(model, *pair, certificate=certificate)
    return 100.0 * float((radii > eps).double().mean())


def tabulate(rows: list[Row]) -> str:
    """One line per start, variant and number of rows."""
    lines = [
        [
            samples or "all",
            subject or "-",
            variant,
            spread(found, "clean"),
            spread(found, "certified"),
            spread(found, "certified_pairs") if variant == "given" else "",
            mean(found, "cpu_seconds"),
        ]
        for (samples, subject, variant), found in groups(
            rows, "samples", "subject", "variant"
        ).items()
    ]
    head = ["rows", "given", "variant", "clean", "certified", "certified, pairs", "cpu s"]
    return markdown(head, lines)


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Nothing: the table says it."""
    return []


STUDY = Study(
    "finetune",
    cells,
    run_cell,
    tabulate,
    draw,
    jobs=1,
)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
