"""The one style of the studies' pictures: ours in colour, every end named, no label on another."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from admm_lip.plots import figure, sheet_of
from benchmarks.pictures import COLORS, Curve, name_ends, spread_out, styles_of

HEIGHTS = st.lists(st.floats(-0.2, 1.2), min_size=1, max_size=15)


@given(HEIGHTS)
def test_labels_keep_order_and_distance_and_stay_beside_the_panel(heights: list[float]) -> None:
    placed = np.array(spread_out(heights, 0.062))
    order = np.argsort(heights, kind="stable")
    assert (np.diff(placed[order]) >= 0.062 - 1e-9).all()
    assert placed.min() >= -1e-9
    assert placed.max() <= 1.0 + 1e-9


def test_labels_that_have_room_stay_where_the_curves_end() -> None:
    assert spread_out([0.9, 0.1, 0.5], 0.062) == pytest.approx([0.9, 0.1, 0.5])
    assert spread_out([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])


def test_ours_is_coloured_and_the_others_are_grey_and_told_apart() -> None:
    names = ("SLL", "ADMM", "ADMM, MaxMin", "boundary", "bound 2", "AOL", "target")
    curves = [Curve(name, [0.0], [0.0], markers=True, dashed=name == "target") for name in names]
    styles = styles_of({"first": curves, "second": curves[::-1]})
    ours = [name for name, style in styles.items() if style["color"] in COLORS]
    assert ours == ["ADMM", "ADMM, MaxMin", "bound 2"]
    looks = {
        (style["color"], style["marker"], str(style["linestyle"])) for style in styles.values()
    }
    assert len(looks) == len(names)
    lowest = min(styles[name]["zorder"] for name in ours)
    assert lowest > max(style["zorder"] for name, style in styles.items() if name not in ours)


@pytest.mark.parametrize("log", [False, True])
def test_the_names_of_curves_that_end_together_do_not_collide(log: bool) -> None:
    curves = [Curve(f"ADMM {k}", [1.0, 2.0], [float(k + 1), 100.0 + k]) for k in range(14)]
    with figure(None, (5.2, 3.4)) as (axes,):
        for curve in curves:
            axes.plot(curve.x, curve.y)
        axes.set_yscale("log" if log else "linear")
        name_ends(axes, curves, {curve.label: COLORS[0] for curve in curves})
        sheet = sheet_of(axes)
        sheet.canvas.draw()
        boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the leaders
        whole, panel = sheet.bbox, axes.get_window_extent()
    assert len(boxes) == len(curves)
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert all(panel.x1 < box.x0 and box.x1 <= whole.x1 for box in boxes)
