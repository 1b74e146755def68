import subprocess
import sys

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest

from admm_lip import plots


def history(n=40):
    return [
        {
            "step": 4 * k,
            "loss": 1.0 / (k + 1),
            "lip": 1.0,
            "primal_residual": 0.5**k,
            "dual_residual": 0.0 if k == 0 else 0.6**k,
        }
        for k in range(n)
    ]


EVALUATION = {
    "radii": [0.0, 0.1, 0.2],
    "certified_accuracy": [0.97, 0.9, 0.5],
    "attack_accuracy": [0.97, 0.95, 0.8],
    "report_radius": 0.1,
    "certified_at_report": 0.9,
}
BOUNDS = {
    "lip": 1.0,
    "requested": 1.0,
    "norm_product": 2.5,
    "sampled_lower": 0.8,
    "lower_lip": 0.99,
}
FRONT = [
    {
        "mode": mode,
        "value": 0.1 * k,
        "lip": 0.9 * k,
        "clean_accuracy": 0.9 + 0.01 * k,
        "certified_at_report": 0.8,
        "report_radius": 0.1,
    }
    for mode in ("penalty", "bound")
    for k in (1, 2, 3)
]
REGIONS = {
    "extent": np.array([0.0, 1.0, 0.0, 2.0]),
    "classes": (np.add.outer(np.arange(30), np.arange(20)) % 50 > 25).astype(np.uint8),
    "radius": np.random.default_rng(0).random((30, 20)),
    "points": np.random.default_rng(1).random((9, 2)),
    "labels": np.arange(9) % 2,
}
DRAWINGS = {
    "training": (plots.plot_training, history()),
    "training, one row": (plots.plot_training, history(1)),
    "bounds": (plots.plot_bounds, BOUNDS),
    "bounds, L alone": (plots.plot_bounds, {"lip": 2.0, "requested": None, "lower_lip": 0.0}),
    "radius": (plots.plot_radius, EVALUATION),
    "front": (plots.plot_front, FRONT),
    "front of one run": (plots.plot_front, FRONT[:1]),
    "front, regression": (
        plots.plot_front,
        [{"mode": "bound", "value": 1.0, "lip": 1.0, "rmse": 0.3}],
    ),
    "regions": (plots.plot_regions, REGIONS),
    "regions, nothing certified": (
        plots.plot_regions,
        REGIONS | {"radius": np.zeros((30, 20)), "classes": np.zeros((30, 20), np.uint8)},
    ),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_plot_is_a_picture_that_differs_from_blank(name, tmp_path):
    draw, record = DRAWINGS[name]
    settings = dict(mpl.rcParams)
    draw(record, tmp_path / "plot.png")
    picture = matplotlib.image.imread(tmp_path / "plot.png")
    assert min(picture.shape[:2]) > 150
    assert picture[..., :3].std() > 0.02
    assert [p.name for p in tmp_path.iterdir()] == ["plot.png"]
    assert dict(mpl.rcParams) == settings


def test_plots_depend_on_the_records(tmp_path):
    for name, lip in (("a", 1.0), ("b", 2.0)):
        plots.plot_bounds(BOUNDS | {"lip": lip}, tmp_path / f"{name}.png")
    a, b = ((tmp_path / f"{name}.png").read_bytes() for name in "ab")
    assert a != b


def test_the_same_records_give_the_same_bytes(tmp_path):
    for name in "ab":
        plots.plot_radius(EVALUATION, tmp_path / f"{name}.png")
    a, b = ((tmp_path / f"{name}.png").read_bytes() for name in "ab")
    assert a == b
    assert str(tmp_path).encode() not in a


def test_pyplot_is_never_imported():
    code = "import sys, admm_lip.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_values_are_gaps(tmp_path):
    rows = history()
    rows[3]["loss"] = float("nan")
    rows[4]["primal_residual"] = 0.0
    plots.plot_training(rows, tmp_path / "t.png", requested=1.0)
    assert (tmp_path / "t.png").is_file()
