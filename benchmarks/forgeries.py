"""Ten thousand forged certificates: not one that is false may be accepted.

Every kind of certificate (all outputs together, pairs, single outputs, given directions, local
ones with and without labels; l2 and linf; raw units; boxes; uneven and dead neurons) is changed in
every field, from a last digit to another type, and its file written anew with a right checksum.
The package refuses it, or an oracle that shares nothing with the proof must agree with every claim.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from .forging import CONFIRMED, FALSE, RAW, REFUSED, Case, Verdict, forged, judged, subject
from .study import Cell, Row, Study, run_from_command_line
from .tables import markdown

OUTCOMES = (REFUSED, CONFIRMED, FALSE, RAW)


def cells(settings: Cell) -> list[Cell]:
    """One per case, each with seeds of its own."""
    count, first = settings["forgeries"], settings["seed"]
    return [
        {"case": name, "forgeries": count, "seed": first + k * count, **case}
        for k, (name, case) in enumerate(settings["cases"].items())
    ]


def case_of(cell: Cell) -> Case:
    """What a cell certifies."""
    known = {k: v for k, v in cell.items() if k in Case.__dataclass_fields__}
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
    return Case(**fields)


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Forge, and count what became of it; what should not be is kept in words."""
    about = subject(case_of(cell))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "forgery"
        seeds = range(cell["seed"], cell["seed"] + cell["forgeries"])
        verdicts = [judged(about, forged(about, seed, path), path) for seed in seeds]
    outcomes = Counter(v.outcome for v in verdicts)
    wrong = [
        f"seed {seed}, {v.edit}: {v.outcome}: {v.said}"
        for seed, v in zip(seeds, verdicts, strict=True)
        if v.outcome in (FALSE, RAW)
    ]
    return {
        **{outcome: outcomes[outcome] for outcome in OUTCOMES},
        "edits": _by_edit(verdicts),
        "wrong": wrong,
    }


def _by_edit(verdicts: list[Verdict]) -> dict[str, dict[str, int]]:
    """Outcomes of each edit."""
    names = sorted({v.edit for v in verdicts})
    return {name: dict(Counter(v.outcome for v in verdicts if v.edit == name)) for name in names}


def tabulate(rows: list[Row]) -> str:
    """One line per case, and all together."""
    columns = ("forgeries", *OUTCOMES)
    lines = [[r["case"], r["kind"], *(r[c] for c in columns)] for r in rows]
    lines.append(["all", "", *(sum(r[c] for r in rows) for c in columns)])
    return markdown(["case", "kind", *columns], lines)


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Nothing: the table says it."""
    return []


STUDY = Study("forgeries", cells, run_cell, tabulate, draw)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
