"""One way to train any contender of a study, ADMM or a method of the table.

A cell names its contender by plain data: ``method`` (``"admm"`` or a name in ``METHODS``),
``options`` (fields of ``TrainConfig``, or of the method) and ``train`` (fields that ``TrainConfig``
and ``TrainConfig`` share: epochs, batch_size, loss, eps, lr, ...).  With ``centre`` the methods of
the table train on centred inputs, as ADMM always does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from admm_lip import TrainConfig, certified_radii, certify, verify
from admm_lip.certificates.certificate import Certificate
from admm_lip.data import DataSet, load_data
from admm_lip.errors import UnsupportedModule
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.research.comparators import METHODS

from .study import Cell
from .whole_run import train, with_share_of_core

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished contender.

    Attributes:
        model: the network.
        lip: its Lipschitz bound: proven, or the method's own claim where there is no certificate.
        certificate: the proof; ``None`` for layers that the certifier does not read (residual
            blocks).
        seconds: of training, by the clock on the wall.
        cpu_seconds: the same times the share of a core that the process got meanwhile.
    """

    model: nn.Module
    lip: float
    certificate: Certificate | None
    seconds: float
    cpu_seconds: float = math.nan


def train_contender(model: nn.Module, data: Pair, cell: Cell) -> Trained:
    """Train a copy of ``model`` as the cell says."""
    way = TRAINERS.get(cell["method"], _by_method)
    trained, share = with_share_of_core(lambda: way(model, data, cell))
    return replace(trained, cpu_seconds=trained.seconds * share)


def _by_admm(model: nn.Module, data: Pair, cell: Cell) -> Trained:
    config = TrainConfig(seed=cell["seed"], **{**cell["train"], **cell["options"]})
    result = train(model, data, config, progress=False)
    return Trained(result.model, result.certificate.lip, result.certificate, result.seconds)


def _by_method(model: nn.Module, data: Pair, cell: Cell) -> Trained:
    method = METHODS[cell["method"]](**cell["options"])
    supposed = {"lip": cell["options"].get("bound", 1.0)}
    config = TrainConfig(seed=cell["seed"], **{**supposed, **cell["train"]})
    mean = data[0].mean(dim=0) if cell.get("centre") else torch.zeros_like(data[0][0])
    result = train(model, (data[0] - mean, data[1]), config, method=method, progress=False)
    _uncentre(result.model, mean)
    try:
        certificate = certify(result.model)
    except UnsupportedModule:
        if result.claimed_lip is None:
            raise
        return Trained(result.model, result.claimed_lip, None, result.seconds)
    return Trained(result.model, certificate.lip, certificate, result.seconds)


def _uncentre(model: nn.Module, mean: Tensor) -> None:
    """Let a network that was trained on ``x - mean`` take x, as ADMM's own loop does."""
    if not mean.any():
        return
    first = next(m for m in model.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        first.bias.sub_(first.weight @ mean.to(first.weight))


TRAINERS: dict[str, Callable[[nn.Module, Pair, Cell], Trained]] = {"admm": _by_admm}


def build(n_inputs: int, n_outputs: int, cell: Cell) -> nn.Sequential:
    """The untrained network of a cell: ``hidden``, ``activation`` and ``seed``."""
    shape = ModelConfig(tuple(cell["hidden"]), cell.get("activation", "relu"))
    return build_mlp(n_inputs, n_outputs, shape, seed=cell["seed"])


def data_of(cell: Cell, data_dir: str | None) -> DataSet:
    """The data set of a cell; ``limit`` keeps the first rows, ``validation`` hides the test set."""
    return _loaded(cell["data"], data_dir, cell.get("limit"), bool(cell.get("validation")))


@lru_cache(maxsize=2)
def _loaded(name: str, data_dir: str | None, limit: int | None, validation: bool) -> DataSet:
    data = load_data(name, data_dir)
    if validation:
        data = data.split(validation=1 / 6, seed=0)
    if limit is None:
        return data
    (x, y), (u, v) = data.train, data.test
    fields: dict[str, Any] = {**vars(data), "train": (x[:limit], y[:limit])}
    return DataSet(**{**fields, "test": (u[:limit], v[:limit])})


def predictions(model: nn.Module, x: Tensor) -> Tensor:
    """Class labels ``(n,)``."""
    with torch.no_grad():
        labels: Tensor = model(x).argmax(dim=1)
    return labels


def judged(
    model: nn.Module, certificate: Certificate | None, rows: Pair, eps: float
) -> dict[str, float]:
    """Per cent of rows right and, with a certificate, that is checked, certified at ``eps``."""
    x, y = rows
    found = {"clean": 100.0 * float((predictions(model, x) == y).double().mean())}
    if certificate is None:
        return found
    verify(certificate, model)
    radii = certified_radii(model, x, y, certificate=certificate)
    certified = 100.0 * float((radii > eps).double().mean())
    bounds = {"lip": certificate.lip, "norm_product": certificate.norm_product}
    return {**found, "certified": certified, **bounds}
