"""``admm-lip compare``: penalty against enforced bound, over a grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .options import Parser, UsageError, add_threads_option, parse, say, threads
from .run_options import add_data_options, add_evaluate_options, add_train_options

if TYPE_CHECKING:
    from ..records import RunFolder
    from .recipes import Job

Row = dict[str, Any]
_COLUMNS = "{:<9}{:>9}{:>6}{:>10}{:>10}{:>12}{:>9}"


def parser() -> Parser:
    """The options of the command."""
    made = Parser(
        "compare",
        """
        Train the same network with a penalty mu L^2 and with an enforced bound, over a grid, and
        plot accuracy against the proven L of each run.  Unless --bounds says otherwise, the bounds
        are the constants that the penalty arrived at, so the two meet at equal L.

        Both use cross-entropy (squared error for regression) unless --loss says otherwise: the
        margin loss does not change with the scale of L, so a penalty would drive L to zero.
        """,
        """
        examples:
          admm-lip compare
          admm-lip compare --mus [1e-3,1e-2,1e-1] --seeds [0,1,2] --data toy2d
          admm-lip compare --mus [] --bounds [0.5,1,2]
        """,
    )
    made.add_settings_file()
    group = made.group("the grid")
    group.add_argument(
        "--mus", type=tuple[float, ...], default=(1e-3, 1e-2, 1e-1, 1.0), help="Penalties."
    )
    group.add_argument(
        "--bounds",
        type=tuple[float, ...] | None,
        default=None,
        help="Bounds to enforce (not given: those that the penalties arrive at).",
    )
    group.add_argument("--seeds", type=tuple[int, ...], default=(0,), help="One run for each.")
    group.add_argument(
        "--run-dir",
        type=str | None,
        metavar="FOLDER",
        default=None,
        help="Folder for the results (not given: runs/<data>-compare-<time>).",
    )
    group.add_argument("--overwrite", action="store_true", help="Replace an earlier comparison.")
    add_data_options(made)
    add_train_options(made, skip=("bound", "mu", "seed"))
    add_evaluate_options(made)
    add_threads_option(made)
    return made


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(parser(), arguments)
    from ..records import create_run, default_run_path, write_rows
    from .recipes import prepare

    values = options.as_dict()
    mus, bounds, seeds = (values.pop(key) for key in ("mus", "bounds", "seeds"))
    if not seeds or not (mus or bounds):
        raise UsageError("mus, bounds, seeds: expected at least one seed, and one mu or bound")
    first = prepare({**values, "mu": 1.0, "seed": seeds[0]})
    values["loss"] = first.settings["loss"]
    grid = {"mus": mus, "bounds": bounds, "seeds": seeds}
    settings = {**grid, **{k: v for k, v in first.settings.items() if k not in _FROM_GRID}}
    folder = create_run(
        options.run_dir or default_run_path("runs", options.data, "compare"),
        settings,
        overwrite=options.overwrite,
    )
    say(_COLUMNS.format("mode", "asked", "seed", "proven L", "clean", "certified", "seconds"))
    rows: list[Row] = []
    try:
        with threads(options.threads):
            for row in _rows(values, first, grid):
                rows.append(row)
                write_rows(folder.front, rows)
                say(_line(row))
    finally:
        _wrap_up(folder, rows)
    return 0


_FROM_GRID = ("bound", "mu", "seed")


def _rows(values: dict[str, Any], first: Job, grid: dict[str, Any]) -> Iterator[Row]:
    """Every run of the grid: first the penalties, then the bounds."""
    from .recipes import prepare

    for seed in grid["seeds"]:
        reached = []
        for mu in grid["mus"]:
            row = _one(prepare({**values, "mu": mu, "seed": seed}, first.data), mu)
            reached.append(row["lip"])
            yield row
        for bound in reached if grid["bounds"] is None else grid["bounds"]:
            yield _one(prepare({**values, "bound": bound, "seed": seed}, first.data), bound)


def _one(job: Job, asked: float) -> Row:
    """Train and measure one point, at the report radius only."""
    from ..evaluation.evaluate import evaluate, report_radius
    from ..training.train import train

    result = train(job.model, job.data.train, job.train, progress=False)
    if result.stopped == "interrupted":
        raise KeyboardInterrupt
    at = dataclasses.replace(job.evaluate, radii=(report_radius(job.data, job.evaluate),))
    measured = evaluate(result.model, job.data, result.certificate, at).to_record()
    keep = ("clean_accuracy", "report_radius", "certified_at_report", "attacked_at_report", "rmse")
    return {
        "mode": job.train.mode,
        "value": asked,
        "seed": job.train.seed,
        "lip": result.certificate.lip,
        **{key: measured[key] for key in keep if key in measured},
        "seconds": result.seconds,
    }


def _line(row: Row) -> str:
    clean = f"{row['clean_accuracy']:.1%}" if "rmse" not in row else f"{row['rmse']:.4f}"
    certified = f"{row['certified_at_report']:.1%}" if "rmse" not in row else "-"
    name = f"{'mu' if row['mode'] == 'penalty' else 'L'}={row['value']:.3g}"
    return _COLUMNS.format(
        row["mode"],
        name,
        row["seed"],
        f"{row['lip']:.4g}",
        clean,
        certified,
        f"{row['seconds']:.1f}",
    )


def _wrap_up(folder: RunFolder, rows: list[Row]) -> None:
    """Draw what there is; a folder without a single row is taken back."""
    if not rows:
        folder.remove_if_unused()
        return
    from .plot import draw

    say()
    for path in (folder.config, folder.front, *draw(folder)):
        say(f"  {path}")
