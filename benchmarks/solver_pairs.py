"""Processor seconds of the native solver against those of another version of it, pair by pair.

    python -m benchmarks solver_pairs --before CHECKOUT [--only PART ...] [--pairs 3]

``CHECKOUT`` is a folder with the other version's ``solvers``.  Every solve runs in a process of its
own on one thread, the two versions in turn, and the ratio is taken within a pair: a machine that
others use slows both.  Gap 1e-6, as in ``solver_times``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import record
from .catalogue import chosen, parser_of

if TYPE_CHECKING:
    from admm_lip.solvers import CertifyProblem

# Short solves are repeated, and the least time counts.
_MOST_SOLVES, _ENOUGH = 9, 2.0
HERE = Path(__file__).resolve().parents[1]


def chain(*sizes: int) -> Callable[[], CertifyProblem]:
    """A network of fully connected layers."""

    def build() -> CertifyProblem:
        from admm_lip.solvers import CertifyProblem, unit_slopes

        from .random_networks import gaussian

        weights = gaussian(*sizes)
        return CertifyProblem(weights, unit_slopes(weights))

    return build


def residual(depth: int, width: int) -> Callable[[], CertifyProblem]:
    """A chain of residual blocks."""

    def build() -> CertifyProblem:
        from .random_networks import residual_chain

        return residual_chain(depth, width)

    return build


CASES: dict[str, Callable[[], CertifyProblem]] = {
    "784-64-64-10": chain(784, 64, 64, 10),
    "784-256-1": chain(784, 256, 1),
    "784-256-256-10": chain(784, 256, 256, 10),
    "40-40-10": chain(40, 40, 10),
    "10 x 40": chain(40, *([40] * 10), 40),
    "10 x 100": chain(100, *([100] * 10), 100),
    "16 x 16": chain(16, *([16] * 15), 16),
    "16 x 64": chain(64, *([64] * 15), 64),
    "6 residual blocks x 32": residual(6, 32),
    "18 residual blocks x 64": residual(18, 64),
}


def measured(folder: Path, case: str) -> dict[str, Any]:
    """One solve by the solvers of ``folder``, in this process, which has imported none yet."""
    name, file = "admm_lip.solvers", folder / "solvers" / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        name, file, submodule_search_locations=[str(file.parent)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import torch

    torch.set_num_threads(1)
    config = module.SolverConfig("native", fallback=())
    module.solve_certify(chain(8, 8, 8)(), config)  # loads the libraries
    problem = CASES[case]()
    times: list[tuple[float, float]] = []
    while len(times) < _MOST_SOLVES and sum(cpu for cpu, _ in times) < _ENOUGH:
        begun, cpu = time.perf_counter(), time.process_time()
        found = module.solve_certify(problem, config)
        times.append((time.process_time() - cpu, time.perf_counter() - begun))
    return {
        "cpu_seconds": min(cpu for cpu, _ in times),
        "seconds": min(seconds for _, seconds in times),
        "lip": found.lip,
        "gap": found.gap,
        "message": found.message,
    }


def apart(folder: Path, case: str) -> dict[str, Any]:
    """The same in a process of its own."""
    code = (
        "import json, sys; from pathlib import Path; from benchmarks.solver_pairs import measured;"
        "print(json.dumps(measured(Path(sys.argv[1]), sys.argv[2])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), case],
        cwd=HERE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(before: Path, case: str, pairs: int) -> dict[str, Any]:
    """The row of one case."""
    rows = [(apart(HERE, case), apart(before, case)) for _ in range(pairs)]
    ratios = [new["cpu_seconds"] / old["cpu_seconds"] for new, old in rows]
    last_new, last_old = rows[-1]
    return {
        "case": case,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "cpu_seconds": min(new["cpu_seconds"] for new, _ in rows),
        "cpu_seconds_before": min(old["cpu_seconds"] for _, old in rows),
        "seconds": min(new["seconds"] for new, _ in rows),
        "lip_over_before": last_new["lip"] / last_old["lip"],
        "gap": last_new["gap"],
        "gap_before": last_old["gap"],
        "message": last_new["message"],
        "message_before": last_old["message"],
    }


def main(argv: list[str]) -> None:
    """Run the chosen cases and write the record; rows of other cases stay."""
    parser = parser_of("solver_pairs")
    parser.add_argument("--before", type=Path, required=True, help="checkout of the other version")
    parser.add_argument("--only", nargs="+", default=[], help="parts of the names of cases")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args(argv)
    names = chosen(parser, options.only, CASES)
    path = record.RESULTS / "solver_pairs.json"
    rows = record.load("solver_pairs")["rows"] if options.only and path.exists() else []
    for name in names:
        row = compared(options.before.resolve(), name, options.pairs)
        print({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
        rows = [*(r for r in rows if r["case"] != name), row]
        record.save("solver_pairs", {"pairs": options.pairs}, rows)
