"""Seconds, iterations and proven gaps of the solvers on the networks of the literature.

    python -m benchmarks solver_times [--cases NAME ...] [--threads 1 2] [--data-dir DIR]

Every case: the native interior point at a relative gap of 1e-6 in L^2, and plain descent on the
multipliers (``descent.py``) until it is within 1e-3 of that optimum or its time is over; SCS and
Clarabel, with the same reductions and scaling, where they have a chance.  Rivals run straight after
the native solve, on the first number of threads, so ratios are taken under the same load.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from admm_lip.data import load_data
from admm_lip.methods.nominal import Nominal
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.solvers import (
    CertifyProblem,
    ProjectProblem,
    SolverConfig,
    solve_certify,
    solve_project,
    unit_slopes,
)
from admm_lip.training.fit import FitConfig, fit

from . import record
from .descent import descend

Weights = tuple[Tensor, ...]


def gaussian(*sizes: int, seed: int = 0) -> Weights:
    """Signed Gaussian weights, each layer divided by the square root of its inputs."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(m, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
        for n, m in pairwise(sizes)
    )


def one_label(weights: Weights) -> Weights:
    """The network's first output alone."""
    return (*weights[:-1], weights[-1][:1])


def trained(data_dir: str | None, *hidden: int) -> Weights:
    """A plain network on MNIST, five epochs."""
    data = load_data("mnist", data_dir)
    model = build_mlp(784, 10, ModelConfig(hidden, init="torch"), seed=0)
    settings = FitConfig(epochs=5, lr=2e-3)
    result = fit(model, data.train, Nominal(), settings, progress=False)
    return tuple(
        p.detach().to(torch.float64) for name, p in result.model.named_parameters() if p.ndim == 2
    )


# name -> (weights, rivals through cvxpy, goal in seconds on two cores)
Case = tuple[Callable[[str | None], Weights], tuple[str, ...], float | None]
CASES: dict[str, Case] = {
    "784-256-10 one label, random": (lambda d: one_label(gaussian(784, 256, 10)), ("scs",), 0.5),
    "784-256-10 one label, trained": (lambda d: one_label(trained(d, 256)), ("scs",), 0.5),
    "784-64-64-10": (lambda d: gaussian(784, 64, 64, 10), ("scs",), 0.1),
    "784-256-256-10": (lambda d: gaussian(784, 256, 256, 10), (), 2.0),
    "784-400-400-10": (lambda d: gaussian(784, 400, 400, 10), (), 5.0),
    "784-400-400-10, trained": (lambda d: trained(d, 400, 400), (), 5.0),
    "10 x 40 signed": (lambda d: gaussian(40, *([40] * 10), 40), ("scs",), None),
    "10 x 100 signed": (lambda d: gaussian(100, *([100] * 10), 100), (), 3.0),
    "16 x 64 chain": (lambda d: gaussian(64, *([64] * 15), 64), (), 2.0),
    "20 x 80 signed": (lambda d: gaussian(80, *([80] * 20), 80), (), None),
    "40-40-10": (lambda d: gaussian(40, 40, 10), ("clarabel", "scs"), None),
    "64 x 64 chain": (lambda d: gaussian(64, *([64] * 63), 64), (), 60.0),
}
WIDTHS = (32, 64, 128, 256, 384)
DEPTHS = (2, 4, 8, 16, 32)


def certify_case(
    weights: Weights, rivals: Sequence[str], limit: float, descent: bool = True
) -> dict[str, Any]:
    """Native, descent and the rivals on one network; rivals stop after ``limit`` seconds."""
    problem = CertifyProblem(weights, unit_slopes(weights))
    begun = time.perf_counter()
    native = solve_certify(problem, SolverConfig("native", fallback=()))
    row: dict[str, Any] = {
        "seconds": time.perf_counter() - begun,
        "lip": native.lip,
        "lower_lip": native.lower_lip,
        "gap": native.gap,
        "status": native.status.name,
        "iterations": native.iterations,
        "message": native.message,
    }
    if descent:
        plain = descend(weights, native.lip * (1.0 + 1e-3), limit)
        row["descent_seconds_to_1e-3"] = plain.seconds_to_target
        row["descent_excess"] = plain.lip / native.lip - 1.0
        row["descent_seconds"] = plain.seconds
    for name in rivals:
        begun = time.perf_counter()
        try:
            other = solve_certify(problem, SolverConfig(name, fallback=(), time_limit=limit))
            row[f"{name}_excess"], row[f"{name}_status"] = (
                other.lip / native.lip - 1,
                other.status.name,
            )
        except Exception as error:
            row[f"{name}_status"] = f"{type(error).__name__}: {error}"
        row[f"{name}_seconds"] = time.perf_counter() - begun
    return row


def warm_certify(weights: Weights, moved: float = 0.01, repeats: int = 9) -> dict[str, Any]:
    """Median seconds of a solve at gap 1e-3 from the multiplier of weights 1 % away."""
    config = SolverConfig("native", tol=1e-3, fallback=())
    cold = solve_certify(CertifyProblem(weights, unit_slopes(weights)), config)
    generator = torch.Generator().manual_seed(1)
    seconds, steps, gaps = [], [], []
    for _ in range(repeats):
        noise = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]
        near = tuple(
            w + moved * w.norm() / e.norm() * e for w, e in zip(weights, noise, strict=True)
        )
        problem = CertifyProblem(near, unit_slopes(near))
        begun = time.perf_counter()
        solution = solve_certify(problem, config, warm=cold.multiplier)
        seconds.append(time.perf_counter() - begun)
        steps.append(solution.iterations)
        gaps.append(solution.gap)
    return {
        "seconds": statistics.median(seconds),
        "iterations": max(steps),
        "gap": max(gaps),
        "cold_seconds": cold.seconds,
    }


def warm_projection(weights: Weights, rounds: int = 40) -> dict[str, Any]:
    """Median seconds of a projection at 1e-3 along a run: anchors drift by 3 % a round."""
    slopes = unit_slopes(weights)
    solution = solve_certify(CertifyProblem(weights, slopes), SolverConfig("native", tol=1e-4))
    multiplier = tuple(t / solution.lip**2 for t in solution.multiplier)
    consensus = (*weights[:-1], weights[-1] / solution.lip)
    generator = torch.Generator().manual_seed(2)
    drift = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]
    config, warm, seconds, steps = SolverConfig("native", tol=1e-3, fallback=()), None, [], []
    for _ in range(rounds):
        drift = [
            0.8 * d + 0.6 * torch.randn(d.shape, generator=generator, dtype=torch.float64)
            for d in drift
        ]
        anchor = tuple(
            w + 0.03 * w.norm() / d.norm() * d for w, d in zip(consensus, drift, strict=True)
        )
        problem = ProjectProblem(anchor, slopes, multiplier, bound=1.0)
        begun = time.perf_counter()
        projected = solve_project(problem, config, warm=warm)
        seconds.append(time.perf_counter() - begun)
        steps.append(projected.iterations)
        warm, consensus = projected.warm, projected.weights
    return {"seconds": statistics.median(seconds), "iterations": statistics.median(steps)}


def sweeps() -> dict[str, tuple[Weights, dict[str, int]]]:
    """Networks for the curves of seconds against width and depth."""
    by_width = {
        f"784-{n}-{n}-10": (gaussian(784, n, n, 10), {"width": n, "layers": 2}) for n in WIDTHS
    }
    by_depth = {
        f"{d} x 64": (gaussian(64, *([64] * d), 10), {"width": 64, "layers": d}) for d in DEPTHS
    }
    return by_width | by_depth


def main(argv: list[str]) -> None:
    """Run the chosen cases and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks solver_times", description=__doc__)
    parser.add_argument("--data-dir", default=None, help="folder that holds MNIST/raw")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--limit", type=float, default=60.0, help="seconds given to each rival")
    parser.add_argument("--no-sweeps", action="store_true", help="only the table")
    parser.add_argument("--record", default="solver_times", help="name of the record")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        print({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        record.save(options.record, vars(options) | {"data_dir": None}, rows)

    networks = {name: CASES[name][0](options.data_dir) for name in options.cases}
    solve_certify(CertifyProblem(gaussian(8, 8, 8), unit_slopes(gaussian(8, 8, 8))))  # loads BLAS
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, weights in networks.items():
            _, rivals, goal = CASES[name]
            first = threads == options.threads[0]
            row = certify_case(weights, rivals if first else (), options.limit, descent=first)
            add({"kind": "certify", "case": name, "threads": threads, "goal": goal} | row)
        for name, sizes in (
            ("784-64-64-10", (784, 64, 64, 10)),
            ("784-256-256-10", (784, 256, 256, 10)),
        ):
            stamp = {"case": name, "threads": threads}
            add({"kind": "warm projection", **stamp} | warm_projection(gaussian(*sizes)))
            add({"kind": "warm certify", **stamp} | warm_certify(gaussian(*sizes)))
        for name, (weights, shape) in {} if options.no_sweeps else sweeps().items():
            row = certify_case(weights, (), options.limit, descent=threads == options.threads[0])
            add({"kind": "sweep", "case": name, "threads": threads} | shape | row)
