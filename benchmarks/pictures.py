"""The two kinds of picture that the studies need: panels of curves, rows of decision regions."""

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
OURS = ("ADMM", "bound", "penalty", "native", "defaults")
COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#c9a227", "#b23a48")
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
    """One panel per title, three in a row, every curve named at its end."""
    rows = math.ceil(len(panels) / _COLUMNS)
    columns = min(len(panels), _COLUMNS)
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
        ours = re.split(r"[ ,]", curve.label)[0] in OURS
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
