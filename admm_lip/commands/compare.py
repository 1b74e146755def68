"""``admm-lip compare``: penalty against enforced bound, over a grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import RunFolderError, Terminated
from ..progress import working
from .arguments import UsageError, parse, say
from .hints import typed
from .options import SettingsParser, add_threads_option, threads
from .outcome import Outcome
from .run_options import (
    add_data_options,
    add_device_option,
    add_evaluate_options,
    add_folder_options,
    add_train_options,
)

if TYPE_CHECKING:
    from ..records import RunFolder
    from .recipes import Job

Row = dict[str, Any]
_COLUMNS = "{:<9}{:>9}{:>6}{:>10}{:>10}{:>12}{:>9}"


def parser() -> SettingsParser:
    """The options of the command."""
    made = SettingsParser(
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
          admm-lip compare --resume runs/RUN
              continue one that was interrupted or killed; a larger grid adds to it
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
    add_folder_options(group, "runs/<data>-compare-<time>", "comparison")
    add_data_options(made)
    add_train_options(made, skip=("bound", "mu", "seed"))
    add_evaluate_options(made)
    add_threads_option(made)
    add_device_option(made)
    return made


def run(arguments: list[str]) -> Outcome:
    """Run the command."""
    made = parser()
    options = parse(made, arguments)
    from ..records import default_run_path
    from .recipes import prepare
    from .run_folders import continued_run, earlier_run, new_run

    earlier = earlier_run(options)
    if earlier is not None:
        options = parse(made, ["--config", str(earlier.config), *arguments])
    values = options.as_dict()
    mus, bounds, seeds = (values.pop(key) for key in ("mus", "bounds", "seeds"))
    if not seeds or not (mus or bounds):
        raise UsageError("mus, bounds, seeds: expected at least one seed, and one mu or bound")
    first = prepare({**values, "mu": 1.0, "seed": seeds[0]})
    values["loss"] = first.settings["loss"]
    grid = {"mus": mus, "bounds": bounds, "seeds": seeds}
    settings = {**grid, **{k: v for k, v in first.settings.items() if k not in _FROM_GRID}}
    if earlier is None:
        path = options.run_dir or default_run_path("runs", options.data, "compare")
        opened = new_run(path, settings, options.overwrite)
    else:
        opened = continued_run(earlier, settings, (*grid, "data_dir"))
    with opened as folder, threads(options.threads):
        rows = _compare(folder, values, first, grid)
    return Outcome({"run": folder.path, "norm": "l2", "rows": rows})


_FROM_GRID = ("bound", "mu", "seed")
_Cell = tuple[str, float, int]


def _compare(
    folder: RunFolder, values: dict[str, Any], first: Job, grid: dict[str, Any]
) -> list[Row]:
    """Every cell of the grid, each that is not in the folder yet kept as soon as it is done."""
    from ..records import write_rows

    data = data_digest(first)
    done = _earlier_rows(folder, data)
    found = []
    say(_COLUMNS.format("mode", "asked", "seed", "proven L", "clean", "certified", "seconds"))
    try:
        for row in _rows(values, first, grid, done):
            found.append(row)
            if _cell(row) not in done:
                done[_cell(row)] = row | {"data": data}
                write_rows(folder.front, done.values())
            say(_line(row))
    except KeyboardInterrupt:
        if folder.front.is_file():
            say(f"stopped; continue with: {typed('compare', '--resume', folder.path)}")
        raise
    finally:
        _wrap_up(folder)
    return found


def _cell(row: Row) -> _Cell:
    return row["mode"], row["value"], row["seed"]


def _earlier_rows(folder: RunFolder, data: str) -> dict[_Cell, Row]:
    """What an interrupted comparison has, by cell.

    Raises:
        RunFolderError: when it was made on other data.
    """
    from ..records import read_rows

    rows = read_rows(folder.front) if folder.front.is_file() else []
    if any(row.get("data") != data for row in rows):
        raise RunFolderError(
            f"resume: {folder.front} was made on other data, or by a version that did not note "
            "them; put them back, or compare in another folder"
        )
    return {_cell(row): row for row in rows}


def _rows(
    values: dict[str, Any], first: Job, grid: dict[str, Any], done: dict[_Cell, Row]
) -> Iterator[Row]:
    """Every run of the grid: first the penalties, then the bounds."""
    from .recipes import prepare

    def row(name: str, mode: str, asked: float, seed: int) -> Row:
        known = done.get((mode, asked, seed))
        return known or _one(prepare({**values, name: asked, "seed": seed}, first.data), asked)

    bounds = len(grid["mus"] if grid["bounds"] is None else grid["bounds"])
    cells = len(grid["seeds"]) * (len(grid["mus"]) + bounds)
    with working("compare", cells, "runs") as work:
        for seed in grid["seeds"]:
            reached = []
            for mu in grid["mus"]:
                found = row("mu", "penalty", mu, seed)
                reached.append(found["lip"])
                yield found
                work.step()
            for bound in reached if grid["bounds"] is None else grid["bounds"]:
                yield row("bound", "bound", bound, seed)
                work.step()


def data_digest(job: Job) -> str:
    """Training and test data in a few digits."""
    from ..training.identity import fingerprint

    return fingerprint((job.data.train, job.data.test))


def _one(job: Job, asked: float) -> Row:
    """Train and measure one point, at the report radius only."""
    from ..evaluation.evaluate import evaluate, report_radius
    from ..training.train import train

    result = train(job.model, job.data.train, job.train)
    if result.stopped == "terminated":
        raise Terminated
    if result.stopped == "interrupted":
        raise KeyboardInterrupt
    at = dataclasses.replace(job.evaluate, radii=(report_radius(job.data, job.evaluate),))
    measured = evaluate(result.model, job.data, result.certificate, at).to_record()
    keep = ("clean_accuracy", "report_radius", "certified_at_report", "attacked_at_report", "rmse")
    return {
        "mode": "bound" if job.train.mu is None else "penalty",
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


def _wrap_up(folder: RunFolder) -> None:
    """Draw what there is."""
    if not folder.front.is_file():
        return
    from ..evaluation.comparison import Comparison
    from .plot import draw_if_possible

    say()
    say(Comparison.read(folder.path).summary())
    say()
    for path in (folder.config, folder.front, *draw_if_possible(folder)):
        say(f"  {path}")
