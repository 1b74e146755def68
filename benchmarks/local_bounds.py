"""Local certificates against pairwise ones, on networks with and without a bound of their own.

    python -m benchmarks local_bounds --data-dir DIR [--samples 1000] [--seed 0]

The two MNIST networks of ``certificates`` (784-64-64-10, plain and adversarial) and two of
``images``, trained under L = 1 for the radius .5, their weights left as they are.  On the first
test pictures: the share certified at the radius, by every level, beside pairwise LipSDP and beside
the share that a projected-gradient attack leaves, which no certificate can exceed; and the
certified radii that the search finds, all of them attacked.  A network whose package is missing is
left out.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from admm_lip import certified_radii, certify
from admm_lip.data import DataSet, load_data
from admm_lip.evaluation.attacks import AttackConfig, fooled, pgd
from admm_lip.evaluation.falsify import assert_sound
from admm_lip.local import LocalConfig, certify_local, local_radii, verify_local

from . import images, record
from .catalogue import parser_of
from .certificates import SUBJECTS, timed, trained
from .contenders import build, train_contender
from .study import read_settings

RADII = {"plain": (0.1,), "pgd": (0.5,), "ADMM, MaxMin": (0.5,), "torchlip": (0.5,)}
PIXELS = (0.0, 1.0)
# Pictures whose largest radius is searched.
SEARCHED = 100
LEVELS = {
    "local, norms": LocalConfig("norms"),
    "local, closed form": LocalConfig("closed"),
    "local, optimised": LocalConfig("optimised"),
    "local, closed form, pixels in [0, 1]": LocalConfig("closed", box=PIXELS),
    # Of these a level is tried where cheaper ones leave the class open.
    "local, tuned": LocalConfig("tuned", decide=True),
    "local, semidefinite": LocalConfig("semidefinite", decide=True),
    "local, semidefinite, pixels in [0, 1]": LocalConfig("semidefinite", decide=True, box=PIXELS),
}
Row = dict[str, Any]


def network(name: str, data: DataSet, seed: int) -> nn.Module | None:
    """A trained network in double precision, so that an attack has no rounding of its own."""
    if name in SUBJECTS:
        return trained(SUBJECTS[name], data.train, seed, (64, 64)).double()
    (radius,) = RADII[name]
    cell = images.cell_of(read_settings("images", quick=False), name, "mnist", radius, seed)
    try:
        model = build(data.n_features, data.n_outputs, cell)
        return train_contender(model, data.train, cell).model.double()
    except ModuleNotFoundError as error:
        print(f"{name}: left out: {error}")
        return None


def share(mask: Tensor) -> float:
    """Percent."""
    return 100.0 * float(mask.double().mean())


def level_rows(name: str, radius: float, model: nn.Module, x: Tensor, y: Tensor) -> list[Row]:
    """Every level at one radius, checked anew."""
    rows: list[Row] = []
    for level, config in LEVELS.items():
        found, cost = timed(partial(certify_local, model, x, radius, y, config=config))
        _, checking = timed(partial(verify_local, found, model))
        known = found.lip[torch.isfinite(found.lip)]
        mean = float(known.mean()) if len(known) else None
        rows.append(
            {
                "network": name,
                "radius": radius,
                "level": level,
                "certified": share(found.robust),
                "mean_lip": mean,
                "seconds": cost.wall,
                "cpu_seconds": cost.cpu,
                "verify_cpu_seconds": checking.cpu,
            }
        )
    return rows


def radii_rows(name: str, model: nn.Module, x: Tensor, y: Tensor, pairs: Any) -> list[Row]:
    """The radii of the search beside the pairwise ones."""
    x, y = x[:SEARCHED], y[:SEARCHED]
    floor = certified_radii(model, x, y, certificate=pairs)
    found, cost = timed(lambda: local_radii(model, x, y, certificate=pairs))
    verify_local(found, model, pairs)
    assert_sound(model, x, y, found.radius)
    rows = []
    for level, radii, took in (("pairwise", floor, 0.0), ("local", found.radius, cost.cpu)):
        numbers = {"mean_radius": float(radii.mean()), "median_radius": float(radii.median())}
        row = {"network": name, "level": f"{level} radii", "pictures": len(x)}
        rows.append({**row, **numbers, "cpu_seconds": took})
    return rows


def main(argv: list[str]) -> None:
    """Train, certify, attack, and write the record."""
    parser = parser_of("local_bounds")
    parser.add_argument("--data-dir", default=None, help="folder of MNIST")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    data = load_data("mnist", options.data_dir)
    x, y = (part[: options.samples] for part in data.test)
    x = x.flatten(1).double()
    rows: list[Row] = []
    for name, radii in RADII.items():
        model = network(name, data, options.seed)
        if model is None:
            continue
        pairs, pairs_cost = timed(partial(certify, model, kind="pairwise"))
        global_radii = certified_radii(model, x, y, certificate=pairs)
        rows.append({"network": name, "level": "clean", "certified": share(~fooled(model, x, y))})
        for radius in radii:
            attacked = pgd(model, x, y, radius, AttackConfig(steps=60, restarts=4))
            ends = {
                "pairwise LipSDP": (share(global_radii > radius), pairs_cost.cpu),
                "attack leaves": (share(~fooled(model, attacked, y)), None),
            }
            rows += level_rows(name, radius, model, x, y)
            for level, (certified, cpu) in ends.items():
                row = {"network": name, "radius": radius, "level": level, "certified": certified}
                rows.append({**row, "cpu_seconds": cpu})
        rows += radii_rows(name, model, x, y, pairs)
        for row in rows:
            if row["network"] == name:
                print(row, flush=True)
    record.save("local_bounds", vars(options) | {"data_dir": None}, rows)


if __name__ == "__main__":
    main([])
