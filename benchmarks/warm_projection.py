"""Warm-started projections on the anchors of consecutive ADMM rounds.

    python -m benchmarks warm_projection [--data-dir DIR] [--seeds 0 1] [--threads 1]

One epoch of MNIST training under bound 1 is run with the default settings and every anchor kept.
The anchors are then projected again in their order, each from the restart data of the one before,
at the tolerance of the training; the first tenth, where the run warms up, is left out of the
figures.  Seconds are medians, by the clock and of processor time (which other work on the machine
disturbs less).  A cold projection of the last anchor stands beside them.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from admm_lip import TrainConfig
from admm_lip.data import load_data
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.solvers import ProjectProblem, ProjectSolution, SolverConfig, solve_project
from admm_lip.training import round as one_round
from admm_lip.training.admm_state import AdmmState
from admm_lip.training.lipschitz_step import lipschitz_step
from admm_lip.training.terms import LayerNorms, Terms

from . import record
from .catalogue import parser_of
from .whole_run import train

HIDDEN = {"784-64-64-10": (64, 64), "784-256-256-10": (256, 256)}


def recorded(data: Any, hidden: tuple[int, ...], config: TrainConfig) -> list[ProjectProblem]:
    """The projections that a run asks for, in their order."""
    problems: list[ProjectProblem] = []

    def listen(anchor: Any, state: AdmmState, terms: Terms) -> ProjectSolution:
        slopes = terms.slopes
        assert not isinstance(slopes, LayerNorms)
        problems.append(ProjectProblem(anchor, slopes, state.multiplier, bound=state.lip))
        return lipschitz_step(anchor, state, terms)

    model = build_mlp(data[0].shape[1], 10, ModelConfig(hidden), seed=config.seed)
    with mock.patch.object(one_round, "lipschitz_step", listen):
        train(model, data, config, progress=False)
    return problems


def replayed(problems: list[ProjectProblem], solver: SolverConfig) -> dict[str, Any]:
    """Seconds and iterations: each warm from the one before, and the last one from cold."""
    warm, rows = None, []
    for problem in problems:
        wall, cpu = time.perf_counter(), time.process_time()
        solution = solve_project(problem, solver, warm=warm)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rows.append((wall, cpu, solution.iterations))
        warm = solution.warm
    settled = rows[len(rows) // 10 :]
    begun = time.process_time()
    cold = solve_project(problems[-1], solver)
    return {
        "projections": len(settled),
        "seconds": statistics.median(s for s, _, _ in settled),
        "cpu_seconds": statistics.median(s for _, s, _ in settled),
        "slowest_tenth_cpu_seconds": statistics.quantiles([s for _, s, _ in settled], n=10)[-1],
        "iterations": statistics.mean(i for _, _, i in settled),
        "cold_cpu_seconds": time.process_time() - begun,
        "cold_iterations": cold.iterations,
    }


def main(argv: list[str]) -> None:
    """Record and replay both networks, and write the record."""
    parser = parser_of("warm_projection")
    parser.add_argument("--data-dir", default=None, help="folder that holds MNIST/raw")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    options = parser.parse_args(argv)
    data = load_data("mnist", options.data_dir).train
    rows = []
    for name, hidden in HIDDEN.items():
        for seed in options.seeds:
            config = TrainConfig(bound=1.0, loss="margin", epochs=1, seed=seed)
            problems = recorded(data, hidden, config)
            solver = replace(config.solver, tol=config.projection_tol)
            for threads in options.threads:
                torch.set_num_threads(threads)
                row = {"case": name, "seed": seed, "threads": threads, "tol": solver.tol}
                rows.append(row | replayed(problems, solver))
                print(rows[-1], flush=True)
    record.save("warm_projection", vars(options) | {"data_dir": None}, rows)
