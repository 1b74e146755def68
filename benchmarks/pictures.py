"""The two kinds of picture that the studies need: panels of curves, rows of decision regions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from admm_lip.plots import BLUE, CLASSES, GREEN, GREY, INK, ORANGE, PURPLE, figure

# The first contender of a study (ADMM) is blue; the order of the others is the study's own.
COLORS = (
    *(BLUE, ORANGE, GREEN, PURPLE, "#c9a227", "#b23a48", "#4aa3c7", "#6b705c", "#e08ab0"),
    *("#8d5524", INK),
)
_COLUMNS = 3


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
        label: in the legend; equal labels have equal colours in all panels.
        x: abscissae.
        y: ordinates, as many.
        error: half-widths of the intervals, or nothing.
        markers: draw the points too.
        dashed: a reference, drawn grey and dashed.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = ()
    markers: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Look:
    """Axes of all panels: labels, which are logarithmic, and whether x is marked at the points."""

    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    shared_y: bool = True
    ticks_at_points: bool = False


def draw_panels(panels: Mapping[str, Sequence[Curve]], path: Path, look: Look) -> None:
    """One panel per title, three in a row, one legend under all of them."""
    rows = math.ceil(len(panels) / _COLUMNS)
    columns = min(len(panels), _COLUMNS)
    labels = list(dict.fromkeys(c.label for curves in panels.values() for c in curves))
    colors = _colors(panels, labels)
    with figure(path, (4.6 * columns, 3.5 * rows + 0.5), rows, columns) as axes_all:
        for axes in axes_all[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, curves) in zip(axes_all, panels.items(), strict=False):
            axes.set_title(title)
            for place, curve in enumerate(curves):
                axes.errorbar(
                    curve.x,
                    curve.y,
                    yerr=curve.error or None,
                    color=colors[curve.label],
                    elinewidth=1.0,
                    # The first one is the subject: nothing is drawn over it.
                    zorder=3.0 - place / len(curves),
                    linestyle="--" if curve.dashed else "-",
                    marker="o" if curve.markers else "",
                    markersize=4.5,
                )
            axes.set_xscale("log" if look.log_x else "linear")
            axes.set_yscale("log" if look.log_y else "linear")
            if look.ticks_at_points:
                points = sorted({x for curve in curves for x in curve.x})
                axes.set_xticks(points, labels=[f"{x:g}" for x in points])
                axes.set_xticks([], minor=True)
            axes.set_xlabel(look.x_label)
            axes.set_ylabel(look.y_label)
            axes.margins(x=0.03)
        handles = [axes_all[0].plot([], [], color=colors[name])[0] for name in labels]
        sheet = axes_all[0].get_figure()
        if sheet is not None:
            sheet.legend(handles, labels, loc="outside lower center", ncols=2 * columns)


def _colors(panels: Mapping[str, Sequence[Curve]], labels: Sequence[str]) -> dict[str, str]:
    grey = {c.label for curves in panels.values() for c in curves if c.dashed}
    coloured = [name for name in labels if name not in grey]
    found = {name: COLORS[k % len(COLORS)] for k, name in enumerate(coloured)}
    return found | dict.fromkeys(grey, GREY)


def draw_regions(
    regions: Mapping[str, NDArray[np.uint8]],
    points: NDArray[np.float64],
    labels: NDArray[np.int64],
    path: Path,
) -> None:
    """Decision regions of the unit square, one square per title, the training points on each.

    Args:
        regions: title to classes on a grid, rows along the second input from 0 up.
        points: ``(n, 2)``.
        labels: ``(n,)``.
        path: the PNG to write.
    """
    palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in CLASSES]) / 255.0
    with figure(path, (2.9 * len(regions), 3.2), 1, len(regions)) as axes_all:
        for axes, (title, classes) in zip(axes_all, regions.items(), strict=True):
            axes.set_title(title, fontsize=9)
            axes.grid(visible=False)
            pale = 0.4 * palette[classes] + 0.6
            axes.imshow(pale, origin="lower", extent=(0.0, 1.0, 0.0, 1.0), interpolation="nearest")
            colors = [CLASSES[k] for k in labels]
            axes.scatter(points[:, 0], points[:, 1], s=14, c=colors, ec="white", lw=0.5)
            axes.axhline(0.5, color=INK, lw=0.8, ls=":")
            axes.set_xticks([0.0, 0.5, 1.0])
            axes.set_yticks([0.0, 0.5, 1.0])
