"""``admm-lip predict``: a table of raw rows through a trained run, with what is proven of it."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import Parser, UsageError, parse, say

if TYPE_CHECKING:
    from ..predictions import Predictions


def parser() -> Parser:
    """The options of the command."""
    made = Parser(
        "predict",
        """
        Predict the rows of a CSV file by a run, in the units of the data that it was trained on.
        Columns are found by name, in any order; others are left out.  A regression's predictions
        come with the proven slope of the fitted function, a classifier's with the proven distance
        that a row may move before its class can change, all in raw units.  Nothing but the run's
        folder is needed, and its proof is checked on the way.
        """,
        """
        examples:
          admm-lip predict runs/RUN rows.csv
          admm-lip predict runs/RUN rows.csv --output predictions.csv
        """,
        usage="predict RUN ROWS [options]",
    )
    made.add_argument("run", type=str, help="Folder of a run.")
    made.add_argument("rows", type=str, help="CSV file of raw rows.")
    made.add_argument(
        "--output",
        type=str,
        metavar="FILE",
        default=None,
        help="CSV file to write, which must not exist yet (not given: standard output).",
    )
    return made


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(parser(), arguments)
    from ..predictions import predict
    from ..records import write_text

    output = None if options.output is None else Path(options.output)
    if output is not None and output.exists():
        raise UsageError(f"output: {output} exists; name another file with --output")
    found = predict(options.run, options.rows)
    text = _table(found)
    if output is None:
        sys.stdout.write(text)
        # Beside the table, so that a pipe gets the table alone.
        sys.stderr.write("".join(f"{line}\n" for line in _notes(found)))
        return 0
    write_text(output, text)
    say(f"{len(found.values)} rows written to {output}")
    for line in _notes(found):
        say(line)
    return 0


def _table(found: Predictions) -> str:
    """The predictions as CSV; floats read back exactly."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if found.classes:
        assert found.radius is not None
        writer.writerow(["class", "certified_radius"])
        writer.writerows(zip(found.classes, map(repr, found.radius.tolist()), strict=True))
    else:
        writer.writerow([*found.names, "slope_bound"])
        writer.writerows([*map(repr, row), repr(found.lip)] for row in found.values.tolist())
    return text.getvalue()


def _notes(found: Predictions) -> list[str]:
    """What is proven, in its unit, and which columns were not used."""
    slope = f"proven: slope at most {found.lip:.6g} {found.ratio}, {found.norm}"
    radius = f"proven: no row changes its class within its certified_radius (raw {found.norm})"
    lines = [radius if found.classes else slope]
    if found.left_out:
        lines.append(f"left out: {', '.join(found.left_out)}")
    return lines
