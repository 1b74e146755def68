"""Training with local against global Lipschitz bounds, inside one program.

    python -m benchmarks local_training --data-dir DIR [--minutes M]

Small versions of the networks of Y. Huang et al. (NeurIPS 2021), few epochs: directions are
hypotheses here, written down in the settings beforehand, and a direction is claimed only where its
sign is the same for all seeds and widths.  Every network is certified on the same test pictures by
its global bound and by the local one; the perceptrons by the local LMI as well.  Per sample,
certified must imply correct must imply robust under attack: a violation ends the program and
nothing is recorded.
"""

from __future__ import annotations

import itertools
import math
import time
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from admm_lip import certified_radii
from admm_lip.data import DataSet, load_data
from admm_lip.evaluation.attacks import AttackConfig
from admm_lip.evaluation.falsification import SoundnessError
from admm_lip.evaluation.per_sample import robust_samples
from admm_lip.local import LocalCertificate, LocalConfig, certify_local
from admm_lip.networks.convnets import CONVNETS, build_convnet
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.research.comparators.local import LocalLipschitz
from admm_lip.research.comparators.nominal import Nominal
from admm_lip.training.method import Method
from admm_lip.training.train import TrainConfig

from . import record
from .local_training_tables import by_sdp, costs, draw, other_scale, tabulate, verdicts
from .study import Cell, Row, Study, run_from_command_line, succeeded
from .whole_run import train

Pair = tuple[Tensor, Tensor]


def cells(settings: Cell) -> list[Cell]:
    """All networks, seeds outermost; then what epochs cost."""
    found = []
    for seed, group in itertools.product(settings["seeds"], settings["groups"]):
        if seed not in group.get("seeds", settings["seeds"]):
            continue
        bounds = group.get("bounds", settings["bounds"])
        kinds = list(itertools.product(group["surrogates"], bounds))
        kinds += [("none", "none")] if seed in group["plain"] else []
        found += [
            _cell(settings, group, "network", activation, surrogate, bound, seed)
            for activation in group["activations"]
            for surrogate, bound in kinds
        ]
    cost = settings["cost"]
    return found + [
        _cell(settings, cost, "cost", activation, surrogate, "local", 0)
        | {"rows": cost["rows"], "repeats": cost["repeats"]}
        for activation in cost["activations"]
        for surrogate in cost["surrogates"]
    ]


def _cell(
    settings: Cell,
    group: Cell,
    kind: str,
    activation: str,
    surrogate: str,
    bound: str,
    seed: int,
) -> Cell:
    """One network, with all that decides its row."""
    return {
        "kind": kind,
        "data": group["data"],
        "net": group["net"],
        "width": group.get("width", 0.25),
        "activation": activation,
        "surrogate": surrogate,
        "bound": bound,
        "seed": seed,
        "sdp_rows": group.get("sdp_rows", 0),
        **settings["sets"][group["data"]],
        **{key: group[key] for key in ("train_eps",) if key in group},
        **{key: settings[key] for key in ("test", "statistics", "attack", "method", "train")},
    }


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Train and judge one network, or measure what epochs cost."""
    return _KINDS[cell["kind"]](cell, data_dir)


def _network(cell: Cell, data_dir: str | None) -> Row:
    data = _loaded(cell["data"], data_dir, cell["net"] in CONVNETS)
    x, y = data.train
    model, config = _build(cell, data), TrainConfig(seed=cell["seed"], **cell["train"])
    begun = time.process_time()
    pair = x[: cell["limit"]], y[: cell["limit"]]
    result = train(model, pair, config, method=_method(cell, cell["bound"]), progress=False)
    seconds = (time.process_time() - begun) / config.epochs
    tested = data.test[0][: cell["test"]], data.test[1][: cell["test"]]
    last = {key: result.history[-1].get(key) for key in ("varying", "local_ratio")}
    return {
        "epoch_cpu_seconds": seconds,
        **{f"training_{key}": value for key, value in last.items() if value is not None},
        **judged(result.model, tested, cell),
    }


def judged(model: nn.Module, pair: Pair, cell: Cell) -> Row:
    """Every share, in per cent of the same test pictures.

    Raises:
        SystemExit: when a claim about a sample is false.
    """
    (x, y), eps, some = pair, cell["eps"], cell["statistics"]
    begun = time.process_time()
    reports = {name: _report(model, pair, eps, level) for name, level in _BOUNDS.items()}
    seconds = time.process_time() - begun
    try:
        robust = _checked(model, pair, cell, reports)
    except SoundnessError as error:
        raise SystemExit(f"a certificate is wrong, nothing is recorded: {error}") from error
    full = _report(model, (x[:some], y[:some]), eps, "masked", decide=False).to_record()
    return {
        "clean": _percent(reports["local"].correct),
        "pgd": _percent(robust),
        **{f"certified_{name}": _percent(found.robust) for name, found in reports.items()},
        "varying": full.get("varying", math.nan),
        "ratio": full.get("ratio", math.nan),
        "certify_cpu_seconds": seconds,
        **_by_sdp(model, pair, cell, reports["local"]),
    }


# name -> level of the local bounds
_BOUNDS = {"global": "product", "local": "masked"}


def _report(
    model: nn.Module, pair: Pair, eps: float, level: str, decide: bool = True
) -> LocalCertificate:
    (x, y), config = pair, LocalConfig(level, decide=decide)
    return certify_local(model, x, eps, y, config=config)


def _checked(
    model: nn.Module, pair: Pair, cell: Cell, reports: dict[str, LocalCertificate]
) -> Tensor:
    """Which samples are robust, after all claims were compared with each other and attacked."""
    wider = reports["local"].robust
    for name, found in reports.items():
        if bool((found.robust & ~found.correct).any()):
            raise SoundnessError(f"{name}: a sample is certified and not correct")
        if bool((found.robust & ~wider).any()):
            raise SoundnessError(f"{name}: a sample is certified that the tightest bound leaves")
    return robust_samples(model, *pair, cell["eps"], wider, AttackConfig(**cell["attack"]))


def _by_sdp(model: nn.Module, pair: Pair, cell: Cell, report: LocalCertificate) -> Row:
    """Shares of the first rows by the local LMI, beside the local bound's on the same rows."""
    rows = cell["sdp_rows"]
    if not rows:
        return {}
    x, y = pair[0][:rows], pair[1][:rows]
    begun = time.process_time()
    certified = certified_radii(model, x, y, kind="local") > cell["eps"]
    seconds = time.process_time() - begun
    try:
        robust_samples(model, x, y, cell["eps"], certified, AttackConfig(**cell["attack"]))
    except SoundnessError as error:
        raise SystemExit(f"a certificate is wrong, nothing is recorded: {error}") from error
    return {
        "sdp_certified": _percent(certified),
        "sdp_beside_local": _percent(report.robust[:rows]),
        "sdp_cpu_seconds": seconds / rows,
    }


def _cost(cell: Cell, data_dir: str | None) -> Row:
    """CPU seconds of an epoch of each kind, in turn; the least of the repeats counts."""
    data = _loaded(cell["data"], data_dir, True)
    pair = data.train[0][: cell["rows"]], data.train[1][: cell["rows"]]
    methods = {"plain": Nominal(), **{b: _method(cell, b, ramp=0.0) for b in ("local", "global")}}
    config = TrainConfig(**{**cell["train"], "epochs": 1})
    best = dict.fromkeys(methods, float("inf"))
    for _ in range(cell["repeats"]):
        for name, method in methods.items():
            begun = time.process_time()
            train(_build(cell, data), pair, config, method=method, progress=False)
            best[name] = min(best[name], time.process_time() - begun)
    return {
        "cost_local": best["local"] / best["plain"],
        "cost_global": best["global"] / best["plain"],
        "plain_cpu_seconds": best["plain"] * cell["limit"] / len(pair[1]),
    }


_KINDS = {"network": _network, "cost": _cost}


def _method(cell: Cell, bound: str, **changed: Any) -> Method:
    if bound == "none":
        return Nominal()
    options = {"surrogate": cell["surrogate"], **cell["method"], **changed}
    return LocalLipschitz(eps=cell["train_eps"], bound=bound, **options)


def _build(cell: Cell, data: DataSet) -> nn.Module:
    if cell["net"] in CONVNETS:
        size = {"width": cell["width"], "activation": cell["activation"]}
        return build_convnet(cell["net"], data.shape, data.n_outputs, seed=cell["seed"], **size)
    _, *hidden, _ = map(int, cell["net"].split("-"))
    shape = ModelConfig(tuple(hidden), cell["activation"], init="torch")
    return build_mlp(data.n_features, data.n_outputs, shape, seed=cell["seed"])


@lru_cache(maxsize=2)
def _loaded(name: str, data_dir: str | None, images: bool) -> DataSet:
    data = load_data(name, data_dir)
    return data.as_images() if images else data


def _percent(flags: Tensor) -> float:
    return 100.0 * float(flags.double().mean())


STUDY = Study(
    "local_training",
    cells,
    run_cell,
    tabulate,
    draw,
    jobs=1,
)


def main(argv: list[str]) -> None:
    """Run the study; then the hypotheses, the costs, and the published numbers beside them."""
    run_from_command_line(STUDY, argv)
    found = record.load(STUDY.name + ("_quick" if "--quick" in argv else ""))
    rows = succeeded(found["rows"])
    for part in (verdicts(rows), costs(rows), by_sdp(rows), other_scale(found["settings"])):
        print("\n" + part)
