"""A configuration that cannot work is refused when it is made."""

import re

import numpy as np
import pytest
import torch

from admm_lip import train
from admm_lip.settings import LEAST, MOST
from admm_lip.training.config import TrainConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"bound": 1.0, "mu": 0.1},
            "bound, mu: expected exactly one of the two, got bound=1.0 and",
        ),
        ({"bound": 0.0}, "bound: expected a number from 1e-30 to 1e\\+30 or None, got 0.0"),
        ({"bound": -1.0}, "bound: expected a number from 1e-30 to 1e\\+30 or None, got -1.0"),
        (
            {"bound": float("nan")},
            "bound: expected a number from 1e-30 to 1e\\+30 or None, got nan",
        ),
        (
            {"bound": float("inf")},
            "bound: expected a number from 1e-30 to 1e\\+30 or None, got inf",
        ),
        ({"mu": -1e-3}, "mu: expected a number from 1e-30"),
        ({"bound": 1.0, "gradient_clip": 0.0}, "gradient_clip: expected a finite number > 0 or No"),
        ({"bound": 1.0, "precision": "half"}, "precision: expected one of full, bfloat16, float16"),
        ({"bound": 1.0, "epochs": 0}, "epochs: expected a whole number >= 1, got 0"),
        ({"bound": 1.0, "epochs": 1.5}, "epochs: expected a whole number >= 1, got 1.5"),
        ({"bound": 1.0, "batch_size": 0}, "batch_size: expected a whole number >= 1"),
        ({"bound": 1.0, "lr": 0.0}, "lr: expected a finite number > 0"),
        ({"bound": 1.0, "rho": -0.1}, "rho: expected a finite number > 0 or None"),
        ({"bound": 1.0, "relaxation": 2.0}, r"relaxation: expected a number in \[1, 2\)"),
        ({"bound": 1.0, "eps": -0.5}, "eps: expected a finite number >= 0"),
        ({"bound": 1.0, "start": "warm"}, "start: expected one of model, scratch"),
        ({"bound": 1.0, "rho_rule": "grow"}, "rho_rule: expected one of constant, balance"),
        ({"bound": "1"}, "bound: expected a number from 1e-30 to 1e\\+30 or None, got '1'"),
    ],
)
def test_bad_settings_name_the_field(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"bound": 1e-300},
        {"bound": 1e300},
        {"bound": True},
        {"mu": 1e-300},
        {"bound": 1.0, "epochs": True},
        {"bound": 1.0, "lr": True},
        {"bound": 1.0, "seed": -1},
        {"bound": 1.0, "restart": "no"},
    ],
)
def test_booleans_are_no_numbers_and_numbers_no_flags(settings: dict) -> None:
    name, value = list(settings.items())[-1]
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got {re.escape(repr(value))}$"):
        TrainConfig(**settings)


def test_numpy_s_numbers_are_stored_as_python_s() -> None:
    config = TrainConfig(bound=np.float32(2.0), epochs=np.int64(3))
    assert config == TrainConfig(bound=2.0, epochs=3)
    assert (type(config.bound), type(config.epochs)) == (float, int)


@pytest.mark.parametrize("bound", [LEAST, MOST])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_the_admitted_range_train_and_are_proven(
    bound: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    x, y = torch.randn(16, 4), torch.arange(16) % 2
    result = train(model.to(dtype), (x, y), TrainConfig(bound=bound, epochs=1), progress=False)
    assert 0.0 < result.certificate.lip <= bound
