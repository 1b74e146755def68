"""Pictures of the gradient benchmarks, from their records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from admm_lip.plots import BLUE, CLASSES, GREEN, GREY, ORANGE, figure

Row = dict[str, Any]
_LABELS = {
    "undefended": "undefended",
    "fgsm": "FGSM",
    "tv": "TV",
    "tv_lip": "TV + Lip",
    "squared": "squared",
    "squared_double": "squared,\ndouble",
}
_PANELS = (
    ("clean_error", "Clean error, %"),
    ("l2_error", "Error under l2 attack, %"),
    ("linf_error", "Error under linf attack, %"),
    ("max_loss_gradient", "Largest loss gradient"),
)


def plot_study(rows: list[Row], verdicts: list[Row], path: Path) -> None:
    """Every method's errors and largest gradient: one dot per seed, a bar at the mean."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    with figure(path, (15.0, 3.4 * len(sets)), len(sets), len(_PANELS)) as axes:
        for k, name in enumerate(sets):
            for j, (key, title) in enumerate(_PANELS):
                panel = axes[k * len(_PANELS) + j]
                panel.set_title(f"{title} ({name})")
                for place, (method, label) in enumerate(_LABELS.items()):
                    values = [r[key] for r in rows if r["set"] == name and r["method"] == method]
                    color = CLASSES[place]
                    panel.plot([place] * len(values), values, "o", ms=4, alpha=0.6, color=color)
                    panel.plot(
                        [place - 0.3, place + 0.3], 2 * [float(np.mean(values))], color=color
                    )
                    panel.text(
                        place,
                        0,
                        label,
                        rotation=35,
                        ha="right",
                        va="top",
                        fontsize=8,
                        transform=panel.get_xaxis_transform(),
                    )
                panel.set_xticks([])
                panel.set_ylim(bottom=0.0)


def plot_detection(curves: Sequence[Row], path: Path) -> None:
    """ROC curves, a panel per model and output; every curve is the mean over the seeds."""
    panels = list(dict.fromkeys((row["model"], row["output"]) for row in curves))
    with figure(path, (4.4 * len(panels), 4.2), 1, len(panels)) as axes:
        for panel, (model, output) in zip(axes, panels, strict=True):
            panel.set_title(f"{_LABELS[model]}: Jacobian of the {output}")
            mine = [r for r in curves if (r["model"], r["output"]) == (model, output)]
            for color, attack in zip(
                CLASSES, dict.fromkeys(r["attack"] for r in mine), strict=False
            ):
                some = [r for r in mine if r["attack"] == attack]
                mean = np.mean([r["true_positive"] for r in some], axis=0)
                area = float(np.mean([r["auc"] for r in some]))
                style = "--" if attack == "evasive" else "-"
                panel.plot(
                    some[0]["false_positive"],
                    mean,
                    style,
                    color=color,
                    label=f"{attack}  ({area:.2f})",
                )
            panel.plot([0, 1], [0, 1], ":", color=GREY, lw=1.0)
            panel.set_xlabel("share of clean inputs rejected")
            panel.set_ylabel("share of attacks rejected")
            panel.legend(loc="lower right", fontsize=8)


def plot_theory(data: dict[str, Any], path: Path) -> None:
    """The fit of corrupted labels, the trade-off of the lemma, the rate on a curve."""
    with figure(path, (14.0, 3.8), 1, 3) as (fit, lemma, rate):
        _draw_fit(fit, data["fit"])
        weights = _array(data["lemma"], "weight")
        lemma.set_title("Regularisation: R(f_w) <= C / w")
        lemma.loglog(weights, _array(data["lemma"], "lip"), color=BLUE, label="R(f_w), exact")
        lemma.loglog(weights, _array(data["lemma"], "bound"), "--", color=ORANGE, label="C / w")
        lemma.loglog(weights, _array(data["lemma"], "loss"), color=GREEN, label="loss(f_w)")
        lemma.set_ylim(bottom=1e-2)
        lemma.set_xlabel("weight w")
        lemma.legend()
        sizes = _array(data["rate"], "samples")
        rate.set_title("Squared error on a curve (m = 1)")
        rate.loglog(sizes, _array(data["rate"], "error"), "o-", color=BLUE, label="measured")
        proven = _array(data["rate"], "bound")
        scale = float(data["rate"][0]["error"]) / proven[0]
        rate.loglog(sizes, scale * proven, "--", color=ORANGE, label="(log n / n)^(1/3)")
        rate.set_xlabel("samples n")
        rate.legend()


def _draw_fit(panel: Any, data: Row) -> None:
    panel.set_title("A tenth of the labels corrupted")
    panel.plot(data["points"], data["labels"], "o", ms=4, color=GREY, label="labels")
    panel.plot(data["fine"], data["network"], color=BLUE, label="network, Lip penalty")
    panel.plot(data["points"], data["exact"], "--", color=ORANGE, label="exact linear program")
    panel.legend(fontsize=8)


def _array(rows: Sequence[Row], key: str) -> NDArray[np.float64]:
    return np.array([float(row[key]) for row in rows])
