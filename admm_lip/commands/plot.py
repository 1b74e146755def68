"""``admm-lip plot``: the pictures of a run, from its records alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..extras import MissingExtra
from .arguments import Parser, parse, say
from .hints import typed
from .outcome import Outcome

if TYPE_CHECKING:
    from ..records import RunFolder


def parser() -> Parser:
    """The options of the command."""
    made = Parser(
        "plot",
        """
        Draw the plots of a run again, from the records in its folder: no network is loaded and
        nothing is computed.
        """,
        "example:\n  admm-lip plot runs/RUN",
        usage="plot RUN",
    )
    made.add_argument("run", type=str, help="Folder of a run, or of a comparison.")
    return made


def run(arguments: list[str]) -> Outcome:
    """Run the command."""
    options = parse(parser(), arguments)
    from ..records import open_run

    drawn = draw(open_run(options.run))
    for path in drawn:
        say(str(path))
    return Outcome({"plots": drawn})


def draw_if_possible(folder: RunFolder) -> list[Path]:
    """The same at the end of a run, which does not fail for want of pictures: that is only said."""
    try:
        return draw(folder)
    except MissingExtra as error:
        say(f"no plots: {error}; then: {typed('plot', folder.path)}")
        return []


def draw(folder: RunFolder) -> list[Path]:
    """Draw every plot that the folder's records allow; returns the files written.

    Raises:
        RunFolderError: when a record is missing or damaged.
        MissingExtra: where matplotlib is not installed.
    """
    from .. import plots
    from ..records import read_arrays, read_json, read_rows

    folder.plots.mkdir(exist_ok=True)
    if folder.front.is_file():
        plots.plot_front(read_rows(folder.front), folder.plots / "front.png")
        return [folder.plots / "front.png"]
    summary = read_json(folder.summary)
    drawn = []
    if "bounds" in summary:
        drawn.append(folder.plots / "bounds.png")
        plots.plot_bounds(summary["bounds"], drawn[0])
    if folder.epochs.is_file():
        drawn.append(folder.plots / "epochs.png")
        plots.plot_epochs(read_rows(folder.epochs), drawn[-1])
    if folder.metrics.is_file():
        drawn.append(folder.plots / "training.png")
        plots.plot_training(
            read_rows(folder.metrics), drawn[-1], summary["bounds"].get("requested")
        )
    if summary.get("evaluation", {}).get("radii"):
        drawn.append(folder.plots / "certified_accuracy.png")
        plots.plot_radius(summary["evaluation"], drawn[-1])
    if folder.regions.is_file():
        drawn.append(folder.plots / "regions.png")
        plots.plot_regions(read_arrays(folder.regions), drawn[-1])
    return drawn
