"""``python -m benchmarks report``: every table and plot, made from the records alone.

Writes ``results/report.html``, one page that needs no other file, the plots beside it, and prints
the tables as markdown.  Nothing is run again; a study without a record is left out.  The page is
not committed, so that it cannot be older than its records.
"""

from __future__ import annotations

import argparse
import base64
import html
import importlib
from pathlib import Path
from typing import Any

from admm_lip.files import write_atomic

from . import record
from .study import Study, succeeded
from .tables import markdown

STUDIES = (
    "toy2d",
    "mnist_noise",
    "front",
    "images_tuning",
    "images",
    "images_cost",
    "image_training",
    "square_wave",
    "tabular",
    "backends",
    "ablation",
    "finetune",
    "falsification",
    "attacked_balls",
    "forgeries",
    "local_training",
)
# Record -> why it is not on the page.
EXCLUDED: dict[str, str] = {}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22262b; max-width: 72rem; margin: 2rem auto;
       padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #dde2e8;
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__)
    parser.add_argument("--output", type=Path, default=record.RESULTS / "report.html")
    options = parser.parse_args(argv)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    sections = [
        section(name, options.output.parent) if name in STUDIES else other(name)
        for name in on_the_page()
    ]
    write_atomic(options.output, page([found for found, _ in sections]).encode())
    for _, text in sections:
        print(text, end="\n\n")
    print(f"report: {options.output}")


def on_the_page() -> list[str]:
    """The records that the page is made of: the studies in their order, then all others.

    Those of quick runs, which are not committed, are left out, and those of ``EXCLUDED``.
    """
    there = {p.stem for p in record.RESULTS.glob("*.json") if not p.stem.endswith("_quick")}
    studies = [name for name in STUDIES if name in there]
    return [*studies, *sorted(there - set(studies) - set(EXCLUDED))]


def section(name: str, folder: Path) -> tuple[str, str]:
    """HTML and markdown of one study; its pictures are drawn anew in ``folder``."""
    study: Study = importlib.import_module(f"benchmarks.{name}").STUDY
    loaded = record.load(name)
    rows, table = succeeded(loaded["rows"]), table_of(name)
    pictures = [_embedded(path) for path in (study.draw(rows, folder) if rows else [])]
    parts = [f"<h2>{html.escape(study.title)}</h2>", _about(loaded), *pictures, as_html(table)]
    return "\n".join(parts), f"## {study.title}\n\n{table}"


def table_of(name: str) -> str:
    """A record's table in markdown: its study's own, else its flat fields.

    Raises:
        ValueError: for a record without rows, which belongs into ``EXCLUDED``.
    """
    rows = record.load(name).get("rows")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name}.json: expected rows; give the reason for none in report.EXCLUDED")
    if name not in STUDIES:
        return "\n\n".join(_flat_table(some) for some in by_shape(rows))
    study: Study = importlib.import_module(f"benchmarks.{name}").STUDY
    ran = succeeded(rows)
    return study.tabulate(ran) if ran else "no cell has run"


def other(name: str) -> tuple[str, str]:
    """HTML and markdown of a record that is no study: its flat fields, and its picture."""
    loaded, table = record.load(name), table_of(name)
    title = name.replace("_", " ")
    picture = record.RESULTS / f"{name}.png"
    shown = _embedded(picture) if picture.is_file() else ""
    parts = [f"<h2>{html.escape(title)}</h2>", _about(loaded), shown, as_html(table)]
    return "\n".join(parts), f"## {title}\n\n{table}"


def by_shape(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows with the same fields stand in one table."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row), []).append(row)
    return list(found.values())


def _flat_table(rows: list[dict[str, Any]]) -> str:
    fields = [key for key, value in rows[0].items() if not isinstance(value, list | dict)]
    return markdown(fields, [[row.get(key, "") for key in fields] for row in rows])


def _about(loaded: dict[str, Any]) -> str:
    """Machine, versions, and what failed."""
    stamp = html.escape(", ".join(f"{key} {_flat(v)}" for key, v in loaded["machine"].items()))
    errors = [row["error"] for row in loaded["rows"] if "error" in row]
    counted = "".join(
        f"<br>{errors.count(e)} cells not in the table: {html.escape(e)}"
        for e in dict.fromkeys(errors)
    )
    return f'<p class="small">{stamp}{counted}</p>'


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{k} {v}" for k, v in value.items()) + ")"
    return str(value)


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
