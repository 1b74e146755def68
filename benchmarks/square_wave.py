"""A square wave under slope bounds: how near to the bound, how near to the best possible error.

The wave is 0, 1, 0, 1 on [-2, 2] with jumps at -1, 0 and 1.  Under slope L >= 1 the best fit
crosses each jump on a ramp of width 1/L, so the least mean squared error is

    3 * 2 * int_0^{1/(2L)} (1/2 - L t)^2 dt / 4  =  1 / (16 L).

Tightness is the steepest slope found over the bound asked for; both are taken on a dense grid that
the training points are not on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .contenders import Pair, build, train_contender
from .measures import jacobian_norms
from .pictures import Curve, Look, draw_panels
from .study import Cell, Row, Study, run_from_command_line
from .tables import groups, markdown, mean, spread

EDGE = 2.0
DENSE, SHOWN = 40_000, 401


def wave(x: Tensor) -> Tensor:
    """0 on [-2, -1), 1 on [-1, 0), 0 on [0, 1), 1 on [1, 2]."""
    return (((x >= -1) & (x < 0)) | (x >= 1)).to(x.dtype)


def grid(count: int) -> Pair:
    """Midpoints of ``count`` equal cells of the domain, and the wave there, ``(count, 1)`` each."""
    x = ((torch.arange(count) + 0.5) / count * 2 * EDGE - EDGE)[:, None]
    return x, wave(x)


def best_error(bound: float) -> float:
    """Least mean squared error of any function with slope at most ``bound`` (at least 1)."""
    return 1.0 / (16.0 * bound)


def cells(settings: Cell) -> list[Cell]:
    """Every seed, bound and contender, seeds outermost; a contender says how many it gets."""
    bounds = settings["bounds"]
    shared = {key: settings[key] for key in ("points", "hidden")}
    return [
        {
            **shared,
            "seed": seed,
            "bound": bound,
            "contender": name,
            "method": row["method"],
            "options": {"bound": bound, **row.get("options", {})},
            "train": {**settings["train"], **row.get("train", {})},
        }
        for seed in range(max(max(row["seeds"]) for row in settings["contenders"].values()))
        for place, bound in enumerate(bounds)
        for name, row in settings["contenders"].items()
        if seed < row["seeds"][place]
    ]


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Fit, and measure on the dense grid."""
    trained = train_contender(build(1, 1, cell), grid(cell["points"]), cell)
    x, y = grid(DENSE)
    with torch.no_grad():
        error = float((trained.model(x) - y).square().mean())
        shown = trained.model(torch.linspace(-EDGE, EDGE, SHOWN)[:, None])[:, 0]
    steepest = float(jacobian_norms(trained.model, x).max())
    return {
        "lip": trained.lip,
        "proven": trained.certificate is not None,
        "use": trained.lip / cell["bound"],
        "tightness": 100.0 * steepest / cell["bound"],
        "mse": error,
        "error_ratio": error / best_error(cell["bound"]),
        "seconds": trained.seconds,
        "cpu_seconds": trained.cpu_seconds,
        "curve": [round(v, 4) for v in shown.tolist()],
    }


def tabulate(rows: list[Row]) -> str:
    """Tightness, error over the best possible, proven over asked, seconds."""
    header = ["L", "method", "seeds", "tightness %", "error / best", "proven L / L", "CPU s"]
    lines = [
        [
            f"{bound:g}",
            name,
            len(some),
            spread(some, "tightness", 1),
            spread(some, "error_ratio", 3),
            f"{mean(some, 'use'):.4f}",
            f"{mean(some, 'cpu_seconds'):.0f}",
        ]
        for (bound, name), some in sorted(groups(rows, "bound", "contender").items(), key=_by_bound)
    ]
    return markdown(header, lines)


def _by_bound(item: tuple[tuple[float, str], list[Row]]) -> float:
    return item[0][0]


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """The first seed's fits, one panel per bound."""
    first = min(row["seed"] for row in rows)
    x = torch.linspace(-EDGE, EDGE, SHOWN).tolist()
    target = Curve("target", x, wave(torch.linspace(-EDGE, EDGE, SHOWN)).tolist(), dashed=True)
    panels = {}
    for (bound,), some in sorted(groups(rows, "bound").items()):
        fits: Sequence[Curve] = [
            Curve(r["contender"], x, r["curve"]) for r in some if r["seed"] == first
        ]
        panels[f"L = {bound:g}"] = [target, *fits]
    path = folder / "square_wave.png"
    draw_panels(panels, path, Look("x", "f(x)"))
    return [path]


STUDY = Study("square_wave", cells, run_cell, tabulate, draw)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
