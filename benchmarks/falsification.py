"""Attacks on thousands of certified radii: one that succeeds inside a radius stops the study.

Every kind of certificate (all outputs together, pairs, local; inputs in l2 and linf; ReLU, tanh and
MaxMin; trained plainly, against PGD, and under a bound) states radii of the rows of MNIST's test
set and of all of digits.  Each ball is searched by projected gradient ascent with restarts and by a
search without gradients; then larger balls, for the nearest attack.  The smallest quotient of an
attack's distance and the certified radius is at least 1, or a certificate is wrong.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from admm_lip import TrainConfig, certified_radii, certify
from admm_lip.certificates.certificate import AnyCertificate, Functionals
from admm_lip.data import load_data
from admm_lip.evaluation.attacks import AttackConfig
from admm_lip.evaluation.falsify import falsify
from admm_lip.local import LocalConfig, local_radii
from admm_lip.networks.models import ModelConfig, build_mlp

from .certificates import SUBJECTS, timed, trained
from .contenders import Pair
from .study import Cell, Row, Study, run_from_command_line
from .tables import markdown
from .whole_run import train


def cells(settings: Cell) -> list[Cell]:
    """Every network with every claim that is made of it."""
    shared = {key: settings[key] for key in ("attack", "factors", "seed", "local_tol")}
    return [
        {**shared, **case, "case": name, **claim}
        for name, case in settings["cases"].items()
        for claim in settings["claims"]
        if (claim["kind"] != "local" or case.get("local"))
        and claim.get("only", case["data"]) == case["data"]
    ]


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Certify and attack; raises ``SoundnessError`` where an attack succeeds inside a radius."""
    model = _network(_names(cell), data_dir)
    x, y = _rows(cell, data_dir)
    claimed, cost = timed(lambda: _radii(cell, model, x, y))
    radii, certificate = claimed
    config = AttackConfig(**cell["attack"], norm=cell["norm"], seed=cell["seed"])
    found, attacking = timed(
        lambda: falsify(
            model,
            radii,
            x,
            y,
            certificate=certificate,
            config=config,
            factors=tuple(cell["factors"]),
        )
    )
    return {
        "rows": len(x),
        "samples": found.samples,
        "attacks": found.attacks,
        "broken_outside": int(torch.isfinite(found.distance).sum()),
        "smallest_ratio": found.smallest_ratio,
        "median_ratio": found.median_ratio,
        "mean_radius": float(radii[torch.isfinite(radii)].mean()),
        "certify_cpu_seconds": cost.cpu,
        "attack_cpu_seconds": attacking.cpu,
    }


def _radii(
    cell: Cell, model: nn.Module, x: Tensor, y: Tensor
) -> tuple[Tensor, AnyCertificate | None]:
    """The radii of a claim, and the certificate that says how they are measured."""
    if cell["kind"] == "local":
        pairs = certify(model, kind="pairwise", progress=False)
        config = LocalConfig(tol=cell["local_tol"])
        return local_radii(model, x, y, certificate=pairs, config=config).radius, None
    certificate: AnyCertificate
    if cell["kind"] == "global":
        certificate = certify(model, norm=cell["norm"])
    else:
        kind = cast(Functionals, cell["kind"])
        certificate = certify(model, kind=kind, norm=cell["norm"], progress=False)
    return certified_radii(model, x, y, certificate=certificate), certificate


def _names(cell: Cell) -> tuple[Any, ...]:
    """What decides a network."""
    settings = tuple(sorted(cell.get("train", {}).items()))
    activation = cell.get("activation", "relu")
    return cell["data"], cell.get("subject"), tuple(cell["hidden"]), activation, settings


@lru_cache(maxsize=1)
def _network(names: tuple[Any, ...], data_dir: str | None) -> nn.Module:
    """Trained once per case; in double precision, so that attacks have no rounding of their own."""
    data, subject, hidden, activation, settings = names
    pair = load_data(data, data_dir).train
    if subject is not None:
        return trained(SUBJECTS[subject], pair, 0, hidden).double().eval()
    fresh = build_mlp(pair[0].shape[1], 10, ModelConfig(hidden, activation), seed=0)
    return train(fresh, pair, TrainConfig(**dict(settings)), progress=False).model.double().eval()


def _rows(cell: Cell, data_dir: str | None) -> Pair:
    """The first test rows; where ``samples`` is null, all rows of both parts."""
    data = load_data(cell["data"], data_dir)
    (x, y), count = data.test, cell["samples"]
    if count is None:
        x, y = torch.cat([data.train[0], x]), torch.cat([data.train[1], y])
    if cell["kind"] == "local":
        count = cell["local"]
    return x[:count].double(), y[:count]


def tabulate(rows: list[Row]) -> str:
    """One line per network and claim, and all together."""
    keys = ("case", "claim", "norm", "rows", "samples", "attacks", "broken_outside")
    lines = [[*(r[k] for k in keys), r["smallest_ratio"], r["median_ratio"]] for r in rows]
    total = [sum(int(r[k]) for r in rows) for k in keys[3:]]
    lines.append(["together", "", "", *total, min(r["smallest_ratio"] for r in rows), ""])
    head = ["network", "radii", "norm", "rows", "balls", "searches", "broken outside"]
    return markdown([*head, "smallest ratio", "median ratio"], lines)


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Nothing: the table says it."""
    return []


STUDY = Study("falsification", cells, run_cell, tabulate, draw, jobs=1)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
