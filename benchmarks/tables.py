"""Rows into tables: groups, means with intervals, markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from scipy.stats import t as student

from .study import Row


def groups(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by their values of ``keys``, in the order they first appear."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[k] for k in keys), []).append(row)
    return found


def mean(rows: Sequence[Row], key: str) -> float:
    """Mean of one column."""
    return math.fsum(float(row[key]) for row in rows) / len(rows)


def half_width(values: Sequence[float]) -> float:
    """Half the 95 % interval of a mean (Student's t); NaN below two values."""
    n = len(values)
    if n < 2:
        return math.nan
    centre = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (n - 1))
    return float(student.ppf(0.975, n - 1)) * deviation / math.sqrt(n)


def spread(rows: Sequence[Row], key: str, digits: int = 2) -> str:
    """``mean ± half_width`` of one column; below three rows their values."""
    values = [float(row[key]) for row in rows]
    if len(values) < 3:
        return ", ".join(f"{value:.{digits}f}" for value in values)
    centre = math.fsum(values) / len(values)
    return f"{centre:.{digits}f} ± {half_width(values):.{digits}f}"


def markdown(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A markdown table; numbers are shown with at most four digits."""
    body = [header, ["---"] * len(header), *([_cell(v) for v in line] for line in lines)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in body)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
