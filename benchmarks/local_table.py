"""The networks and pictures of SDP-CROWN's comparison (ICML 2025, Table 1): certified l2 balls.

    python -m benchmarks local_table --networks DIR [--count 100] [--jobs 1] [--only LEVEL]

``DIR`` holds four of its nine networks, and the first 100 of its 200 pictures of each data set.
Per network: pictures that a projected-gradient attack leaves, which no certificate can exceed;
pictures certified by one pairwise certificate for all inputs and at each local level, a level only
for what cheaper ones leave open; processor seconds of one thread per picture.  The pairwise
certificate, and those of the first pictures, are proven anew.  The published shares beside them are
of all 200 pictures, their seconds of a V100.
``--only`` makes the rows of one level anew and leaves the others of the record as they are.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from admm_lip import certified_radii, certify, verify
from admm_lip.evaluation.attacks import AttackConfig, fooled, pgd
from admm_lip.local import LocalConfig, certify_local, verify_local

from . import record
from .balls_paired import network, pictures
from .catalogue import parser_of
from .certificates import timed

# Radius in units of pixels from 0 to 1, scale of the model's inputs, box, and the published shares
# that the attack leaves and that SDP-CROWN certifies (per cent of 200), with its seconds.
Case = tuple[float, float, tuple[float, float] | None, tuple[float, float, float]]
CASES: dict[str, Case] = {
    "mnist_mlp": (1.0, 1.0, (0.0, 1.0), (54.0, 32.5, 2.5)),
    "mnist_convsmall": (0.3, 1.0, (0.0, 1.0), (84.5, 81.5, 12.0)),
    "cifar10_cnn_a": (24 / 255, 0.225, None, (55.5, 49.0, 12.0)),
    "cifar10_convsmall": (24 / 255, 0.225, None, (52.5, 43.5, 9.0)),
}
LEVELS = ("norms", "quadratic", "tuned")
# Of the search for a metric: about as far as it goes.
_METRIC_STEPS = 1000
# Networks whose relaxation is small enough for the dearest level.
_SMALL = {"mnist_mlp": ("semidefinite",)}
# The first pictures, whose certificates are proven anew, and the others.
_PARTS = slice(0, 10), slice(10, None)
Row = dict[str, Any]


def left_by_attack(model: nn.Module, x: Tensor, y: Tensor, case: Case) -> int:
    """Pictures of the right class that no attack changes."""
    radius, scale, box, _ = case
    config = AttackConfig(steps=80, restarts=4, clip=box)
    moved = pgd(model, x, y, radius / scale, config)
    return int(((model(x).argmax(1) == y) & ~fooled(model, moved, y)).sum())


def level_row(model: nn.Module, x: Tensor, y: Tensor, case: Case, level: str) -> Row:
    """One level on all pictures."""
    radius, scale, box, _ = case
    config = LocalConfig(
        level,
        box=box,
        input_scale=None if scale == 1.0 else scale,
        metric_steps=_METRIC_STEPS,
        decide=True,
    )
    certified, seconds = 0, 0.0
    for some in _PARTS:
        found, cost = timed(partial(certify_local, model, x[some], radius, y[some], config=config))
        certified, seconds = certified + int(found.robust.sum()), seconds + cost.cpu
        if some.start == 0:
            verify_local(found, model)
    return {"level": level, "certified": certified, "cpu_seconds_each": seconds / len(x)}


def pairs_row(model: nn.Module, x: Tensor, y: Tensor, case: Case) -> Row:
    """One certificate for all inputs, of every pair of outputs, checked again."""
    radius, scale, _, _ = case
    made = partial(certify, model, tuple(x.shape[1:]), kind="pairwise", progress=False)
    certificate, cost = timed(made)
    verify(certificate, model)
    radii = certified_radii(model, x, y, certificate=certificate)
    certified = int((radii >= radius / scale).sum())
    return {"level": "pairs", "certified": certified, "cpu_seconds_each": cost.cpu / len(x)}


def network_rows(folder: Path, count: int, only: str | None, name: str) -> list[Row]:
    """All levels of a network, or one of them, beside what is published."""
    torch.set_num_threads(1)
    levels = ["pairs", *LEVELS, *_SMALL.get(name, ())]
    levels = [level for level in levels if only in (None, level)]
    if not levels:
        return []
    model, (x, y) = network(folder, name).eval(), pictures(folder, name, count)
    attack, crown, seconds = CASES[name][3]
    about = {
        "network": name,
        "pictures": len(x),
        "right": int((model(x).argmax(1) == y).sum()),
        "attack_leaves": left_by_attack(model, x, y, CASES[name]),
        "published_attack_leaves": attack,
        "published_sdp_crown": crown,
        "published_seconds": seconds,
    }
    case = CASES[name]
    return [
        about
        | (
            pairs_row(model, x, y, case)
            if level == "pairs"
            else level_row(model, x, y, case, level)
        )
        for level in levels
    ]


def _beside(rows: list[Row], settings: dict[str, Any]) -> tuple[list[Row], dict[str, Any]]:
    """New rows among those of the record, which were made with its settings."""
    old = record.load("local_table")
    kept = [row for row in old["rows"] if row["level"] != settings["only"]]
    order = list(CASES)
    every = sorted(kept + rows, key=lambda row: order.index(row["network"]))
    return every, {**settings, "other_rows": old["settings"] | {"date": old["date"]}}


def main(argv: list[str]) -> None:
    """Run, print and record."""
    parser = parser_of("local_table")
    parser.add_argument("--networks", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time, each one thread")
    parser.add_argument("--only", help="a level whose rows alone are made anew")
    options = parser.parse_args(argv)
    rows: list[Row] = []
    made = partial(network_rows, options.networks, options.count, options.only)
    with ProcessPoolExecutor(options.jobs) as pool:
        for found in pool.map(made, CASES):
            rows += found
            if found:
                print(*found, sep="\n", flush=True)
    settings = {"count": options.count, "threads": 1, "jobs": options.jobs}
    settings |= {"metric_steps": _METRIC_STEPS}
    if options.only is not None:
        rows, settings = _beside(rows, settings | {"only": options.only})
    record.save("local_table", settings, rows)
