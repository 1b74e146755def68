"""Input-gradient penalties on a small convolutional network: the orderings of the paper's table 2.

    python -m benchmarks gradient_study --data-dir DIR [--sets mnist cifar10] [--seeds 0 1 2 3 4]

Six ways of training, the same network, pictures, epochs and batches for all.  Each method's
strength is chosen from three values by one run of a seed of its own, on validation pictures: the
lowest error under the l2 attack among those whose clean error is at most 2 points above the
undefended network's (tv_lip keeps the eps that was chosen for tv, and chooses lambda;
squared_double keeps the strength of squared).  The test pictures are used once.

The orderings of the paper (arXiv 1808.09540, table 2, CIFAR-10 with a ResNeXt-34; the last two:
arXiv 1905.11468) are hypotheses here, at another scale.  Over the seeds, paired: supported or
contradicted where the 95 % t-interval of the mean difference excludes 0, else undecided.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor, nn

from admm_lip.evaluation.attacks import AttackConfig, fooled, gradient_free, pgd
from admm_lip.research.attack_suite import NearestConfig, carlini_wagner, deepfool
from admm_lip.research.distances import estimate_distances
from admm_lip.research.input_gradients import jacobian_norms, loss_gradient_norms

from . import record
from .catalogue import parser_of
from .gradient_plots import plot_study
from .gradient_setting import SETTINGS, Pair, Parts, Setting, load_parts, method_of, trained

Row = dict[str, Any]
METHODS = ("undefended", "fgsm", "tv", "tv_lip", "squared", "squared_double")
SELECTION_SEED = 100
ALLOWANCE = 2.0  # points of clean error

# (statement, quantity, the method that has less of it, the method that has more)
HYPOTHESES = (
    ("TV lowers the clean error", "clean_error", "tv", "undefended"),
    ("Lip costs clean error", "clean_error", "tv", "tv_lip"),
    ("FGSM lowers the l2 attack error", "l2_error", "fgsm", "undefended"),
    ("TV lowers the l2 attack error more than FGSM", "l2_error", "tv", "fgsm"),
    ("Lip lowers the l2 attack error further", "l2_error", "tv_lip", "tv"),
    ("FGSM has the lower linf attack error", "linf_error", "fgsm", "tv"),
    ("TV's median l2 distance exceeds FGSM's", "median_l2", "fgsm", "tv"),
    ("Lip's median l2 distance exceeds TV's", "median_l2", "tv", "tv_lip"),
    ("FGSM lowers the mean gradient", "mean_loss_gradient", "fgsm", "undefended"),
    ("TV lowers the mean gradient more than FGSM", "mean_loss_gradient", "tv", "fgsm"),
    ("Lip lowers the largest gradient", "max_loss_gradient", "tv_lip", "tv"),
    ("The squared penalty lowers the l2 attack error", "l2_error", "squared", "undefended"),
    ("Differences beat double backpropagation", "l2_error", "squared", "squared_double"),
)


def attacked_error(model: nn.Module, pair: Pair, norm: str, radius: float, rows: int) -> float:
    """Per cent of the first ``rows`` wrong after PGD (2 ascents) and a gradient-free search."""
    x, y = pair[0][:rows], pair[1][:rows]
    config = AttackConfig(norm=norm, steps=20, restarts=2, clip=(0.0, 1.0))  # type: ignore[arg-type]
    wrong = fooled(model, x, y)
    for attack in (pgd, gradient_free):
        wrong |= fooled(model, attack(model, x, y, radius, config), y)
    return percent(wrong)


def percent(flags: Tensor) -> float:
    """Share of true entries, in per cent."""
    return 100.0 * float(flags.float().mean())


def distances(model: nn.Module, pair: Pair, rows: int) -> Row:
    """Median distances found by the nearest-example attacks, on rows that are right at first."""
    x, y = pair[0][:rows], pair[1][:rows]
    right = ~fooled(model, x, y)
    x, y = x[right], y[right]
    config = NearestConfig(steps=20, searches=3, clip=(0.0, 1.0))
    near = carlini_wagner(model, x, y, config)
    l2 = found_distance(model, x, y, near, 2.0)
    largest = NearestConfig(norm="linf", steps=30, clip=(0.0, 1.0))
    linf = found_distance(model, x, y, deepfool(model, x, y, largest), math.inf)
    estimates = estimate_distances(model, x, y)
    return {
        "median_l2": float(l2.median()),
        "median_linf": float(linf.median()),
        "first_order_median": float(estimates.first_order.median()),
        "first_order_exceeds_attack": percent(estimates.first_order > l2),
        "steepest_median": float(estimates.steepest.median()),
        "steepest_exceeds_attack": percent(estimates.steepest > l2),
    }


def found_distance(model: nn.Module, x: Tensor, y: Tensor, found: Tensor, p: float) -> Tensor:
    """Distances ``(n,)`` of adversarial points, infinite where none was found."""
    length: Tensor = torch.linalg.vector_norm((found - x).flatten(1), ord=p, dim=1)
    return length.where(fooled(model, found, y), math.inf)


def measured(model: nn.Module, pair: Pair, setting: Setting, rows: int) -> Row:
    """Everything that is reported of one network."""
    x, y = pair
    loss_gradient = loss_gradient_norms(model, x, y)
    jacobian = jacobian_norms(model, x)
    return {
        "clean_error": percent(fooled(model, x, y)),
        "l2_error": attacked_error(model, pair, "l2", setting.radius_l2, rows),
        "linf_error": attacked_error(model, pair, "linf", setting.radius_linf, rows),
        "mean_loss_gradient": float(loss_gradient.mean()),
        "max_loss_gradient": float(loss_gradient.max()),
        "mean_jacobian": float(jacobian.mean()),
        "max_jacobian": float(jacobian.max()),
        **distances(model, pair, rows),
    }


def select(
    parts: Parts, setting: Setting, epochs: int, rows: int
) -> tuple[dict[str, float], list[Row]]:
    """The strength of every method, and the validation runs that decided."""
    tried: list[Row] = []

    def score(name: str, strength: float, tv: float) -> Row:
        model = trained(parts.train, method_of(name, strength, tv), SELECTION_SEED, epochs).model
        row = {
            "set": setting.name,
            "method": name,
            "strength": strength,
            "clean_error": percent(fooled(model, *parts.validation)),
            "l2_error": attacked_error(model, parts.validation, "l2", setting.radius_l2, rows),
        }
        tried.append(row)
        print("validation", row, flush=True)
        return row

    limit = score("undefended", 0.0, 0.0)["clean_error"] + ALLOWANCE
    chosen = {"undefended": 0.0}
    for name, grid in setting.grids.items():
        found = [score(name, strength, chosen.get("tv", 0.0)) for strength in grid]
        allowed = [r for r in found if r["clean_error"] <= limit]
        best = min(allowed or found, key=lambda r: r["l2_error" if allowed else "clean_error"])
        chosen[name] = best["strength"]
    return chosen | {"squared_double": chosen["squared"]}, tried


def run(
    setting: Setting, data_dir: str | None, seeds: list[int], epochs: int, rows: int
) -> tuple[list[Row], list[Row]]:
    """All networks of one data set; every seed's methods run one after the other."""
    parts = load_parts(setting, data_dir)
    chosen, tried = select(parts, setting, epochs, rows)
    found = []
    for seed in seeds:
        for name in METHODS:
            method = method_of(name, chosen[name], chosen["tv"])
            result = trained(parts.train, method, seed, epochs)
            row = {"set": setting.name, "seed": seed, "method": name, "strength": chosen[name]}
            row |= {"seconds": result.seconds} | measured(result.model, parts.test, setting, rows)
            found.append(row)
            print(
                {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True
            )
    return found, tried


def verdicts(rows: list[Row]) -> list[Row]:
    """Each hypothesis on each data set, by the paired differences over the seeds."""
    found = []
    for name in dict.fromkeys(row["set"] for row in rows):
        for statement, quantity, less, more in HYPOTHESES:
            low, high = (
                [r[quantity] for r in rows if r["set"] == name and r["method"] == m]
                for m in (less, more)
            )
            mean, reach = interval([b - a for a, b in zip(low, high, strict=True)])
            verdict = "undecided" if abs(mean) <= reach else "supported"
            if mean < -reach:
                verdict = "contradicted"
            found.append(
                {"set": name, "hypothesis": statement, "quantity": quantity}
                | {"difference": mean, "plus_minus": reach, "verdict": verdict}
            )
    return found


def interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """Mean, and half the width of its t-interval (infinite for one value)."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, math.inf
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1) / count)
    return mean, float(student.ppf(0.5 + 0.5 * level, count - 1)) * spread


def main(argv: list[str], show: Callable[[list[Row], list[Row], Path], None] = plot_study) -> None:
    """Run the study, print its verdicts, write its record and its picture."""
    parser = parser_of("gradient_study")
    parser.add_argument("--data-dir", default=None, help="folder of the image sets")
    parser.add_argument("--sets", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rows", type=int, default=300, help="pictures attacked")
    parser.add_argument("--record", default="gradient_study", help="name of the record")
    options = parser.parse_args(argv)
    rows, tried = [], []
    for name in options.sets:
        found, runs = run(
            SETTINGS[name], options.data_dir, options.seeds, options.epochs, options.rows
        )
        rows += found
        tried += runs
    judged = verdicts(rows)
    for row in judged:
        print(row)
    settings = vars(options) | {"data_dir": None, "validation": tried, "verdicts": judged}
    path = record.save(options.record, settings, rows)
    show(rows, judged, path.with_suffix(".png"))
