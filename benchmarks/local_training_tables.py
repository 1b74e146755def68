"""What a reader sees of the study of local bounds: table, picture, hypotheses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from admm_lip.plots import BLUE, GREY, INK, figure

from .study import Row
from .tables import groups, markdown, mean, spread

_KEYS = ("data", "net", "width", "activation", "surrogate", "bound", "train_eps")
_NAMES = ("data", "net", "activation", "surrogate")
# column -> heading; all in per cent of the test pictures
_SHARES = {
    "clean": "clean",
    "pgd": "PGD",
    "certified_global": "global",
    "certified_local": "local",
}
# how it is drawn: colour, marker, how far to the side, label
_STYLE = {
    "clean": (GREY, "_", 0.0, "clean"),
    "pgd": (GREY, "x", 0.0, "PGD leaves"),
    "certified_local": (BLUE, "o", 0.0, "certified, local bound"),
    "certified_global": (INK, "^", 0.14, "certified, global bound"),
}


def networks(rows: Sequence[Row]) -> list[Row]:
    """The rows of trained networks."""
    return [row for row in rows if row["kind"] == "network"]


def tabulate(rows: Sequence[Row]) -> str:
    """One line per kind of network: per cent of the test pictures, means over the seeds."""
    header = ["data", "network", "activation", "loss", "trained with", "for eps", "seeds"]
    header += [*_SHARES.values(), "varying", "ratio", "CPU s / epoch"]
    lines = [
        [
            data,
            net if net[0].isdigit() and "-" in net else f"{net} x {width:g}",
            activation,
            surrogate,
            bound,
            f"{eps:.3g}" if bound != "none" else "-",
            len(some),
            *(spread(some, key, 1) for key in _SHARES),
            _known(some, "varying"),
            _known(some, "ratio"),
            f"{mean(some, 'epoch_cpu_seconds'):.1f}",
        ]
        for (data, net, width, activation, surrogate, bound, eps), some in groups(
            networks(rows), *_KEYS
        ).items()
    ]
    return markdown(header, lines)


def _known(rows: Sequence[Row], key: str) -> str:
    """The mean where there is one: without a correct sample there is none."""
    found = [row for row in rows if row[key] is not None]
    return f"{mean(found, key):.3f}" if found else "-"


def costs(rows: Sequence[Row]) -> str:
    """CPU time of an epoch over plain training's, measured in turn in one process."""
    header = ["activation", "loss", "local / plain", "global / plain", "plain, CPU s"]
    lines = [
        [r["activation"], r["surrogate"], r["cost_local"], r["cost_global"], r["plain_cpu_seconds"]]
        for r in rows
        if r["kind"] == "cost"
    ]
    return markdown(header, lines)


def by_sdp(rows: Sequence[Row]) -> str:
    """The perceptrons: certified by the local bound and by the local LMI, on the same rows."""
    header = ["trained with", "seed", "rows", "local bound", "local LMI", "CPU s a picture"]
    lines = [
        [
            row["bound"],
            row["seed"],
            row["sdp_rows"],
            row["sdp_beside_local"],
            row["sdp_certified"],
            row["sdp_cpu_seconds"],
        ]
        for row in networks(rows)
        if "sdp_certified" in row
    ]
    return markdown(header, lines)


class Side(NamedTuple):
    """One side of a comparison: which networks, and what of them."""

    value: Callable[[Row], float]
    where: dict[str, Any]


class Hypothesis(NamedTuple):
    """``more`` exceeds ``less`` for networks that are otherwise alike."""

    text: str
    more: Side
    less: Side


def _own(row: Row) -> float:
    """Certified by the bound that it was trained with."""
    return float(row[f"certified_{row['bound']}"])


def _column(name: str) -> Callable[[Row], float]:
    return lambda row: float(row[name])


def _gain(row: Row) -> float:
    return float(row["certified_local"]) - float(row["certified_global"])


_LOCAL, _GLOBAL = {"bound": "local"}, {"bound": "global"}
HYPOTHESES = (
    Hypothesis(
        "local training certifies more, each by its own", Side(_own, _LOCAL), Side(_own, _GLOBAL)
    ),
    Hypothesis(
        "local training certifies more, both by the local bound",
        Side(_column("certified_local"), _LOCAL),
        Side(_column("certified_local"), _GLOBAL),
    ),
    Hypothesis(
        "the same against global training for a radius 10 % smaller",
        Side(_column("certified_local"), _LOCAL),
        Side(_column("certified_local"), {**_GLOBAL, "train_eps": 1.58}),
    ),
    Hypothesis(
        "local training is more accurate",
        Side(_column("clean"), _LOCAL),
        Side(_column("clean"), _GLOBAL),
    ),
    Hypothesis(
        "local training withstands more attacks",
        Side(_column("pgd"), _LOCAL),
        Side(_column("pgd"), _GLOBAL),
    ),
    Hypothesis(
        "the local bound certifies more of networks trained with it",
        Side(_column("certified_local"), _LOCAL),
        Side(_column("certified_global"), _LOCAL),
    ),
    Hypothesis(
        "its gain over the global one is larger after training with it",
        Side(_gain, _LOCAL),
        Side(_gain, _GLOBAL),
    ),
    Hypothesis(
        "clipped ReLU certifies more than ReLU, local training",
        Side(_own, {**_LOCAL, "activation": "clipped_relu"}),
        Side(_own, {**_LOCAL, "activation": "relu"}),
    ),
    Hypothesis(
        "clipped MaxMin certifies more than ReLU, local training",
        Side(_own, {**_LOCAL, "activation": "clipped_max_min"}),
        Side(_own, {**_LOCAL, "activation": "relu"}),
    ),
)


def verdicts(rows: Sequence[Row]) -> str:
    """Every hypothesis on every kind of network, paired by seed and width."""
    header = ["hypothesis", "data", "network", "activation", "loss", "differences, points", "holds"]
    lines = []
    for hypothesis in HYPOTHESES:
        for kind, found in _differences(networks(rows), hypothesis).items():
            shown = ", ".join(f"{d:+.1f}" for d in found)
            lines.append([hypothesis.text, *kind, shown, _sign(found)])
    return markdown(header, lines)


def _differences(rows: Sequence[Row], hypothesis: Hypothesis) -> dict[tuple[str, ...], list[float]]:
    """Differences by data, network, activation and loss; in each, over widths and seeds."""
    more, less = hypothesis.more, hypothesis.less
    free = set(more.where) | set(less.where)
    pair = [key for key in (*_KEYS, "seed") if key not in free]
    kind = [key for key in _NAMES if key not in free]
    found: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        twin = [r for r in rows if _fits(r, less.where) and all(r[k] == row[k] for k in pair)]
        if _fits(row, more.where) and twin:
            name = tuple(str(row[k]) if k in kind else "any" for k in _NAMES)
            found.setdefault(name, []).append(more.value(row) - less.value(twin[0]))
    return found


def _fits(row: Row, where: dict[str, Any]) -> bool:
    return all(row[key] == value for key, value in where.items())


def _is_control(row: Row) -> bool:
    """Trained for the radius that is certified, not for a larger one."""
    return bool(row["train_eps"] <= row["eps"]) and row["data"] == "mnist"


def _sign(found: Sequence[float]) -> str:
    """Only where all differences have one sign, and there are at least three."""
    if len(found) < 3:
        return "too few"
    return "yes" if min(found) > 0.0 else "no" if max(found) < 0.0 else "not stable"


def other_scale(settings: dict[str, Any]) -> str:
    """The published numbers, which are of other networks, epochs and pictures."""
    header = ["other scale: data", "network", "bound", "clean", "PGD", "certified"]
    keys = ("data", "network", "bound", "clean", "pgd", "certified")
    return markdown(header, [[row[key] for key in keys] for row in settings["other_scale"]])


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Accuracies of every network, one panel per data set, network and loss; a dot per seed."""
    shown = [row for row in networks(rows) if row["surrogate"] != "none" and not _is_control(row)]
    panels = groups(shown, "data", "net", "width", "surrogate")
    columns = 2
    path, lines = folder / "local_training.png", -(-len(panels) // columns)
    with figure(path, (6.2 * columns, 3.3 * lines + 0.4), lines, columns) as everything:
        for axes in everything[len(panels) :]:
            axes.set_visible(False)
        for axes, ((data, net, width, surrogate), some) in zip(
            everything, panels.items(), strict=False
        ):
            axes.set_title(f"{data}, {net} × {width:g}, {surrogate}")
            places = groups(some, "activation", "bound")
            for x, mine in enumerate(places.values()):
                for key, (color, marker, side, _) in _STYLE.items():
                    values = [r[key] for r in mine]
                    axes.scatter([x + side] * len(mine), values, s=22, color=color, marker=marker)
            names = [f"{a.replace('_', chr(10))}\n{b}" for a, b in places]
            axes.set_xticks(range(len(names)), names, fontsize=8)
            axes.set_xlim(-0.5, len(names) - 0.5)
            axes.set_ylim(0.0, 100.0)
            axes.set_ylabel("test pictures, %")
        handles = [
            everything[0].scatter([], [], color=color, marker=marker, label=label)
            for color, marker, _, label in _STYLE.values()
        ]
        sheet = everything[0].get_figure()
        if sheet is not None:
            sheet.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return [path]
