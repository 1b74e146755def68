"""A million attacked balls: small networks of every kind, thousands of certified balls on each.

Every cell certifies the rows of one network by one kind of claim and attacks each ball just inside
its surface: projected gradient ascent with restarts, random directions and other classes' rows,
rays with points along them.  One success and the cell fails, naming the row.  The claims:

* ``global``, ``pairwise``: radii from LipSDP bounds for all inputs;
* ``robust``: a class that a local certificate proves on a ball of given radius;
* ``radius``: the largest such ball found;
* ``slope``: a Lipschitz bound on a ball, held against the steepest Jacobians met on it;
* ``samples``: what ``certify_local`` certifies by masked norms.

That the search can fail is measured with planted false claims: on some rows the nearest attack is
sought, and 1.05 times its distance is claimed as a radius (a slope over 1.05 as a bound); another
search, of another seed, should break most of them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from admm_lip import certified_radii, certify
from admm_lip.evaluation.attacks import AttackConfig
from admm_lip.evaluation.falsification import Falsification
from admm_lip.evaluation.falsify import broken, falsify, falsify_local, steepest_slopes
from admm_lip.local import LocalConfig, certify_local, local_radii
from admm_lip.local.result import LocalCertificate
from admm_lip.networks.clipped import ClippedMaxMin, ClippedReLU
from admm_lip.networks.models import ACTIVATIONS

from .certificates import timed
from .study import Cell, Row, Study, run_from_command_line
from .tables import markdown

_BOX = (0.0, 1.0)
_CLIPPED: Mapping[str, Callable[..., nn.Module]] = {
    "clipped_max_min": ClippedMaxMin,
    "clipped_relu": ClippedReLU,
}
# What a planted claim is too large by.
_PLANTED = 1.05
# Share of the balls that the radius tried should certify, on the first rows.
_SHARE, _FIRST = 0.6, 100
_STEPS = 150


@dataclass(frozen=True, eq=False)
class Claims:
    """The certified balls of a cell; of ``slope`` claims the certificate holds them."""

    x: Tensor
    y: Tensor
    radii: Tensor
    local: LocalCertificate | None = None


def cells(settings: Cell) -> list[Cell]:
    """Every network with every claim that is made of it, cells of one network together."""
    shared = {key: settings[key] for key in ("attack", "factors", "searched_outside")}
    return [
        {**shared, **claim, "network": name, "build": net, "trained": trained, "seed": seed}
        for seed in settings["seeds"]
        for name, net in settings["networks"].items()
        for trained in settings["trained"]
        for group in net["claims"]
        for claim in settings["claims"][group]
    ]


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Certify and attack; raises ``SoundnessError`` where an attack succeeds inside a ball."""
    model = _network(json.dumps(cell["build"]), cell["trained"], cell["seed"])
    claims, certifying = timed(lambda: _CLAIMS[cell["claim"]](cell, model))
    config = AttackConfig(
        **cell["attack"],
        norm=cell["norm"],
        seed=cell["seed"],
        clip=_BOX if cell.get("box") else None,
    )
    found, attacking = timed(lambda: _attacked(cell, model, claims, config))
    outcome, outside, planted, caught = found
    return {
        "rows": cell["count"],
        "balls": outcome.samples,
        "searches": outcome.attacks,
        "nearest_ratio": outside.smallest_ratio,
        "median_ratio": outside.median_ratio,
        "planted": planted,
        "planted_broken": caught,
        "certify_cpu_seconds": certifying.cpu,
        "attack_cpu_seconds": attacking.cpu,
    }


def _attacked(
    cell: Cell, model: nn.Module, claims: Claims, config: AttackConfig
) -> tuple[Falsification, Falsification, int, int]:
    """The attacks inside, those outside, and how many planted claims there were and were broken."""
    other = replace(config, seed=config.seed + 1)
    if cell["claim"] == "slope":
        assert claims.local is not None
        found = falsify_local(model, claims.local, config=config)
        x, radii = claims.x, claims.local.radius
        slopes = steepest_slopes(model, x, radii, config) / _PLANTED
        caught = int((steepest_slopes(model, x, radii, other) > slopes).sum())
        return found, found, len(slopes), caught
    inside = falsify(model, claims.radii, claims.x, claims.y, config=config, factors=())
    some = (claims.radii > 0.0).nonzero()[: cell["searched_outside"], 0]
    x, y, radii = claims.x[some], claims.y[some], claims.radii[some]
    outside = falsify(model, radii, x, y, config=config, factors=tuple(cell["factors"]))
    planted = torch.where(torch.isfinite(outside.distance), outside.distance * _PLANTED, 0.0)
    caught = int(broken(model, x, y, planted, other).sum())
    return inside, outside, int((planted > 0.0).sum()), caught


def _samples(cell: Cell, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Inputs (in the box where there is one) with the classes that the network gives them."""
    generator = torch.Generator().manual_seed(1000 + cell["seed"])
    shape = cell["count"], *cell["build"]["inputs"]
    draw = torch.rand if cell.get("box") else torch.randn
    x = draw(shape, generator=generator, dtype=torch.float64)
    return x, model(x).argmax(dim=1)


def _for_all_inputs(cell: Cell, model: nn.Module) -> Claims:
    """Radii from a certificate for all inputs."""
    x, y = _samples(cell, model)
    kind: Any = cell["claim"]
    shape = tuple(cell["build"]["inputs"])
    proof = certify(model, shape, kind=kind, norm=cell["norm"], progress=False)
    return Claims(x, y, certified_radii(model, x, y, certificate=proof))


def _config(cell: Cell) -> LocalConfig:
    box, level = _BOX if cell.get("box") else None, cell.get("level", "closed")
    return LocalConfig(level, norm=cell["norm"], box=box, tol=0.05)


def _robust(cell: Cell, model: nn.Module) -> Claims:
    """Classes on balls of given radii, from an eighth to twice what most rows withstand."""
    x, y = _samples(cell, model)
    size = _typical(lambda r: certify_local(model, x[:_FIRST], r, y[:_FIRST]).robust)
    spread = torch.rand(len(x), generator=torch.Generator().manual_seed(cell["seed"]))
    found = certify_local(model, x, size * 2.0 ** (4.0 * spread - 3.0), y, config=_config(cell))
    return Claims(x, y, torch.where(found.robust, found.radius, 0.0))


def _radius(cell: Cell, model: nn.Module) -> Claims:
    x, y = _samples(cell, model)
    return Claims(x, y, local_radii(model, x, y, config=_config(cell)).radius)


def _slope(cell: Cell, model: nn.Module) -> Claims:
    x, y = _samples(cell, model)
    spread = torch.rand(len(x), generator=torch.Generator().manual_seed(cell["seed"]))
    found = certify_local(model, x, 0.02 * 2.0 ** (5.0 * spread), config=_config(cell))
    return Claims(x, y, found.radius, found)


def _certified_samples(cell: Cell, model: nn.Module) -> Claims:
    x, y = _samples(cell, model)
    ends = _BOX if cell.get("box") else None

    def certified(rows: slice, eps: float) -> Tensor:
        config = LocalConfig("masked", box=ends, decide=True)
        return certify_local(model, x[rows], eps, y[rows], config=config).robust

    eps = _typical(lambda r: certified(slice(_FIRST), r))
    return Claims(x, y, torch.where(certified(slice(None), eps), eps, 0.0).double())


# From the name of a claim to how it is made.
_CLAIMS: Mapping[str, Callable[[Cell, nn.Module], Claims]] = {
    "global": _for_all_inputs,
    "pairwise": _for_all_inputs,
    "robust": _robust,
    "radius": _radius,
    "slope": _slope,
    "samples": _certified_samples,
}


def _typical(certified: Callable[[float], Tensor]) -> float:
    """A radius at which most rows are certified, halved until they are."""
    radius = 1.0
    while float(certified(radius).double().mean()) < _SHARE:
        radius *= 0.5
    return radius


@lru_cache(maxsize=1)
def _network(described: str, trained: bool, seed: int) -> nn.Module:
    """A network in double precision, so that attacks have next to no rounding of their own."""
    build = json.loads(described)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (_convnet if "channels" in build else _mlp)(build).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        if trained:
            _train(model, build, seed)
    return model.eval().requires_grad_(False)


def _activation(name: str, shape: tuple[int, ...]) -> nn.Module:
    return _CLIPPED[name](shape, 0.7) if name in _CLIPPED else ACTIVATIONS[name]()


def _mlp(build: Mapping[str, Any]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise([*build["inputs"], *build["hidden"]]):
        layers += [nn.Linear(n_in, n_out), _activation(build["activation"], (n_out,))]
    return nn.Sequential(*layers, nn.Linear(build["hidden"][-1], build["classes"]))


def _convnet(build: Mapping[str, Any]) -> nn.Sequential:
    """A convolution, one of stride 2, and a linear layer."""
    depth, height, width = build["inputs"]
    first, second = build["channels"]
    half = (second, math.ceil(height / 2), math.ceil(width / 2))
    return nn.Sequential(
        nn.Conv2d(depth, first, 3, padding=1),
        _activation(build["activation"], (first, height, width)),
        nn.Conv2d(first, second, 3, stride=2, padding=1),
        _activation(build["activation"], half),
        nn.Flatten(),
        nn.Linear(math.prod(half), build["classes"]),
    )


def _train(model: nn.Module, build: Mapping[str, Any], seed: int) -> None:
    """A few plain steps on the classes of another random network."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((500, *build["inputs"]), generator=generator, dtype=torch.float64)
    teacher = torch.randn((x[0].numel(), build["classes"]), generator=generator).double()
    y = (x.flatten(1) @ teacher).sin().argmax(dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def tabulate(rows: list[Row]) -> str:
    """One line per claim, norm and box over all networks, per network over all claims, and all."""
    lines = []
    for key in (lambda r: _claim_name(r), lambda r: r["network"], lambda r: "together"):
        for name in dict.fromkeys(key(r) for r in rows):
            lines.append([name, *_summed([r for r in rows if key(r) == name])])
    head = ["balls", "searches", "nearest / claimed", "planted false", "of these broken"]
    return markdown(["", *head], lines)


def _claim_name(row: Row) -> str:
    kind = " ".join(str(row[key]) for key in ("claim", "level", "norm") if key in row)
    return kind + (" box" if row.get("box") else "")


def _summed(rows: list[Row]) -> list[Any]:
    counts = [sum(int(r[k]) for r in rows) for k in ("balls", "searches")]
    planted, caught = (sum(int(r[k]) for r in rows) for k in ("planted", "planted_broken"))
    share = f"{caught / planted:.1%}" if planted else ""
    # JSON has no infinity: where no attack succeeded it holds null.
    nearest = min(math.inf if r["nearest_ratio"] is None else r["nearest_ratio"] for r in rows)
    return [*counts, f"{nearest:.7f}", planted, share]


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Nothing: the table says it."""
    return []


STUDY = Study("attacked_balls", cells, run_cell, tabulate, draw, jobs=1)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
