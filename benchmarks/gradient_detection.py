"""Attacks told from clean inputs by the norm of the model's Jacobian.

    python -m benchmarks gradient_detection --data-dir DIR [--seeds 0 1 2 3 4]

MNIST, the network of the gradient study, undefended and with the TV + Lip penalty.  The threshold
is calibrated on 1,000 validation pictures for 5 % false alarms; false alarms are counted, and the
curves drawn, on the second half of the test pictures; attacks start from the first half, from
pictures that are classified correctly, and count where they succeed.  The evasive attack minimises
the very score it is measured by; being wrong and flat needs room, so it gets twice the radius too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from admm_lip.evaluation.attacks import AttackConfig, fooled, pgd
from admm_lip.research.attack_suite import (
    EvasiveConfig,
    NearestConfig,
    boundary,
    carlini_wagner,
    deepfool,
    evasive,
)
from admm_lip.research.detection import auc, calibrate, roc, score

from . import record
from .catalogue import parser_of
from .gradient_plots import plot_detection
from .gradient_setting import SETTINGS, Pair, load_parts, method_of, predictions, trained

Row = dict[str, Any]
RADIUS = 1.5
BOX = (0.0, 1.0)
MODELS = {"undefended": ("undefended", 0.0, 0.0), "tv_lip": ("tv_lip", 0.01, 0.3)}
# (norm of the Jacobian, what is differentiated)
MEASURES = (
    ("2_inf", "probabilities"),
    ("frobenius", "probabilities"),
    ("2_inf", "logits"),
    ("frobenius", "logits"),
)
GRID = torch.linspace(0.0, 1.0, 101)

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def blind_attacks(rows: int) -> dict[str, Attack]:
    """The attacks that do not know of a detector."""
    near = NearestConfig(steps=20, searches=3, clip=BOX)
    walk = NearestConfig(steps=300, clip=BOX)
    inside = AttackConfig(steps=20, restarts=2, clip=BOX, batch_size=rows)
    return {
        "pgd": lambda model, x, y: pgd(model, x, y, RADIUS, inside),
        "deepfool": lambda model, x, y: deepfool(model, x, y, near),
        "carlini_wagner": lambda model, x, y: carlini_wagner(model, x, y, near),
        "boundary": lambda model, x, y: boundary(model, x, y, walk),
    }


def evasive_attacks(kind: str, output: str) -> dict[str, Attack]:
    """The attacks that know this score."""
    config = EvasiveConfig(kind=kind, output=output, steps=30, clip=BOX)
    return {
        "evasive": lambda model, x, y: evasive(model, x, y, RADIUS, config),
        "evasive_2x": lambda model, x, y: evasive(model, x, y, 2 * RADIUS, config),
    }


def detected(
    model: nn.Module, pair: Pair, found: Tensor, clean: Pair, validation: Pair, measure: Any
) -> Row:
    """Reject rate, area and curve of one attack under one measure."""
    kind, output = measure
    x, y = pair
    wrong = fooled(model, found, y)
    quiet = score(model, clean[0], kind, output)
    detector = calibrate(score(model, validation[0], kind, output))
    row: Row = {
        "kind": kind,
        "output": output,
        "threshold": detector.threshold,
        "false_alarms": float(detector.rejects(quiet).float().mean()),
        "success": float(wrong.float().mean()),
        "successes": int(wrong.sum()),
    }
    if not bool(wrong.any()):
        return row
    caught = score(model, found[wrong], kind, output)
    area, curve = auc(quiet, caught), roc(quiet, caught)
    at = torch.searchsorted(curve.false_positive, GRID.double(), right=True) - 1
    lengths = torch.linalg.vector_norm((found - x)[wrong].flatten(1), dim=1)
    return row | {
        "rejected": float(detector.rejects(caught).float().mean()),
        "auc": area.value,
        "auc_low": area.low,
        "auc_high": area.high,
        "median_l2": float(lengths.median()),
        "false_positive": [round(float(v), 4) for v in GRID],
        "true_positive": [round(float(v), 4) for v in curve.true_positive[at]],
    }


def one_model(name: str, seed: int, data_dir: str | None, epochs: int, count: int) -> list[Row]:
    """Every attack under every measure, for one trained network."""
    parts = load_parts(SETTINGS["mnist"], data_dir)
    model = trained(parts.train, method_of(*MODELS[name]), seed, epochs).model
    half = len(parts.test[1]) // 2
    x, y = (v[:half] for v in parts.test)
    clean = (parts.test[0][half:], parts.test[1][half:])
    right = predictions(model, x) == y
    pair = (x[right][:count], y[right][:count])
    rows = []

    def add(attack: str, found: Tensor, measure: Any) -> None:
        row = detected(model, pair, found, clean, parts.validation, measure)
        rows.append({"model": name, "seed": seed, "attack": attack} | row)
        short = {k: v for k, v in rows[-1].items() if not isinstance(v, list)}
        print(short, flush=True)

    for attack, function in blind_attacks(count).items():
        found = function(model, *pair)
        for measure in MEASURES:
            add(attack, found, measure)
    for measure in MEASURES[::2]:
        for attack, function in evasive_attacks(*measure).items():
            add(attack, function(model, *pair), measure)
    return rows


def main(argv: list[str]) -> None:
    """Run all seeds, write the record and the curves."""
    parser = parser_of("gradient_detection")
    parser.add_argument("--data-dir", default=None, help="folder that holds MNIST/raw")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rows", type=int, default=100, help="pictures attacked")
    parser.add_argument("--record", default="gradient_detection", help="name of the record")
    options = parser.parse_args(argv)
    rows = []
    for seed in options.seeds:
        for name in MODELS:
            rows += one_model(name, seed, options.data_dir, options.epochs, options.rows)
    path = record.save(options.record, vars(options) | {"data_dir": None, "radius": RADIUS}, rows)
    curves = [r for r in rows if r["kind"] == "2_inf" and "auc" in r]
    plot_detection(curves, path.with_suffix(".png"))
