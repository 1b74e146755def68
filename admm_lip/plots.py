"""The pictures of a run, drawn from its records alone; the one file that imports matplotlib.

Every function takes plain records (numbers, lists, dictionaries, arrays), writes one PNG where it
is given a path, and returns the figure.  Figures are built without pyplot, inside a style context,
so no global state of matplotlib changes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .extras import extra
from .files import write_atomic

with extra():
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

Record = Mapping[str, Any]

# Told apart by eyes with any colour vision, and in grey.
BLUE, ORANGE, GREEN, PURPLE, INK, GREY, PALE = (
    "#1d5fa6",
    "#d8661b",
    "#1f8a70",
    "#8456a8",
    "#22262b",
    "#7b828c",
    "#dde2e8",
)
CLASSES = (BLUE, ORANGE, GREEN, PURPLE, "#c9a227", "#b23a48", "#4aa3c7", "#6b705c", "#e08ab0", INK)
_FRONT: dict[str, dict[str, Any]] = {
    "bound": {"color": BLUE, "marker": "o", "ms": 9, "label": "bound enforced"},
    "penalty": {"color": ORANGE, "marker": "D", "ms": 5.5, "label": "penalty μL²"},
}
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 160,
}


def plot_training(
    history: Sequence[Record], path: Path | None = None, requested: float | None = None
) -> Sheet:
    """Loss, Lipschitz constant and ADMM residuals against optimizer steps.

    Args:
        history: rows with ``step``, ``loss``, ``lip``, ``primal_residual``, ``dual_residual``.
        path: the PNG to write, if any.
        requested: the bound asked for, drawn as a dashed line.
    """
    step = _column(history, "step")
    with figure(path, (12.0, 3.6), 1, 3) as (loss, lip, residual):
        loss.set_title("Loss")
        loss.plot(step, _column(history, "loss"), color=BLUE, alpha=0.25, lw=1.0)
        loss.plot(step, _smooth(_column(history, "loss")), color=BLUE)
        lip.set_title("Lipschitz constant of the consensus")
        lip.plot(step, _column(history, "lip"), color=BLUE, label="L in each round")
        if requested is not None:
            lip.axhline(requested, color=ORANGE, ls="--", lw=1.4, label=f"bound {requested:g}")
        lip.set_ylim(0.0, 1.25 * max(float(np.nanmax(_column(history, "lip"))), requested or 0.0))
        lip.legend(loc="lower right")
        residual.set_title("Residuals")
        for key, color, label in (
            ("primal_residual", BLUE, "primal  ‖W − W̄‖"),
            ("dual_residual", ORANGE, "dual  ρ‖W̄⁺ − W̄‖"),
        ):
            values = _column(history, key)
            positive = np.where(values > 0.0, values, np.nan)
            residual.plot(step, positive, color=color, alpha=0.2, lw=0.8)
            residual.plot(step, _smooth(positive), color=color, label=label)
        if np.nanmax(_column(history, "primal_residual")) > 0.0:
            residual.set_yscale("log")
        residual.legend(loc="best")
        for axes in (loss, lip, residual):
            axes.set_xlabel("optimizer steps")
            axes.margins(x=0.02)
    return sheet_of(loss)


def plot_epochs(history: Sequence[Record], path: Path | None = None) -> Sheet:
    """Loss by epoch and, on a second panel, the method's other columns, where it has any.

    Args:
        history: rows with ``epoch``, ``loss`` and any other numbers.
        path: the PNG to write, if any.
    """
    others = dict.fromkeys(key for row in history for key in row)
    names = [key for key in others if key not in ("epoch", "loss", "seconds")]
    epoch = _column(history, "epoch")
    with figure(path, (4.5 + 4.0 * bool(names), 3.4), 1, 1 + bool(names)) as (loss, *rest):
        loss.set_title("Loss")
        loss.plot(epoch, _column(history, "loss"), color=BLUE, marker=".")
        for axes in rest:
            for name, color in zip(names, (ORANGE, GREEN, GREY), strict=False):
                values = [float(row.get(name, np.nan)) for row in history]
                axes.plot(epoch, values, color=color, marker=".", label=name.replace("_", " "))
            axes.legend(loc="best")
        for axes in (loss, *rest):
            axes.set_xlabel("epoch")
    return sheet_of(loss)


def plot_bounds(certificate: Record, path: Path | None = None) -> Sheet:
    """Bars: what sampling reached, the dual lower bound, the proven L, the product of norms.

    Args:
        certificate: with ``lip``, and where known ``sampled_lower``, ``lower_lip``,
            ``norm_product``, ``requested`` and ``measure``, norm and unit of distances.
        path: the PNG to write, if any.
    """
    rows = [
        (label, float(certificate[key]), color)
        for key, label, color in (
            ("sampled_lower", "steepest slope sampled", GREY),
            ("lower_lip", "least any multiplier can prove", GREEN),
            ("lip", "proven L", BLUE),
            ("norm_product", "product of layer norms", ORANGE),
        )
        if certificate.get(key)
    ]
    proven = float(certificate["lip"])
    top = max(value for _, value, _ in rows)
    with figure(path, (7.6, 0.9 + 0.55 * len(rows))) as (axes,):
        asked = certificate.get("requested")
        axes.set_title("How tight is the proof?" + (f"   (requested: {asked:g})" if asked else ""))
        for place, (_, value, color) in enumerate(rows):
            axes.barh(place, value, color=color, height=0.62)
            near = abs(value / proven - 1.0) < 5e-3
            ratio = "" if near else f"   ({value / proven:.3g} × proven)"
            axes.text(value + 0.012 * top, place, f"{value:.5g}{ratio}", va="center", fontsize=9)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0.0, 1.38 * top)
        axes.set_xlabel(
            f"Lipschitz constant ({certificate.get('measure', 'l2')})", parse_math=False
        )
    return sheet_of(axes)


def plot_radius(evaluation: Record, path: Path | None = None) -> Sheet:
    """Certified accuracy against radius, the attack's accuracy above it, and the gap between.

    Args:
        evaluation: the record of :class:`~admm_lip.evaluation.evaluate.Evaluation` of a
            classifier; ``measure``, where it is there, says norm and unit of the radii.
        path: the PNG to write, if any.
    """
    radii = np.asarray(evaluation["radii"], float)
    certified = np.asarray(evaluation["certified_accuracy"], float)
    attacked = np.asarray(evaluation["attack_accuracy"], float)
    report = float(evaluation["report_radius"])
    with figure(path, (6.8, 4.4)) as (axes,):
        axes.set_title("Accuracy that survives a perturbation of the input")
        axes.fill_between(radii, certified, np.maximum(attacked, certified), color=PALE)
        axes.fill_between(radii, 0.0, certified, color=BLUE, alpha=0.12)
        axes.plot(radii, attacked, color=GREY, label="not broken by attack (upper estimate)")
        axes.plot(radii, certified, color=BLUE, label="certified (proven lower bound)")
        at = float(evaluation["certified_at_report"])
        axes.plot([report, report], [0.0, at], color=INK, lw=1.0, ls=":")
        axes.plot([report], [at], "o", color=BLUE, ms=6, mec="white", mew=1.2)
        axes.annotate(
            f"{at:.1%} certified\nat radius {report:g}",
            (report, 0.5 * at),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
        axes.set_xlabel(evaluation.get("measure", "l2 radius, in input units"))
        axes.set_ylabel("share of test rows")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlim(0.0, float(radii[-1]) or 1.0)
        axes.set_ylim(0.0, 1.02)
        axes.legend(loc="upper right")
    return sheet_of(axes)


def plot_front(rows: Sequence[Record], path: Path | None = None) -> Sheet:
    """Penalty against enforced bound: accuracy against the proven L of each run.

    Args:
        rows: with ``mode`` (``"penalty"`` or ``"bound"``), ``lip``, ``value`` (mu or the bound
            asked for), and the metric's fields: ``clean_accuracy``, ``certified_at_report`` and
            ``report_radius``, or ``rmse``.
        path: the PNG to write, if any.
    """
    regression = "rmse" in rows[0]
    panels = (
        [("rmse", "Test error against the proven L", "root mean squared error")]
        if regression
        else [
            ("clean_accuracy", "Clean accuracy", "share of test rows"),
            (
                "certified_at_report",
                f"Certified accuracy at radius {rows[0]['report_radius']:g}",
                "share of test rows",
            ),
        ]
    )
    with figure(path, (5.6 * len(panels), 4.2), 1, len(panels)) as axes_row:
        for axes, (key, title, label) in zip(axes_row, panels, strict=True):
            axes.set_title(title)
            for mode, style in _FRONT.items():
                _front_line(axes, [r for r in rows if r["mode"] == mode], key, style)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("proven Lipschitz constant L")
            axes.set_ylabel(label)
            if not regression:
                axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.margins(0.12)
            axes.legend(loc="best")
    return sheet_of(axes_row[0])


def plot_regions(regions: Mapping[str, NDArray[Any]], path: Path | None = None) -> Sheet:
    """Decision regions of a classifier of the plane, with contours of the certified radius.

    Args:
        regions: ``extent`` (x0, x1, y0, y1), ``classes`` and ``radius`` on a grid of rows along y,
            and the training ``points`` (n, 2) with their ``labels``.
        path: the PNG to write, if any.
    """
    x0, x1, y0, y1 = tuple(float(v) for v in regions["extent"][:4])
    classes, radius = regions["classes"], regions["radius"].astype(float)
    x = np.linspace(x0, x1, classes.shape[1])
    y = np.linspace(y0, y1, classes.shape[0])
    with figure(path, (6.0, 5.4)) as (axes,):
        axes.set_title("Decision regions and certified radius")
        axes.grid(visible=False)
        axes.imshow(
            classes,
            origin="lower",
            extent=(x0, x1, y0, y1),
            cmap=ListedColormap([CLASSES[k % len(CLASSES)] for k in range(int(classes.max()) + 1)]),
            vmin=-0.5,
            vmax=int(classes.max()) + 0.5,
            alpha=0.33,
            interpolation="nearest",
            aspect="equal",
        )
        if radius.max() > 0.0:
            levels = radius.max() * np.array([0.25, 0.5, 0.75])
            lines = axes.contour(x, y, radius, levels=levels, colors=GREY, linewidths=0.8)
            axes.clabel(lines, fmt="%.2g", fontsize=7)
        for k in np.unique(regions["labels"]):
            points = regions["points"][regions["labels"] == k]
            axes.scatter(
                points[:, 0],
                points[:, 1],
                s=26,
                color=CLASSES[int(k) % len(CLASSES)],
                edgecolor="white",
                linewidth=0.7,
                label=f"class {int(k)}",
                zorder=3,
            )
        axes.set_xlim(x0, x1)
        axes.set_ylim(y0, y1)
        axes.set_xlabel("first input")
        axes.set_ylabel("second input")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=5)
    return sheet_of(axes)


class Sheet(Figure):
    """A figure that a notebook shows, though pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.savefig(picture, format="png", metadata={"Software": None})
        return picture.getvalue()


def sheet_of(axes: Axes) -> Sheet:
    """The figure that axes are part of."""
    sheet = axes.get_figure()
    assert isinstance(sheet, Sheet)
    return sheet


@contextmanager
def figure(
    path: Path | None, size: tuple[float, float], rows: int = 1, columns: int = 1
) -> Iterator[tuple[Axes, ...]]:
    """Axes to draw on, saved to ``path`` afterwards: the old file or the new one, never half."""
    with mpl.rc_context(STYLE):
        sheet = Sheet(figsize=size, layout="constrained")
        FigureCanvasAgg(sheet)
        axes = sheet.subplots(rows, columns, squeeze=False)
        yield tuple(axes.flatten())
    if path is not None:
        write_atomic(path, sheet._repr_png_())


def _front_line(axes: Axes, rows: Sequence[Record], key: str, style: Mapping[str, Any]) -> None:
    """One mode's runs in order of L, each labelled with what was asked for."""
    rows = sorted(rows, key=lambda r: float(r["lip"]))
    if not rows:
        return
    lip, value = _column(rows, "lip"), _column(rows, key)
    axes.plot(lip, value, mec="white", mew=0.8, **style)
    if rows[0]["mode"] == "penalty":
        for row, x, y in zip(rows, lip, value, strict=True):
            axes.annotate(
                f"μ={row['value']:g}",
                (x, y),
                (0, 8),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
                color=style["color"],
            )


def _column(rows: Sequence[Record], key: str) -> NDArray[np.float64]:
    return np.array([float(row[key]) for row in rows])


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred running mean over about a fortieth of the run; NaN are skipped."""
    width = max(1, len(values) // 40)
    known = np.isfinite(values)
    kernel = np.ones(width)
    total = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    count = np.convolve(known.astype(float), kernel, mode="same")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)
