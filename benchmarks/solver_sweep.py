"""Seconds against width and depth: the native solver, plain descent, Clarabel and SCS.

    python -m benchmarks solver_sweep [--threads 1 2] [--cap 30]

Networks 784-n-n-10 for growing n, and chains of 64 neurons for growing depth.  A rival that was not
done (to 1e-3 of the optimum) within the cap is not asked again on the larger networks of the curve:
the last point of its curve stands at the cap or beyond.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import record
from .catalogue import parser_of
from .pictures import Curve, Look, draw_panels
from .random_networks import Weights, gaussian
from .solver_times import Row, certify_case, load_blas
from .tables import groups

WIDTHS = (16, 32, 64, 128, 256, 384)
DEPTHS = (2, 4, 8, 16, 32)
GENERAL = ("clarabel", "scs")
DESCENT = "descent"
LABELS = {DESCENT: "plain descent to 1e-3", "clarabel": "Clarabel", "scs": "SCS"}
# General solvers hold a dense LMI: beyond this many neurons they are not asked at all.
MOST_NEURONS = 600
# A bound this close to the optimum counts as solved.
CLOSE = 1e-3


def networks() -> list[tuple[str, int, Weights]]:
    """``(curve, abscissa, weights)``, each curve from small to large."""
    wide = [("width", n, gaussian(784, n, n, 10)) for n in WIDTHS]
    deep = [("depth", d, gaussian(64, *([64] * d), 10)) for d in DEPTHS]
    return [*wide, *deep]


def sweep(threads: int, cap: float, rivals: Sequence[str]) -> list[Row]:
    """One row per network; ``rivals`` (and descent, if named) while they keep within the cap."""
    torch.set_num_threads(threads)
    rows: list[Row] = []
    alive: dict[str, set[str]] = {"width": set(rivals), "depth": set(rivals)}
    for curve, size, weights in networks():
        small = sum(w.shape[0] for w in weights[:-1]) <= MOST_NEURONS
        asked = [name for name in GENERAL if name in alive[curve] and small]
        row = certify_case(weights, asked, cap, plain=DESCENT in alive[curve])
        row = {"kind": "sweep", "curve": curve, "size": size, "threads": threads} | row
        alive[curve] -= {name for name in rivals if not within(row, name, cap)}
        print({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        rows.append(row)
    return rows


def within(row: Row, name: str, cap: float) -> bool:
    """Whether a rival came close to the optimum within the cap."""
    excess, seconds = row.get(f"{name}_excess"), row.get(f"{name}_seconds")
    return excess is not None and seconds is not None and seconds <= cap and excess <= 1.1 * CLOSE


def curves(rows: Sequence[Row], curve: str) -> list[Curve]:
    """One line per solver and number of threads."""
    lines = []
    of_curve = [row for row in rows if row["curve"] == curve]
    for (threads,), some in groups(of_curve, "threads").items():
        label = f"native, {threads} thread{'s' * (threads > 1)}"
        lines.append(_curve(label, some, "seconds"))
    for name, label in (
        (DESCENT, "plain descent to 1e-3"),
        ("clarabel", "Clarabel"),
        ("scs", "SCS"),
    ):
        asked = [row for row in of_curve if f"{name}_seconds" in row]
        if asked:
            lines.append(_curve(label, asked, f"{name}_seconds"))
    return lines


def _curve(label: str, rows: Sequence[Row], key: str) -> Curve:
    return Curve(label, [r["size"] for r in rows], [r[key] for r in rows], markers=True)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Both panels."""
    panels = {
        "784-n-n-10, by width n": curves(rows, "width"),
        "chains of 64 neurons, by depth": curves(rows, "depth"),
    }
    look = Look("neurons per layer / hidden layers", "seconds", True, True, ticks_at_points=True)
    draw_panels(panels, path, look)


def main(argv: list[str]) -> None:
    """Run both curves, write the record and draw it."""
    parser = parser_of("solver_sweep")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cap", type=float, default=30.0, help="seconds given to each rival")
    parser.add_argument("--draw", action="store_true", help="only draw the committed record")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = record.load("solver_sweep")["rows"] if options.draw else []
    if not options.draw:
        load_blas()
        for threads in options.threads:
            rivals = (DESCENT, *GENERAL) if threads == options.threads[0] else ()
            rows.extend(sweep(threads, options.cap, rivals))
        record.save("solver_sweep", vars(options), rows)
    draw(rows, record.RESULTS / "solver_sweep.png")
