"""What each ingredient of the ADMM trainer does: one setting changed at a time.

On MNIST 784-64-64-10 (certified on validation rows at the trained radius .5) and on the square wave
under slope 10 (error over the best possible).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from . import images_tuning, square_wave
from .pictures import draw_dots
from .study import Cell, Row, Study, run_from_command_line
from .tables import groups, markdown, mean, spread

# problem -> (how a cell is run, the number to look at, its name)
PROBLEMS: dict[str, tuple[Callable[[Cell, str | None], Row], str, str]] = {
    "images": (images_tuning.run_cell, "certified", "certified, %"),
    "wave": (square_wave.run_cell, "error_ratio", "error / best"),
}


def cells(settings: Cell) -> list[Cell]:
    """Every seed, problem and variant."""
    return [
        {
            **problem["cell"],
            "problem": name,
            "method": "admm",
            "contender": variant,
            "seed": seed,
            "options": {**problem["options"], **changed},
            "train": problem["train"],
        }
        for seed in settings["seeds"]
        for name, problem in settings["problems"].items()
        for variant, changed in problem["variants"].items()
    ]


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Train one variant."""
    run, key, _ = PROBLEMS[cell["problem"]]
    row = run(cell, data_dir)
    return {"score": row[key], "lip": row["lip"], "cpu_seconds": row["cpu_seconds"]}


def tabulate(rows: list[Row]) -> str:
    """The number that matters, the proven L and the seconds of every variant."""
    header = ["problem", "variant", "seeds", "what", "value", "proven L", "CPU s"]
    lines = [
        [
            problem,
            variant,
            len(some),
            PROBLEMS[problem][2],
            spread(some, "score", 3),
            f"{mean(some, 'lip'):.4f}",
            f"{mean(some, 'cpu_seconds'):.1f}",
        ]
        for (problem, variant), some in groups(rows, "problem", "contender").items()
    ]
    return markdown(header, lines)


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """The score of every variant, the best at the top; a dot per seed."""
    panels, ratios = {}, []
    for (problem,), some in groups(rows, "problem").items():
        _, key, title = PROBLEMS[problem]
        scores = {n: [r["score"] for r in mine] for (n,), mine in groups(some, "contender").items()}
        ratios += [title] if key == "error_ratio" else []
        order = sorted(scores, key=lambda name: fmean(scores[name]), reverse=title not in ratios)
        panels[title] = {name: scores[name] for name in order}
    path = folder / "ablation.png"
    draw_dots(panels, path, log=ratios)
    return [path]


STUDY = Study("ablation", cells, run_cell, tabulate, draw)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
