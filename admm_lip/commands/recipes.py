"""What a run needs, from the options: data, network and training settings with their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from ..data import DataSet, TableOptions, load_data
from ..evaluation.evaluate import EvaluateConfig
from ..networks.affine_torch import Elementwise
from ..networks.convnets import ConvnetConfig, build_convnet
from ..networks.models import ModelConfig, build_mlp
from ..training.config import TrainConfig
from ..units import Units
from .arguments import UsageError
from .in_units import RAW
from .options import config_of
from .run_options import ADMM, CPU, check_device


@dataclass(frozen=True)
class Recipe:
    """Defaults that suit one data set; each can be overridden by its option."""

    bound: float = 1.0
    epochs: int = 15
    batch_size: int = 256
    eps: float = 0.5
    loss: str = "margin"
    hidden: tuple[int, ...] = (64, 64)


_RECIPES = {
    "digits": Recipe(epochs=150, batch_size=64, eps=0.1, hidden=(32, 32)),
    "toy2d": Recipe(bound=40.0, epochs=2000, batch_size=50, loss="cross_entropy", hidden=(10, 10)),
    "mnist14": Recipe(eps=0.25),
    "mnist": Recipe(),
    "fashion": Recipe(eps=0.25),
    "cifar10": Recipe(eps=36 / 255, hidden=(256, 256)),
}
_TABLE = {
    "regression": Recipe(bound=2.0, epochs=200, batch_size=64, loss="squared_error"),
    "classification": Recipe(epochs=100, batch_size=64, eps=0.2, hidden=(32, 32)),
}


@dataclass(frozen=True, eq=False)
class Job:
    """Everything resolved: what is trained, on what, how, and how it is judged afterwards.

    ``units`` are those of the data, where the bound is meant in them.  ``settings`` holds the same
    as plain values: ``config.yaml``, and input for ``--config``.
    """

    data: DataSet
    model: nn.Module
    train: TrainConfig
    evaluate: EvaluateConfig
    settings: dict[str, Any]
    units: Units | None = None


def prepare(values: Mapping[str, Any], data: DataSet | None = None) -> Job:
    """Load the data and build the network and configs that the options ask for.

    Args:
        values: options as a plain nested dictionary; ``None`` where the recipe decides.
        data: the data set, where it was loaded before.

    Raises:
        ValueError: any bad setting, by name (``DataError`` for data).
    """
    device = check_device(values.get("device", CPU))
    table = config_of(TableOptions, values["table"])
    evaluate = config_of(EvaluateConfig, values["evaluate"])
    recipe = recipe_of(values["data"], table)
    train = _train_config(values, recipe)
    hidden = values["model"]["hidden"]
    model_config: ModelConfig = config_of(
        ModelConfig, {**values["model"], "hidden": recipe.hidden if hidden is None else hidden}
    )
    convnet: ConvnetConfig = config_of(ConvnetConfig, values.get("convnet") or {})
    if convnet.name:  # its kernels are fresh, and best begin near to orthogonal ones
        train = replace(train, start="scratch")
    data = data or load_data(values["data"], values["data_dir"], table)
    train, units = _in_units(train, values, data)
    settings = {
        "data": values["data"],
        "data_dir": values["data_dir"],
        "table": asdict(table),
        **({} if units is None else {"units": RAW}),
        "model": asdict(model_config),
        **({"convnet": asdict(convnet)} if convnet.name else {}),
        **asdict(train),
        "evaluate": asdict(evaluate),
        "threads": values.get("threads", 1),
        "device": device,
    }
    if convnet.name:
        data = data.as_images()
        centred = train.centre and values.get("method", ADMM) == ADMM
        model = _convnet(convnet, data, train.seed, centred)
    else:
        model = build_mlp(data.n_features, data.n_outputs, model_config, seed=train.seed)
    return Job(data, model.to(device), train, evaluate, settings, units)


def _train_config(values: Mapping[str, Any], recipe: Recipe) -> TrainConfig:
    """The training settings; a recipe's bound and margin loss where no price takes their place."""
    given = {key: value for key, value in values.items() if value is not None}
    priced = "mu" in given and "bound" not in given
    if values.get("units") == RAW and "bound" not in given and "mu" not in given:
        raise UsageError(
            "bound: --units raw needs a bound in the units of the file; train without it first to "
            "see what is usual, or give --mu"
        )
    chosen = {"epochs": recipe.epochs, "batch_size": recipe.batch_size, "eps": recipe.eps}
    chosen |= {} if priced else {"bound": recipe.bound}
    loss = "cross_entropy" if priced and recipe.loss == "margin" else recipe.loss
    train: TrainConfig = config_of(TrainConfig, {**chosen, "loss": loss, **given})
    return train


def _in_units(
    train: TrainConfig, values: Mapping[str, Any], data: DataSet
) -> tuple[TrainConfig, Units | None]:
    """The settings for the units of the data, where the bound is meant in them."""
    if values.get("units") != RAW:
        return train, None
    if data.units is None:
        raise UsageError(f"units: raw goes with --data csv:FILE, got {values['data']}")
    if values.get("eps") is None:  # the recipe's radius is one of standardised rows
        train = replace(train, eps=train.eps * min(data.units.input_scales(data.n_features)))
    return train, data.units


def _convnet(config: ConvnetConfig, data: DataSet, seed: int, centred: bool) -> nn.Sequential:
    """A convolutional network; ``centred``: behind a layer that takes the mean picture away.

    Padding keeps the mean out of a convolution's bias.
    """
    size = asdict(config)
    model = build_convnet(size.pop("name"), data.shape, data.n_outputs, **size, seed=seed)
    if not centred:
        return model
    return nn.Sequential(Elementwise({"bias": -data.train[0].mean(dim=0).numpy()}), *model)


def radius_of(values: Mapping[str, Any]) -> float:
    """The l2 radius that the options ask for, or the data set's own."""
    table = config_of(TableOptions, values["table"])
    given = values["eps"]
    return recipe_of(values["data"], table).eps if given is None else float(given)


def recipe_of(name: str, table: TableOptions) -> Recipe:
    """The defaults for a data set; an unknown name gets some, and fails when it is loaded."""
    return _TABLE[table.task] if name.startswith("csv:") else _RECIPES.get(name, Recipe())
