"""Seconds, iterations and proven gaps of the solvers on the networks of the literature.

    python -m benchmarks solver_times [--only PART ...] [--threads 1 2] [--data-dir DIR]

Every case: the native solver at a relative gap of 1e-6 in L^2, and plain descent on the
multipliers (``descent.py``) until it is within 1e-3 of that optimum or its time is over; SCS and
Clarabel, with the same reductions and scaling, where they have a chance.  Rivals run straight after
the native solve, on the first number of threads, so ratios are taken under the same load.

``--only 64x64 784`` runs the cases whose name, without blanks, holds one of the parts; the rows of
the others stay in the record.  ``cpu_seconds`` tells a busy machine from a slow solver;
``peak_gib`` is the most memory that the process has held so far: run large cases alone for theirs.
"""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from admm_lip import TrainConfig
from admm_lip.data import load_data
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.research.comparators.nominal import Nominal
from admm_lip.solvers import (
    CertifyProblem,
    CertifySolution,
    ProjectProblem,
    SolverConfig,
    solve_certify,
    solve_project,
    unit_slopes,
)

from . import descent, record
from .catalogue import chosen, parser_of
from .random_networks import Weights, gaussian
from .whole_run import train

Row = dict[str, Any]


def one_label(weights: Weights) -> Weights:
    """The network's first output alone."""
    return (*weights[:-1], weights[-1][:1])


def trained(data_dir: str | None, *hidden: int) -> Weights:
    """A plain network on MNIST, five epochs."""
    data = load_data("mnist", data_dir)
    model = build_mlp(784, 10, ModelConfig(hidden, init="torch"), seed=0)
    settings = TrainConfig(epochs=5, lr=2e-3)
    result = train(model, data.train, settings, method=Nominal(), progress=False)
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
# name -> sizes of the networks that are solved again after a small move.
_WARM = ", warm"
WARM = {
    f"784-64-64-10{_WARM}": (784, 64, 64, 10),
    f"784-256-256-10{_WARM}": (784, 256, 256, 10),
}
# Beyond what is solved densely: name -> network and the relative gap in L^2 to prove.
LARGE: dict[str, tuple[Callable[[], Weights], float]] = {
    "70 x 120 signed": (lambda: gaussian(120, *([120] * 70), 120), 1e-3),
    "100 x 80 signed": (lambda: gaussian(80, *([80] * 100), 80), 1e-3),
}
# Too large for an optimum: a bound against the closed forms, under a time limit in seconds.
HUGE: dict[str, tuple[Callable[[], Weights], float]] = {
    "50 x 1000": (lambda: gaussian(1000, *([1000] * 50), 1000), 300.0),
}


def certified(weights: Weights, config: SolverConfig) -> tuple[CertifySolution, dict[str, Any]]:
    """One native solve and what was measured of it."""
    problem = CertifyProblem(weights, unit_slopes(weights))
    begun, cpu = time.perf_counter(), time.process_time()
    native = solve_certify(problem, config)
    return native, {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "lip": native.lip,
        "lower_lip": native.lower_lip,
        "gap": native.gap,
        "status": native.status.name,
        "iterations": native.iterations,
        "message": native.message,
    }


def huge_case(weights: Weights, limit: float) -> dict[str, Any]:
    """The bound that the time allows, over the closed form of ECLipsE-Fast and the norms."""
    fast = descent.forward_start(weights, 1.0)
    closed = descent.log_lip_sq(weights, fast)
    norms = math.prod(float(torch.linalg.matrix_norm(w, 2)) for w in weights)
    # Without a fallback: nothing else could hold the matrix.
    native, row = certified(weights, SolverConfig(time_limit=limit, fallback=()))
    if closed is not None:
        row["closed_form_over_bound"] = math.exp(0.5 * float(closed)) / native.lip
    return row | {"norm_product_over_bound": norms / native.lip}


def certify_case(
    weights: Weights, rivals: Sequence[str], limit: float, plain: bool = True
) -> dict[str, Any]:
    """Native, descent and the rivals on one network; rivals stop after ``limit`` seconds."""
    problem = CertifyProblem(weights, unit_slopes(weights))
    native, row = certified(weights, SolverConfig("native", fallback=()))
    if plain:
        rival = descent.descend(weights, native.lip * (1.0 + 1e-3), limit)
        row["descent_seconds_to_1e-3"] = rival.seconds_to_target
        row["descent_excess"] = rival.lip / native.lip - 1.0
        row["descent_seconds"] = rival.seconds
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


def run_case(name: str, weights: Weights, threads: int, first: bool, limit: float) -> list[Row]:
    """The rows of one case on one number of threads; rivals take part at the first one."""
    stamp = {"case": name.removesuffix(_WARM), "threads": threads}
    if name in WARM:
        return [
            {"kind": "warm projection", **stamp} | warm_projection(weights),
            {"kind": "warm certify", **stamp} | warm_certify(weights),
        ]
    if name in LARGE:
        tol = LARGE[name][1]
        row = certified(weights, SolverConfig("native", tol=tol, fallback=()))[1]
        return [{"kind": "large", **stamp, "tol": tol} | row]
    if name in HUGE:
        return [{"kind": "huge", **stamp} | huge_case(weights, HUGE[name][1])]
    _, rivals, goal = CASES[name]
    row = certify_case(weights, rivals if first else (), limit, plain=first)
    return [{"kind": "certify", **stamp, "goal": goal} | row]


def weights_of(name: str, data_dir: str | None) -> Weights:
    """The network of a case."""
    if name in CASES:
        return CASES[name][0](data_dir)
    for table in (LARGE, HUGE):
        if name in table:
            return table[name][0]()
    return gaussian(*WARM[name])


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The new rows in the place of old ones of the same kind, case and threads, or at the end."""

    def key(row: Row) -> tuple[Any, ...]:
        return row["kind"], row["case"], row["threads"]

    latest = {key(row): row for row in [*old, *new]}
    return list(latest.values())


def main(argv: list[str]) -> None:
    """Run the chosen cases and write the record."""
    parser = parser_of("solver_times")
    parser.add_argument("--data-dir", default=None, help="folder that holds MNIST/raw")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", default=[], help="parts of the names of cases")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds given to each rival")
    parser.add_argument("--record", default="solver_times", help="name of the record")
    options = parser.parse_args(argv)
    names = chosen(parser, options.only, [*CASES, *LARGE, *HUGE, *WARM])
    rows: list[Row] = record.load(options.record)["rows"] if options.only else []
    load_blas()
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name in names:
            weights = weights_of(name, options.data_dir)
            first = threads == options.threads[0]
            new = run_case(name, weights, threads, first, options.limit)
            for row in new:
                print({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
            rows = merged(rows, new)
            record.save(options.record, vars(options) | {"data_dir": None}, rows)


def load_blas() -> None:
    """A small solve, so that the first case does not pay for loading libraries."""
    weights = gaussian(8, 8, 8)
    solve_certify(CertifyProblem(weights, unit_slopes(weights)))
