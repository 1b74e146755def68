"""The theory of gradient penalties in three pictures, the estimates of distances, and the cost.

    python -m benchmarks gradient_theory

1. A tenth of the labels of a line corrupted: a network with the Lipschitz penalty beside the exact
   minimiser, a linear program (figure 1 of Finlay et al., arXiv 1808.09540).
2. The regularisation lemma along the weight: R(f_w) <= C / w.
3. The rate at which the minimiser of n samples approaches that of infinitely many, on a curve.

Then, on digits, the heuristic estimates of the distance to an adversarial example beside the
certified radius of the same network; and what a training step costs, in processor time, the
methods taking turns.
"""

from __future__ import annotations

import importlib
import math
import statistics
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn

from admm_lip import certified_radii, certify
from admm_lip.data import load_data
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.research.attack_suite import NearestConfig, carlini_wagner
from admm_lip.research.comparators.gradient import InputGradient
from admm_lip.research.comparators.nominal import Nominal
from admm_lip.research.distances import estimate_distances
from admm_lip.research.input_gradients import GradientPenalty, penalised_loss
from admm_lip.training.train import TrainConfig

from . import record
from .catalogue import parser_of
from .gradient_plots import plot_theory
from .whole_run import train

Row = dict[str, Any]
cp: Any = importlib.import_module("cvxpy")  # untyped
Vector = NDArray[np.float64]


def exact_fit(t: Vector, y: Vector, weight: float, power: int) -> tuple[Vector, float, float]:
    """Minimise ``mean |u - y|^power + weight Lip(u)`` over functions of a line, at its points.

    Returns the values, the Lipschitz constant and the mean loss.
    """
    u, lip = cp.Variable(len(t)), cp.Variable(nonneg=True)
    loss = cp.sum(cp.abs(u - y) if power == 1 else cp.square(u - y)) / len(t)
    slopes = cp.abs(cp.diff(u)) <= lip * np.diff(t)
    cp.Problem(cp.Minimize(loss + weight * lip), [slopes]).solve(solver="CLARABEL")
    return np.asarray(u.value), float(lip.value), float(loss.value)


def corrupted(seed: int = 3, n: int = 40) -> tuple[Vector, Vector]:
    """A sine on [0, 1] with a tenth of the labels drawn anew."""
    generator = np.random.default_rng(seed)
    t = np.linspace(0.0, 1.0, n)
    y = np.sin(2 * math.pi * t)
    bad = generator.choice(n, n // 10, replace=False)
    y[bad] = generator.uniform(-2.0, 2.0, n // 10)
    return t, y


def network_fit(t: Vector, y: Vector, weight: float, fine: Vector) -> Vector:
    """A tanh network trained on the same objective, on a fine grid."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    ).double()
    x, targets = torch.from_numpy(t)[:, None], torch.from_numpy(y)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9985)
    for _ in range(2500):
        optimizer.zero_grad()
        penalty = GradientPenalty(largest=weight, step=1e-3)
        penalised_loss(model, x, targets, absolute, penalty).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        values: Vector = model(torch.from_numpy(fine)[:, None])[:, 0].numpy()
    return values


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    """|u - y| per sample."""
    return (outputs[:, 0] - targets).abs()


def fit_panel() -> Row:
    """The data of the first picture."""
    t, y = corrupted()
    fine = np.linspace(0.0, 1.0, 801)
    weight = 0.02
    exact, lip, loss = exact_fit(t, y, weight, 1)
    found = network_fit(t, y, weight, fine)
    at_points = np.interp(t, fine, found)
    steepest = float(np.abs(np.diff(found)).max() * 800)
    return {
        "points": t.tolist(),
        "labels": y.tolist(),
        "exact": exact.tolist(),
        "fine": fine.tolist(),
        "network": found.tolist(),
        "exact_objective": loss + weight * lip,
        "network_objective": float(np.abs(at_points - y).mean()) + weight * steepest,
        "exact_lip": lip,
        "network_lip": steepest,
    }


def lemma_panel() -> list[Row]:
    """Exact minimisers along the weight."""
    t, y = corrupted()
    constant = float(np.abs(y - np.median(y)).mean())
    rows = []
    for weight in np.logspace(-3, 0, 13):
        _, lip, loss = exact_fit(t, y, float(weight), 1)
        bound = constant / weight
        rows.append({"weight": float(weight), "lip": lip, "loss": loss, "bound": bound})
    return rows


def rate_panel(slope: float = 2.0, weight: float = 0.1) -> list[Row]:
    """Squared error against the known limit ``a/2 + (a - 6 w)(t - 1/2)`` for labels ``a t``."""
    generator = np.random.default_rng(0)
    rows = []
    for n in (10, 20, 40, 80, 160, 320, 640):
        errors = []
        for _ in range(10):
            t = np.sort(generator.uniform(0.0, 1.0, n))
            u, _, _ = exact_fit(t, slope * t, weight, 2)
            limit = slope / 2 + (slope - 6 * weight) * (t - 0.5)
            errors.append(float(np.square(u - limit).mean()))
        bound = (math.log(n) / n) ** (1 / 3)
        rows.append({"samples": n, "error": sum(errors) / len(errors), "bound": bound})
    return rows


def distance_rows(seeds: tuple[int, ...] = (0, 1, 2)) -> list[Row]:
    """Certified radius <= attack distance, and where the heuristic estimates lie."""
    data = load_data("digits")
    x, y = data.test
    rows = []
    for name, method in (("undefended", Nominal()), ("tv_lip", InputGradient(0.3, 0.03))):
        for seed in seeds:
            config = TrainConfig(epochs=20, batch_size=128, lr=3e-3, seed=seed)
            start = build_mlp(64, 10, ModelConfig((32, 32)), seed=seed)
            model = train(start, data.train, config, method=method, progress=False).model
            with torch.no_grad():
                right = model(x).argmax(dim=1) == y
            u, v = x[right], y[right]
            certified = certified_radii(model, u, v, certificate=certify(model))
            found = carlini_wagner(model, u, v, NearestConfig(steps=40))
            attack = (found - u).norm(dim=1)
            estimates = estimate_distances(model, u, v)
            margins = estimate_distances(model, u, v, loss="margin")
            row: Row = {"model": name, "seed": seed, "rows": len(v)}
            for label, values in (
                ("certified", certified),
                ("first_order_cross_entropy", estimates.first_order),
                ("first_order_margin", margins.first_order),
                ("steepest_cross_entropy", estimates.steepest),
                ("steepest_margin", margins.steepest),
            ):
                row[f"{label}_median"] = float(values.median())
                row[f"{label}_exceeds_attack"] = float((values > attack).float().mean())
            rows.append(row | {"attack_median": float(attack.median())})
    return rows


def networks() -> dict[str, tuple[tuple[int, ...], nn.Module]]:
    """Networks whose training steps are timed: shape of an input, module."""

    def conv(*steps: tuple[int, int, int]) -> list[nn.Module]:
        return [m for i, o, s in steps for m in (nn.Conv2d(i, o, 3, s, 1), nn.ReLU())]

    def normalised(i: int, o: int, s: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, s, 1), nn.BatchNorm2d(o), nn.ReLU()]

    deep = [(3, 16, 1), (16, 32, 2), (32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    return {
        "mlp 784-256-256-10": ((784,), build_mlp(784, 10, ModelConfig((256, 256)))),
        "conv 2 layers, 28x28": (
            (1, 28, 28),
            nn.Sequential(*conv((1, 8, 2), (8, 16, 2)), nn.Flatten(), nn.Linear(784, 10)),
        ),
        "conv 6 layers, 32x32": (
            (3, 32, 32),
            nn.Sequential(*conv(*deep), nn.Flatten(), nn.Linear(4096, 10)),
        ),
        "conv 3 layers + batch norm, 28x28": (
            (1, 28, 28),
            nn.Sequential(
                *normalised(1, 16, 2), *normalised(16, 32, 1), *normalised(32, 32, 2),
                nn.Flatten(), nn.Linear(32 * 49, 10),
            ),
        ),
    }  # fmt: skip


PENALTIES = {
    "plain": None,
    "tv": GradientPenalty(0.01),
    "tv_lip": GradientPenalty(0.01, 0.1),
    "squared": GradientPenalty(squared=0.1),
    "tv_lip_double": GradientPenalty(0.01, 0.1, scheme="double"),
}


def cost_rows(repeats: int) -> list[Row]:
    """Processor time of a training step over that of a plain one, medians, methods in turn."""
    rows = []
    for name, (shape, model) in networks().items():
        x, y = torch.rand(128, *shape), torch.randint(0, 10, (128,))
        optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
        times: dict[str, list[float]] = {key: [] for key in PENALTIES}
        for _ in range(repeats):
            for key, penalty in PENALTIES.items():
                begun = time.process_time()
                optimizer.zero_grad()
                if penalty is None:
                    value = functional.cross_entropy(model(x), y)
                else:
                    value = penalised_loss(model, x, y, functional.cross_entropy, penalty)
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                times[key].append(time.process_time() - begun)
        medians = {key: statistics.median(values[2:]) for key, values in times.items()}
        ratios = {key: value / medians["plain"] for key, value in medians.items()}
        rows.append({"network": name, "plain_ms": 1e3 * medians["plain"], **ratios})
        print(rows[-1], flush=True)
    return rows


def main(argv: list[str]) -> None:
    """Compute the three panels, the estimates and the cost; write record and picture."""
    parser = parser_of("gradient_theory")
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of each method")
    options = parser.parse_args(argv)
    panels = {"fit": fit_panel(), "lemma": lemma_panel(), "rate": rate_panel()}
    settings = vars(options) | panels | {"distances": distance_rows()}
    for row in settings["distances"]:
        print(row)
    path = record.save("gradient_theory", settings, cost_rows(options.repeats))
    plot_theory(panels, path.with_suffix(".png"))
