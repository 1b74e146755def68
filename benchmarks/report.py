"""``python -m benchmarks report``: every table and plot, made from the records alone.

Writes ``results/report.html``, one page that needs no other file, the plots beside it, and prints
the tables as markdown.  Nothing is run again; a study without a record is left out.  The page is
not committed, so that it cannot be older than its records.
"""

from __future__ import annotations

import base64
import html
import importlib
import re
from itertools import groupby
from pathlib import Path
from typing import Any

from admm_lip.files import write_atomic
from admm_lip.records import machine_stamp

from . import record
from .catalogue import BENCHMARKS, benchmark_of, machine, parser_of, question_of
from .study import Study, succeeded
from .tables import markdown

# Record -> why it is not on the page.
EXCLUDED: dict[str, str] = {}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22262b; max-width: 72rem; margin: 2rem auto;
       padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #dde2e8;
       padding-top: 1.5rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; display: block;
        overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #dde2e8; text-align: right;
         white-space: nowrap; font-variant-numeric: tabular-nums; }
th { background: #f4f6f8; } th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } .small { color: #6b727b; font-size: 13px; }
"""


def main(argv: list[str]) -> None:
    """Write the page and print the tables."""
    parser = parser_of("report")
    parser.add_argument("--output", type=Path, default=record.RESULTS / "report.html")
    options = parser.parse_args(argv)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    shown: list[str] = []
    for question, names in groupby(on_the_page(), question_of):
        sections = [section(name, options.output.parent) for name in names]
        shown += [f"<h2>{html.escape(question)}</h2>", *(found for found, _ in sections)]
        print(f"# {question}", *(text for _, text in sections), sep="\n\n", end="\n\n")
    write_atomic(options.output, page(shown).encode())
    print(f"report: {options.output}")


def on_the_page() -> list[str]:
    """The records that the page is made of, in the order of the catalogue, then all others.

    Those of quick runs, which are not committed, are left out, and those of ``EXCLUDED``.
    """
    there = {p.stem for p in record.RESULTS.glob("*.json") if not p.stem.endswith("_quick")}
    places = {name: place for place, name in enumerate(BENCHMARKS)}
    return sorted(
        there - set(EXCLUDED),
        key=lambda name: (places.get(benchmark_of(name) or "", len(places)), name),
    )


def study_of(name: str) -> Study | None:
    """The study that a record is of, if it is one."""
    if name not in BENCHMARKS:
        return None
    return getattr(importlib.import_module(f"benchmarks.{name}"), "STUDY", None)


def section(name: str, folder: Path) -> tuple[str, str]:
    """HTML and markdown of one record; the pictures of a study are drawn anew in ``folder``."""
    study, loaded, table = study_of(name), record.load(name), table_of(name)
    if study:
        rows = succeeded(loaded["rows"])
        pictures = study.draw(rows, folder) if rows else []
    else:
        pictures = [p for p in (record.RESULTS / f"{name}.png",) if p.is_file()]
    title, told = heading(name), provenance(loaded)
    small = f'<p class="small">{"<br>".join(map(html.escape, told))}</p>'
    parts = [f"<h3>{html.escape(title)}</h3>", small, *map(_embedded, pictures), as_html(table)]
    lines = "\n".join(f"- {line}" for line in told)
    return "\n".join(parts), f"## {title}\n\n{lines}\n\n{table}"


def heading(name: str) -> str:
    """The record's name and what it shows."""
    found = benchmark_of(name)
    return f"{name}: {BENCHMARKS[found].shows}" if found else name.replace("_", " ")


def table_of(name: str) -> str:
    """A record's table in markdown: its study's own, else its flat fields.

    Raises:
        ValueError: for a record without rows, which belongs into ``EXCLUDED``.
    """
    rows = record.load(name).get("rows")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name}.json: expected rows; give the reason for none in report.EXCLUDED")
    study = study_of(name)
    if study is None:
        return "\n\n".join(_flat_table(some) for some in by_shape(rows))
    ran = succeeded(rows)
    return study.tabulate(ran) if ran else "no cell has run"


def by_shape(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows with the same fields stand in one table."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row), []).append(row)
    return list(found.values())


def _flat_table(rows: list[dict[str, Any]]) -> str:
    fields = [key for key, value in rows[0].items() if not isinstance(value, list | dict)]
    return markdown(fields, [[row.get(key, "") for key in fields] for row in rows])


def provenance(loaded: dict[str, Any]) -> list[str]:
    """Source, seeds, date, machine and versions, as the record has them; what is old or failed."""
    found, stamp = benchmark_of(loaded["name"]), loaded["machine"]["versions"]
    seeds = ", ".join(map(str, seeds_of(loaded))) or "not stated"
    versions = ", ".join(f"{key} {value}" for key, value in stamp.items())
    errors = [row["error"] for row in loaded["rows"] if "error" in row]
    return [
        f"source: {BENCHMARKS[found].source if found else 'not stated'}",
        f"seeds: {seeds}; date: {loaded.get('date', 'not stated')}; {machine(loaded)}",
        f"versions: {versions}",
        *staleness(stamp.get("admm-lip", "0")),
        *(f"{errors.count(e)} cells not in the table: {e}" for e in dict.fromkeys(errors)),
    ]


def seeds_of(loaded: dict[str, Any]) -> list[int]:
    """The seeds that the settings name, else those of the rows."""
    settings = loaded["settings"]
    if "seeds" in settings or "seed" in settings:
        return list(settings.get("seeds") or [settings["seed"]])
    return sorted({row["seed"] for row in loaded["rows"] if "seed" in row})


def staleness(made: str) -> list[str]:
    """A line where a record is of an older version of the package than the present one."""
    present = machine_stamp()["versions"]["admm-lip"]
    if _release(made) >= _release(present):
        return []
    return [f"stale: made by admm-lip {made}; the present version is {present}"]


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _embedded(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}"></p>'


def as_html(table: str) -> str:
    """Markdown tables (header, rule, rows) with blank lines between as HTML; else a paragraph."""
    first, _, rest = table.strip().partition("\n\n")
    if rest:
        return as_html(first) + "\n" + as_html(rest)
    lines = first.splitlines()
    if len(lines) < 2 or not lines[0].startswith("|"):
        return f"<p>{html.escape(first)}</p>"
    head, *body = ([html.escape(c.strip()) for c in line[1:-1].split("|")] for line in lines)
    rows = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    rows += [f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for cells in body[1:]]
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def page(sections: list[str]) -> str:
    """The whole document."""
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>admm-lip: the studies</title><style>{STYLE}</style></head>\n"
        f"<body><h1>admm-lip: the studies</h1>\n{body}\n</body></html>\n"
    )
