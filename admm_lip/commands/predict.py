"""``admm-lip predict``: a table of raw rows through a network, with what is proven of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import working
from ..shown import as_csv
from .arguments import Parser, UsageError, parse, say
from .outcome import Outcome

if TYPE_CHECKING:
    from ..predictions import Predictions


def parser() -> Parser:
    """The options of the command."""
    made = Parser(
        "predict",
        """
        Predict the rows of a CSV file by a run, in the units of the data that it was trained on,
        or by a network in a file: ONNX (also of scikit-learn's estimators), torch.export,
        safetensors.  Columns are found by name, in any order, and others are left out; where the
        inputs have no names, all columns are taken in their order.  A regression's predictions
        come with the proven slope of the fitted function, a classifier's with the proven distance
        that a row may move before its class can change, all in raw units.  The proof is the
        certificate beside the network, or inside its ONNX file, and is checked on the way; without
        one the predictions stand alone.
        """,
        """
        examples:
          admm-lip predict runs/RUN rows.csv
          admm-lip predict runs/RUN rows.csv --output predictions.csv
          admm-lip predict model.onnx rows.csv --task classification
        """,
        usage="predict PATH ROWS [options]",
    )
    made.add_argument(
        "run",
        type=str,
        metavar="path",
        help="Folder of a run, or an ONNX, safetensors or torch.export file.",
    )
    made.add_argument("rows", type=str, help="CSV file of raw rows.")
    made.add_argument(
        "--task",
        choices=("classification", "regression"),
        default=None,
        help="Whether the outputs are scores of classes or values (not given: as the run was "
        "trained; of a file, regression).",
    )
    made.add_argument(
        "--output",
        type=str,
        metavar="FILE",
        default=None,
        help="CSV file to write, which must not exist yet (not given: standard output).",
    )
    return made


def run(arguments: list[str]) -> Outcome:
    """Run the command."""
    options = parse(parser(), arguments)
    from ..predictions import predict
    from ..records import write_text

    output = None if options.output is None else Path(options.output)
    if output is not None and output.exists():
        raise UsageError(f"output: {output} exists; name another file with --output")
    with working("predict"):
        found = predict(options.run, options.rows, task=options.task)
    text = as_csv(found.table())
    if output is None:
        sys.stdout.write(text)
        # Beside the table, so that a pipe gets the table alone.
        sys.stderr.write("".join(f"{line}\n" for line in _notes(found)))
    else:
        write_text(output, text)
        say(f"{len(found.values)} rows written to {output}")
        for line in _notes(found):
            say(line)
    return Outcome(_record(found) | {"output": output})


def _record(found: Predictions) -> dict[str, Any]:
    """Everything, for ``--json``."""
    return {
        "rows": found.table(),
        "scores": found.values.tolist() if found.classes else None,
        "classes": found.names if found.classes else None,
        "lip": found.lip,
        "unit": found.ratio,
        "norm": found.norm or None,
        "left_out": found.left_out,
    }


def _notes(found: Predictions) -> list[str]:
    """What is proven, in its unit, and which columns were not used."""
    if not found.norm:
        lines = ["nothing is proven: no certificate is beside the network; admm-lip certify first"]
    elif found.classes:
        lines = [f"proven: no row changes its class within its certified_radius (raw {found.norm})"]
    elif found.lip is None:
        lines = ["the certificate is one of functionals, and bounds no slope of all outputs"]
    else:
        lines = [f"proven: slope at most {found.lip:.6g} {found.ratio}, {found.norm}"]
    if found.left_out:
        lines.append(f"left out: {', '.join(found.left_out)}")
    return lines
