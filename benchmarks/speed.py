"""Seconds of whole calls of ``certify`` against those of another version of the package, by turns.

    python -m benchmarks speed --against CHECKOUT [--only PART ...] [--turns 3]

``CHECKOUT`` is a folder with the other version; it is run by its own ``.venv/bin/python``, or by
this Python where it has none.  Both versions are processes of one thread that take turns at every
case, so a machine that others use slows both, and the ratio is taken within a turn.  A call is
everything: reading the network, the solver, the proof, the steep points, the record.  Imports and
a first call are not in it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parents[1]
# Short calls are repeated in a turn, and the least time counts.
_MOST_CALLS, _ENOUGH = 9, 0.5
# Of a version that takes no list, so many stand for all networks.
_SAMPLE = 20


class Case(NamedTuple):
    """One row: so many ``networks`` of these widths, and what else ``certify`` is told."""

    widths: tuple[int, ...]
    options: Mapping[str, Any] = MappingProxyType({})
    networks: int = 1


def _square(depth: int, width: int) -> Case:
    return Case((width,) * (depth + 1))


_PAIRS = {"kind": "pairwise", "progress": False}
CASES: dict[str, Case] = {
    "2-12-1": Case((2, 12, 1)),
    "8 layers x 16": _square(8, 16),
    "16 layers x 16": _square(16, 16),
    "32 layers x 16": _square(32, 16),
    "784-64-64-10": Case((784, 64, 64, 10)),
    "784-256-1": Case((784, 256, 1)),
    "784-256-256-10": Case((784, 256, 256, 10)),
    "10 layers x 100": _square(10, 100),
    "16 layers x 64": _square(16, 64),
    "64 layers x 64": _square(64, 64),
    "45 pairs of 64-32-32-10": Case((64, 32, 32, 10), _PAIRS),
    "45 pairs of 784-100-100-10": Case((784, 100, 100, 10), _PAIRS),
    "1,000 networks 9-16-16-1": Case((9, 16, 16, 1), {}, 1000),
    "1,000 networks 9-16-16-1, two workers": Case((9, 16, 16, 1), {"n_jobs": 2}, 1000),
}


def network(widths: Sequence[int], seed: int) -> Any:
    """Linear layers and ReLUs with torch's own initial weights."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
    return nn.Sequential(*(part for pair in layers for part in pair))[:-1]


def measured(certify: Callable[..., Any], case: Case, takes_lists: bool) -> dict[str, Any]:
    """The times of one turn and the bounds; of many networks, seconds of all.

    Where workers do the work, the clock on the wall stands for this process's own time.
    """
    many, shared = case.networks > 1, takes_lists and "n_jobs" in case.options
    spent = time.perf_counter if shared else time.process_time
    done = case.networks if takes_lists or not many else _SAMPLE
    models = [network(case.widths, seed) for seed in range(done)]
    times: list[tuple[float, float]] = []
    while len(times) < _MOST_CALLS and sum(cpu for cpu, _ in times) < _ENOUGH:
        begun, cpu = time.perf_counter(), spent()
        if many and takes_lists:
            found = certify(models, **case.options)
        else:
            alone = {key: value for key, value in case.options.items() if key != "n_jobs"}
            found = [certify(model, **alone) for model in models]
        times.append((spent() - cpu, time.perf_counter() - begun))
    bounds = [b for one in found[:_SAMPLE] for b in getattr(one, "bounds", (one,))]
    return {
        "cpu_seconds": min(cpu for cpu, _ in times) * case.networks / done,
        "seconds": min(wall for _, wall in times) * case.networks / done,
        "measured": done,
        "lips": [b.lip for b in bounds],
        "lowers": [b.lower_lip for b in bounds],
    }


def serve() -> None:
    """A version in a process of its own: the name of a case a line in, its measure a line out."""
    import inspect

    import torch

    import admm_lip
    import admm_lip.solvers

    torch.set_num_threads(1)
    takes_lists = "n_jobs" in inspect.signature(admm_lip.certify).parameters
    certify: Any = admm_lip.certify
    for options in ({}, _PAIRS):
        certify(network((3, 4, 2), 0), **options)  # loads the libraries
    # An installed package may stand in for either.
    files = (str(admm_lip.__file__), str(admm_lip.solvers.__file__))
    print(json.dumps([str(Path(file).resolve().parents[1]) for file in files]), flush=True)
    for line in sys.stdin:
        print(json.dumps(measured(certify, CASES[json.loads(line)], takes_lists)), flush=True)


class Version:
    """A process that measures the package of one folder."""

    def __init__(self, folder: Path) -> None:
        own = folder / ".venv" / "bin" / "python"
        code = (
            "import runpy, sys; sys.path.insert(0, sys.argv[1]);"
            "runpy.run_path(sys.argv[2])['serve']()"
        )
        self._process = subprocess.Popen(
            [str(own if own.exists() else sys.executable), "-c", code, str(folder), __file__],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        roots = self._answer()
        if set(roots) != {str(folder.resolve())}:
            raise ValueError(
                f"--against: {folder} holds no admm_lip and solvers of its own; got those of "
                f"{' and '.join(roots)}; make an environment there (.venv) that has them installed"
            )

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with {self._process.wait()}; its error is above")
        return json.loads(line)

    def turn(self, case: str) -> dict[str, Any]:
        """The measure of one case."""
        assert self._process.stdin is not None
        print(json.dumps(case), file=self._process.stdin, flush=True)
        found: dict[str, Any] = self._answer()
        return found

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def row_of(case: str, turns: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """The row of a case from its turns, each this version's measure and the other's."""
    ratios = [new["cpu_seconds"] / old["cpu_seconds"] for new, old in turns]
    new, old = turns[-1]
    both = list(zip(new["lips"], new["lowers"], old["lips"], old["lowers"], strict=True))
    return {
        "case": case,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        **{key: min(one[key] for one, _ in turns) for key in ("cpu_seconds", "seconds")},
        **{
            f"{key}_before": min(two[key] for _, two in turns) for key in ("cpu_seconds", "seconds")
        },
        "measured": new["measured"],
        "measured_before": old["measured"],
        "bounds": len(both),
        "lip_over_before_least": min(lip / before for lip, _, before, _ in both),
        "lip_over_before_most": max(lip / before for lip, _, before, _ in both),
        "largest_gap": max(1.0 - low / lip for lip, low, _, _ in both),
        "largest_gap_before": max(1.0 - low / lip for _, _, lip, low in both),
        # No version's lower bound is above the other's bound.
        "consistent": all(low <= lip_2 and low_2 <= lip for lip, low, lip_2, low_2 in both),
    }


def main(argv: list[str]) -> None:
    """Run the chosen cases and write the record; rows of other cases stay."""
    from . import record
    from .catalogue import chosen, parser_of

    parser = parser_of("speed")
    parser.add_argument("--against", type=Path, required=True, help="folder of the other version")
    parser.add_argument("--only", nargs="+", default=[], help="parts of the names of cases")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args(argv)
    names = chosen(parser, options.only, CASES)
    path = record.RESULTS / "speed.json"
    rows = record.load("speed")["rows"] if options.only and path.exists() else []
    this, other = Version(HERE), Version(options.against.resolve())
    try:
        for name in names:
            turns = [(this.turn(name), other.turn(name)) for _ in range(options.turns)]
            row = row_of(name, turns)
            print(
                {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}, flush=True
            )
            kept = [r for r in rows if r["case"] != name]
            rows = sorted([*kept, row], key=lambda r: list(CASES).index(r["case"]))
            record.save("speed", {"turns": options.turns, "threads": 1}, rows)
    finally:
        this.close()
        other.close()
