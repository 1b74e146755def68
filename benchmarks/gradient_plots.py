"""Pictures of the gradient benchmarks, from their records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from admm_lip.plots import BLUE, GREY, INK, figure

from .pictures import Curve, Look, draw_dots, draw_panels, name_ends

Row = dict[str, Any]
_LABELS = {
    "undefended": "undefended",
    "fgsm": "FGSM",
    "tv": "TV",
    "tv_lip": "TV + Lip",
    "squared": "squared",
    "squared_double": "squared, double",
}
_ATTACKS = {
    "pgd": "PGD",
    "deepfool": "DeepFool",
    "carlini_wagner": "Carlini-Wagner",
    "boundary": "boundary",
    "evasive": "evasive",
    "evasive_2x": "evasive, 2x as far",
}
_PANELS = (
    ("clean_error", "Clean error, %"),
    ("l2_error", "Error under l2 attack, %"),
    ("linf_error", "Error under linf attack, %"),
    ("max_loss_gradient", "Largest loss gradient"),
)
_REJECTED = 0.5  # of the clean inputs: a detector beyond it is of no use


def plot_study(rows: list[Row], verdicts: list[Row], path: Path) -> None:
    """Every method's errors and largest gradient: one dot per seed, a bar at the mean."""
    panels = {
        f"{title} ({name})": {
            label: [r[key] for r in rows if (r["set"], r["method"]) == (name, method)]
            for method, label in _LABELS.items()
        }
        for name in dict.fromkeys(row["set"] for row in rows)
        for key, title in _PANELS
    }
    draw_dots(panels, path, columns=len(_PANELS))


def plot_detection(curves: Sequence[Row], path: Path) -> None:
    """ROC curves, a panel per model and output; every curve is the mean over the seeds."""
    panels: dict[str, list[Curve]] = {}
    for key in dict.fromkeys((r["model"], r["output"], r["attack"]) for r in curves):
        seeds = [r for r in curves if (r["model"], r["output"], r["attack"]) == key]
        clean = np.asarray(seeds[0]["false_positive"])
        found = np.mean([r["true_positive"] for r in seeds], axis=0)
        shown = clean <= _REJECTED
        curve = Curve(_ATTACKS[key[2]], 100.0 * clean[shown], 100.0 * found[shown])
        panels.setdefault(f"{_LABELS[key[0]]}: Jacobian of the {key[1]}", []).append(curve)
    look = Look("clean inputs rejected, %", "attacks rejected, %")
    draw_panels(panels, path, look)


def plot_theory(data: dict[str, Any], path: Path) -> None:
    """The fit of corrupted labels, the trade-off of the lemma, the rate on a curve."""
    with figure(path, (15.0, 3.6), 1, 3) as (fit, lemma, rate):
        _draw_fit(fit, data["fit"])
        weights = _array(data["lemma"], "weight")
        lemma.set_title("Regularisation: R(f_w) <= C / w")
        slope = _array(data["lemma"], "lip")
        steep = slope > 1e-2  # the zeros beyond have no place on a logarithmic axis
        curves = [
            Curve("R(f_w), exact", weights[steep], slope[steep]),
            Curve("C / w", weights, _array(data["lemma"], "bound"), dashed=True),
            Curve("loss(f_w)", weights, _array(data["lemma"], "loss")),
        ]
        _draw_curves(lemma, curves, (BLUE, INK, GREY))
        lemma.set_xlabel("weight w")
        sizes = _array(data["rate"], "samples")
        rate.set_title("Squared error on a curve (m = 1)")
        proven = _array(data["rate"], "bound")
        scale = float(data["rate"][0]["error"]) / proven[0]
        curves = [
            Curve("measured", sizes, _array(data["rate"], "error"), markers=True),
            Curve("(log n / n)^(1/3)", sizes, scale * proven, dashed=True),
        ]
        _draw_curves(rate, curves, (BLUE, INK))
        rate.set_xlabel("samples n")


def _draw_curves(axes: Axes, curves: Sequence[Curve], colors: Sequence[str]) -> None:
    """Curves on two logarithmic axes, each named at its end."""
    for curve, color in zip(curves, colors, strict=True):
        style = ":" if curve.dashed else "o-" if curve.markers else "-"
        axes.loglog(curve.x, curve.y, style, color=color, ms=5)
    name_ends(axes, curves, {c.label: color for c, color in zip(curves, colors, strict=True)})


def _draw_fit(panel: Any, data: Row) -> None:
    panel.set_title("A tenth of the labels corrupted")
    panel.plot(data["points"], data["labels"], "o", ms=4, color=GREY, label="labels")
    panel.plot(data["fine"], data["network"], color=BLUE, label="network, Lip penalty")
    panel.plot(data["points"], data["exact"], ":", color=INK, label="exact linear program")
    panel.legend(loc="upper right", fontsize=8)


def _array(rows: Sequence[Row], key: str) -> NDArray[np.float64]:
    return np.array([float(row[key]) for row in rows])
