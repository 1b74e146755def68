"""The same run with every solver backend: the same answer, and the seconds each took.

A short training under a bound, every projection by one backend and no fallback; then the trained
network is certified by the same backend.  Answers are compared with those of the native backend.
"""

from __future__ import annotations

from pathlib import Path

import torch

from admm_lip import SolverConfig, TrainConfig
from admm_lip.networks.chain import linear_layers, read_network
from admm_lip.solvers import CertifyProblem, Slopes, solve_certify

from .contenders import build, data_of
from .measures import accuracy
from .pictures import Curve, Look, draw_panels
from .study import Cell, Row, Study, run_from_command_line
from .tables import groups, markdown
from .whole_run import train


def cells(settings: Cell) -> list[Cell]:
    """Every case and backend."""
    return [
        {"case": name, **case, "seed": settings["seed"], "backend": backend}
        for name, case in settings["cases"].items()
        for backend in settings["backends"]
    ]


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Train with one backend and certify the result with it."""
    data = data_of(cell, data_dir)
    solver = SolverConfig(cell["backend"], tol=cell["tol"], fallback=())
    config = TrainConfig(
        seed=cell["seed"], solver=solver, projection_tol=cell["tol"], **cell["train"]
    )
    result = train(build(data.n_features, data.n_outputs, cell), data.train, config, progress=False)
    chain = read_network(result.model).chain()
    slopes = tuple(Slopes(torch.as_tensor(s.alpha), torch.as_tensor(s.beta)) for s in chain.slopes)
    problem = CertifyProblem(tuple(map(torch.from_numpy, chain.weights)), slopes)
    solution = solve_certify(problem, solver)
    weights = [layer.weight.detach().double() for layer in linear_layers(result.model)]
    return {
        "lip": solution.lip,
        "certify_seconds": solution.seconds,
        "loss": result.history[-1]["loss"],
        "test_accuracy": accuracy(result.model, data.test),
        "rounds": len(result.history),
        "seconds": result.seconds,
        "round_ms": 1e3 * result.seconds / len(result.history),
        "weights": torch.cat([w.flatten() for w in weights]).tolist(),
    }


def tabulate(rows: list[Row]) -> str:
    """Per case: distance of the weights from the native run's, L, seconds of both steps."""
    header = [
        "case",
        "backend",
        "rounds",
        "distance",
        "proven L",
        "test %",
        "round, ms",
        "certify, s",
    ]
    lines = []
    for (case,), some in groups(rows, "case").items():
        first = torch.tensor(some[0]["weights"])
        for row in some:
            away = float((torch.tensor(row["weights"]) - first).norm() / first.norm())
            lines.append(
                [
                    case,
                    row["backend"],
                    row["rounds"],
                    f"{away:.1e}",
                    f"{row['lip']:.6f}",
                    f"{row['test_accuracy']:.1f}",
                    f"{row['round_ms']:.1f}",
                    f"{row['certify_seconds']:.3f}",
                ]
            )
    return markdown(header, lines)


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Milliseconds of a round against the case."""
    names = list(groups(rows, "case"))
    places = {name: float(k) for k, (name,) in enumerate(names)}
    curves = [
        Curve(
            backend,
            [places[row["case"]] for row in some],
            [row["round_ms"] for row in some],
            markers=True,
        )
        for (backend,), some in groups(rows, "backend").items()
    ]
    path = folder / "backends.png"
    title = ", ".join(f"{k} = {name}" for k, (name,) in enumerate(names))
    draw_panels({title: curves}, path, Look("case", "ms per round", log_y=True))
    return [path]


STUDY = Study("backends", cells, run_cell, tabulate, draw, jobs=1, timed=True)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
