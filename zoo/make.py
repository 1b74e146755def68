"""Makes the networks of this folder anew: `python zoo/make.py --data-dir DIR [NAME ...]`.

One thread, about two minutes in all; DIR holds MNIST.  Nothing was chosen on test rows, which are
looked at once, for the card: step sizes on MNIST are those that validation rows preferred in the
benchmarks `images_tuning` and `image_training`, and each network is the one of the last epoch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from admm_lip import TrainConfig, train
from admm_lip.data import DataSet, load_data
from admm_lip.evaluation.evaluate import EvaluateConfig, evaluate
from admm_lip.networks.convnets import build_convnet
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.shown import Fact, Shown, word

ZOO = Path(__file__).resolve().parent


class Recipe(NamedTuple):
    """Data, network and settings; ``rows`` of training data at most."""

    data: str
    build: Callable[[DataSet], nn.Module]
    config: TrainConfig
    rows: int | None = None
    images: bool = False


def dense(hidden: tuple[int, ...], activation: str) -> Callable[[DataSet], nn.Module]:
    """A perceptron for a data set."""
    plan = ModelConfig(hidden, activation)
    return lambda data: build_mlp(data.n_features, data.n_outputs, plan, seed=0)


def convolutions(name: str, activation: str) -> Callable[[DataSet], nn.Module]:
    """A convolutional network for a data set of pictures."""
    return lambda data: build_convnet(
        name, data.shape, data.n_outputs, activation=activation, seed=0
    )


_MNIST = {"bound": 1.0, "loss": "margin", "temperature": 0.2, "batch_size": 256, "eps": 0.5}
RECIPES = {
    "digits-relu-64-32-32-10": Recipe(
        "digits",
        dense((32, 32), "relu"),
        TrainConfig(bound=1.0, loss="margin", eps=0.1, epochs=60),
    ),
    "mnist-maxmin-784-64-64-10": Recipe(
        "mnist",
        dense((64, 64), "max_min"),
        TrainConfig(**_MNIST, lr=5e-3, epochs=15, schedule="hold_then_linear"),
    ),
    "mnist-maxmin-conv16-conv32-100-10": Recipe(
        "mnist",
        convolutions("2C2F", "max_min"),
        TrainConfig(**_MNIST, lr=1e-2, epochs=5, start="scratch"),
        rows=10_000,
        images=True,
    ),
}


class Origin(Shown):
    """How a network was made, for its card."""

    def __init__(self, name: str, recipe: Recipe, rows: int) -> None:
        self.name, self.recipe, self.rows = name, recipe, rows

    def title(self) -> str:
        """Its name."""
        return self.name

    def facts(self) -> tuple[Fact, ...]:
        """Data and settings."""
        config, data = self.recipe.config, f"the first {self.rows} training rows of"
        return (
            word("data", "trained on", f"{data} {self.recipe.data}, values from 0 to 1"),
            word("eps", "trained for l2 radius", config.eps),
            word("lr", "step size", f"{config.lr:g}"),
            word("epochs", "epochs", config.epochs),
            word("seed", "seed", config.seed),
            word("made", "made by", f"python zoo/make.py {self.name}"),
        )


def make(name: str, data_dir: str | None, home: Path = ZOO) -> None:
    """Train, measure and save one network."""
    recipe = RECIPES[name]
    data = load_data(recipe.data, data_dir)
    data = data.as_images() if recipe.images else data
    x, y = (part[: recipe.rows] for part in data.train)
    torch.set_num_threads(1)
    result = train(recipe.build(data), (x, y), recipe.config, progress=False)
    measure = EvaluateConfig(report_radius=recipe.config.eps, samples=1000)
    measured = evaluate(result.model, data, result.certificate, measure)
    origin = Origin(name, recipe, len(x))
    result.save_pretrained(home / name, measured=(measured, origin), name=name, overwrite=True)
    print(measured.summary())


def main() -> None:
    """Make the networks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--data-dir", default=None, help="folder of the image sets")
    options = parser.parse_args()
    for name in options.names or RECIPES:
        make(name, options.data_dir)


if __name__ == "__main__":
    main()
