"""The pictures that the studies need: panels of curves, panels of dots, decision regions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from admm_lip.plots import BLUE, CLASSES, GREEN, GREY, INK, ORANGE, PURPLE, figure

# What is ours is coloured, by the first word of its label; the others are grey, told apart by their
# markers, dashes and the labels at their ends.
OURS = (
    *("ADMM", "bound", "penalty", "native", "defaults", "TV", "evasive", "local"),
    *("certify", "project", "train", "verify"),
)
COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#c9a227", "#b23a48", "#3aa6b9")
_TEXT = "#555b63"
_GREYS = (GREY, "#a5abb3", _TEXT)
_LEADER = {"arrowstyle": "-", "lw": 0.6, "alpha": 0.7, "relpos": (0.0, 0.5), "shrinkA": 1.0}
_MARKERS = "osD^vP<X>*"
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), "-.")
_LABEL_GAP = 0.062  # of a panel's height, between the middles of two labels
_COLUMNS = 3


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
        label: at its end; equal labels have equal looks in all panels.
        x: abscissae.
        y: ordinates, as many.
        error: half-widths of the intervals, or nothing.
        markers: draw the points too.
        dashed: a reference, drawn grey and dashed.
    """

    label: str
    x: Sequence[float] | NDArray[np.float64]
    y: Sequence[float] | NDArray[np.float64]
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
    """One panel per title, at most three in a row, every curve named at its end."""
    columns = 2 if len(panels) == 4 else min(len(panels), _COLUMNS)
    rows = math.ceil(len(panels) / columns)
    styles = styles_of(panels)
    with figure(path, (5.2 * columns, 3.4 * rows), rows, columns) as axes_all:
        for axes in axes_all[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, curves) in zip(axes_all, panels.items(), strict=False):
            axes.set_title(title)
            for curve in curves:
                _draw_curve(axes, curve, styles[curve.label])
            _scale(axes, curves, look)
            name_ends(axes, curves, {name: style["color"] for name, style in styles.items()})


def styles_of(panels: Mapping[str, Sequence[Curve]]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes by label: ours in colour and above the others, which are grey."""
    found: dict[str, dict[str, Any]] = {}
    counts = {True: 0, False: 0}
    for curve in (curve for curves in panels.values() for curve in curves):
        if curve.label in found:
            continue
        if curve.dashed:
            found[curve.label] = {"color": INK, "linestyle": ":", "marker": "", "zorder": 2.0}
            continue
        ours = _is_ours(curve.label)
        place = counts[ours]
        counts[ours] += 1
        color = COLORS[place % len(COLORS)] if ours else _GREYS[place % len(_GREYS)]
        marker = "o" if ours else _MARKERS[1 + place % (len(_MARKERS) - 1)]
        dashes = "-" if ours or curve.markers else _DASHES[place % len(_DASHES)]
        above = (3.0 if ours else 2.5) - 0.01 * place
        found[curve.label] = {
            "color": color,
            "marker": marker if curve.markers else "",
            "linestyle": dashes,
            "linewidth": 2.0 if ours else 1.3,
            "zorder": above,
        }
    return found


def _draw_curve(axes: Axes, curve: Curve, style: Mapping[str, Any]) -> None:
    axes.errorbar(
        curve.x, curve.y, yerr=curve.error or None, elinewidth=1.0, markersize=4.5, **style
    )


def _scale(axes: Axes, curves: Sequence[Curve], look: Look) -> None:
    """Scales and ticks that do not touch each other."""
    points = sorted({x for curve in curves for x in curve.x})
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    for axis, scale, log in (
        (axes.xaxis, axes.set_xscale, look.log_x),
        (axes.yaxis, axes.set_yscale, look.log_y),
    ):
        if log:
            scale("log")
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
    counted = not look.log_x and all(float(x).is_integer() for x in points)  # seeds, repeats
    if look.ticks_at_points or counted:
        axes.set_xticks(points, labels=[f"{x:g}" for x in points])
        axes.set_xticks([], minor=True)
    axes.set_xlabel(look.x_label)
    axes.set_ylabel(look.y_label)
    axes.margins(x=0.03)


def name_ends(axes: Axes, curves: Sequence[Curve], colors: Mapping[str, str]) -> None:
    """The label of each curve right of the panel, as high as its end unless another is there."""
    axes.autoscale_view()  # else the limits are found when the sheet is drawn
    named = [curve for curve in curves if len(curve.x)]
    ends = [(curve.x[-1], curve.y[-1]) for curve in named]
    to_panel = axes.transData + axes.transAxes.inverted()
    heights = spread_out([float(to_panel.transform(end)[1]) for end in ends], _LABEL_GAP)
    for curve, end, height in zip(named, ends, heights, strict=True):
        color = colors[curve.label]
        axes.annotate(
            curve.label,
            end,
            (1.04, height),
            xycoords="data",
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=_TEXT if color in _GREYS else color,
            arrowprops=_LEADER | {"color": color},
            annotation_clip=False,
            parse_math=False,
        )


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """The nearest heights in [0, 1], in squares, that keep their order and ``gap`` between them."""
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(order))
    nearest = isotonic_regression(np.asarray(heights, float)[order] - steps).x
    placed = np.empty(len(order))
    placed[order] = np.clip(nearest, 0.0, max(0.0, 1.0 - gap * (len(order) - 1))) + steps
    return [float(height) for height in placed]


def draw_dots(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    path: Path,
    columns: int = _COLUMNS,
    log: Sequence[str] = (),
) -> None:
    """One line per name with a dot per run and a bar at their mean; names at the left, once a row.

    Args:
        panels: title to name to the runs' values; the names of a row of panels are its first's.
        path: the PNG to write.
        columns: panels beside each other.
        log: titles of the panels whose axis is logarithmic.
    """
    rows = math.ceil(len(panels) / columns)
    tallest = max(len(some) for some in panels.values())
    size = (1.4 + 3.6 * min(columns, len(panels)), rows * (1.1 + 0.27 * tallest))
    with figure(path, size, rows, min(columns, len(panels))) as axes_all:
        for axes in axes_all[len(panels) :]:
            axes.set_visible(False)
        left: list[str] = []
        for place, (axes, (title, some)) in enumerate(zip(axes_all, panels.items(), strict=False)):
            left = left if place % columns else []
            axes.set_title(title, pad=14)
            _draw_lines(axes, some, named=list(some) != left)
            left = list(some)
            axes.grid(visible=False, axis="y")
            axes.spines["left"].set_visible(False)
            if title in log:
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter("{x:g}")
            else:
                axes.xaxis.set_major_locator(MaxNLocator(4))


def _draw_lines(axes: Axes, lines: Mapping[str, Sequence[float]], named: bool) -> None:
    """The dots of one panel, the first name at the top, what is ours in colour."""
    for height, (name, values) in enumerate(lines.items()):
        color = BLUE if _is_ours(name) else GREY
        axes.plot(values, [height] * len(values), "o", ms=4.5, alpha=0.6, mew=0.0, color=color)
        mean = float(np.mean(values))
        axes.plot([mean, mean], [height - 0.3, height + 0.3], lw=2.0, color=color)
    axes.set_yticks(range(len(lines)), list(lines) if named else [""] * len(lines))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.margins(x=0.06)


def _is_ours(label: str) -> bool:
    return re.split(r"[ ,]", label)[0] in OURS


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
    columns = min(4, len(regions))
    rows = math.ceil(len(regions) / columns)
    with figure(path, (3.0 * columns, 3.3 * rows), rows, columns) as axes_all:
        for axes in axes_all[len(regions) :]:
            axes.set_visible(False)
        for axes, (title, classes) in zip(axes_all, regions.items(), strict=False):
            axes.set_title(title)
            axes.grid(visible=False)
            pale = 0.4 * palette[classes] + 0.6
            axes.imshow(pale, origin="lower", extent=(0.0, 1.0, 0.0, 1.0), interpolation="nearest")
            colors = [CLASSES[k] for k in labels]
            axes.scatter(points[:, 0], points[:, 1], s=14, c=colors, ec="white", lw=0.5)
            axes.axhline(0.5, color=INK, lw=0.8, ls=":")
            axes.set_xticks([0.0, 0.5, 1.0])
            axes.set_yticks([0.0, 0.5, 1.0])
