"""Pictures of results that have a number for each of many rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .plots import BLUE, GREY, INK, Sheet, figure, sheet_of

# Most functionals that are named below their bounds.
_NAMED = 64


def plot_functionals(bounds: Sequence[Mapping[str, Any]], measure: str) -> Sheet:
    """Of every functional, in order of its bound, what was proven and what was met.

    Args:
        bounds: with ``functional``, ``lip``, ``sampled_lower`` and ``norm_product``.
        measure: norm and unit of the bounds.
    """
    rows = sorted(bounds, key=lambda row: float(row["lip"]))
    places = range(len(rows))
    lip, met, norms = (
        [float(row[name]) for row in rows] for name in ("lip", "sampled_lower", "norm_product")
    )
    with figure(None, (7.6, 4.2)) as (axes,):
        axes.set_title(f"{len(rows)} proven bounds")
        axes.plot(places, norms, ".", color=GREY, ms=4, label="product of norms")
        axes.vlines(places, met, lip, color=GREY)
        axes.plot(places, lip, "o", ms=4, color=BLUE, label="proven L")
        axes.plot(places, met, "_", color=INK, label="steepest slope sampled")
        names = [str(row["functional"]) if len(rows) <= _NAMED else "" for row in rows]
        axes.set_xticks(places, names, rotation=90, fontsize=7, parse_math=False)
        axes.set_ylim(bottom=0.0)
        axes.set_ylabel("Lipschitz constant")
        axes.set_xlabel(measure, parse_math=False)
        axes.legend(loc="lower right")
    return sheet_of(axes)


def plot_shares(values: Sequence[float], label: str) -> Sheet:
    """The share of rows whose value is greater than each number; infinite ones stay to the end.

    Args:
        values: one per row.
        label: of the numbers.
    """
    given = np.asarray(values, float)
    ends = np.sort(given[np.isfinite(given)])
    share = 1.0 - np.arange(len(ends) + 1) / max(len(given), 1)
    with figure(None, (6.8, 4.4)) as (axes,):
        axes.set_title(f"{len(given)} rows")
        axes.stairs(share[:-1], np.concatenate([[0.0], ends]), color=BLUE, baseline=None, lw=1.8)
        axes.hlines(share[-1], ends[-1] if len(ends) else 0.0, 1.1 * ends.max(initial=1e-9), BLUE)
        axes.set_xlim(left=0.0)
        axes.set_ylim(0.0, 1.02)
        axes.set_xlabel(label, parse_math=False)
        axes.set_ylabel("share of rows beyond")
        axes.yaxis.set_major_formatter("{x:.0%}")
    return sheet_of(axes)
