"""What the benchmarks of gradient penalties share: data, network, training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from admm_lip.data import load_data
from admm_lip.research.comparators.gradient import InputGradient
from admm_lip.research.comparators.nominal import Nominal
from admm_lip.training.method import Method
from admm_lip.training.train import TrainConfig, TrainResult

from .whole_run import train

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Setting:
    """One data set at the scale of this study.

    Attributes:
        name: of the data set.
        train: pictures trained on, the first ones; 1,000 after them are the validation set.
        test: test pictures, the first ones.
        radius_l2: of the l2 attack.
        radius_linf: of the linf attack.
        grids: method to its three candidate strengths.
    """

    name: str
    train: int
    test: int
    radius_l2: float
    radius_linf: float
    grids: dict[str, tuple[float, ...]]


SETTINGS = {
    "mnist": Setting(
        "mnist",
        5000,
        1000,
        1.0,
        0.1,
        {
            "fgsm": (0.03, 0.1, 0.2),
            "tv": (0.1, 0.3, 1.0),
            "tv_lip": (0.01, 0.03, 0.1),
            "squared": (0.1, 1.0, 10.0),
        },
    ),
    "cifar10": Setting(
        "cifar10",
        5000,
        1000,
        0.25,
        2 / 255,
        {
            "fgsm": (1 / 255, 2 / 255, 4 / 255),
            "tv": (0.03, 0.1, 0.3),
            "tv_lip": (0.01, 0.03, 0.1),
            "squared": (0.03, 0.1, 0.3),
        },
    ),
}
STEP = 1e-2  # of the finite differences, l2


@dataclass(frozen=True, eq=False)
class Parts:
    """Disjoint training, validation and test pictures ``(n, c, h, w)`` with labels."""

    train: Pair
    validation: Pair
    test: Pair


def load_parts(setting: Setting, data_dir: str | None) -> Parts:
    """The first pictures of the files, in their order."""
    data = load_data(setting.name, data_dir).as_images()
    (x, y), (u, v) = data.train, data.test
    cut, end = setting.train, setting.train + 1000
    return Parts(
        (x[:cut], y[:cut]), (x[cut:end], y[cut:end]), (u[: setting.test], v[: setting.test])
    )


def network(channels: int, side: int, seed: int) -> nn.Sequential:
    """Two convolutions (8 and 16 channels, 4 x 4, stride 2) and a linear layer."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * (side // 4) ** 2, 10),
    )


def method_of(name: str, strength: float, tv: float = 0.0) -> Method:
    """A method of the study at one strength; ``tv`` is the weight that tv_lip adds lambda to.

    ``fgsm`` is one-step adversarial training in linf, written as the penalty that it equals.
    """
    rows: dict[str, Callable[[], Method]] = {
        "undefended": Nominal,
        "fgsm": lambda: InputGradient(strength, 0.0, norm="linf", step=strength),
        "tv": lambda: InputGradient(strength, 0.0, step=STEP),
        "tv_lip": lambda: InputGradient(tv, strength, step=STEP),
        "squared": lambda: InputGradient(0.0, 0.0, strength, step=STEP),
        "squared_double": lambda: InputGradient(0.0, 0.0, strength, scheme="double"),
    }
    return rows[name]()


def trained(data: Pair, method: Method, seed: int, epochs: int) -> TrainResult:
    """The network of that seed, trained by ``method``."""
    x, _ = data
    config = TrainConfig(epochs=epochs, batch_size=128, seed=seed, loss="cross_entropy", lr=4e-3)
    return train(network(x.shape[1], x.shape[2], seed), data, config, method=method, progress=False)


def predictions(model: nn.Module, x: Tensor) -> Tensor:
    """Class labels ``(n,)``."""
    with torch.no_grad():
        labels: Tensor = model(x).argmax(dim=1)
    return labels
