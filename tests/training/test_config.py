"""A configuration that cannot work is refused when it is made."""

import pytest

from admm_lip.training.config import TrainConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "bound: mode 'bound' needs it; got None"),
        ({"mode": "penalty"}, "mu: mode 'penalty' needs it; got None"),
        ({"bound": 1.0, "mu": 0.1}, "give exactly one of them"),
        ({"mode": "penalty", "bound": 1.0, "mu": 0.1}, "give exactly one of them"),
        ({"mode": "both", "bound": 1.0}, "mode: expected 'bound' or 'penalty', got 'both'"),
        ({"bound": 0.0}, "bound: expected a number from 1e-30 to 1e\\+30, got 0.0"),
        ({"bound": -1.0}, "bound: expected a number from 1e-30 to 1e\\+30, got -1.0"),
        ({"bound": float("nan")}, "bound: expected a number from 1e-30 to 1e\\+30, got nan"),
        ({"bound": float("inf")}, "bound: expected a number from 1e-30 to 1e\\+30, got inf"),
        (
            {"mode": "penalty", "mu": -1e-3},
            "mu: expected a number from 1e-30",
        ),
        ({"bound": 1.0, "epochs": 0}, "epochs: expected a whole number >= 1, got 0"),
        ({"bound": 1.0, "epochs": 1.5}, "epochs: expected a whole number >= 1, got 1.5"),
        ({"bound": 1.0, "batch_size": 0}, "batch_size: expected a whole number >= 1"),
        ({"bound": 1.0, "lr": 0.0}, "lr: expected a finite number > 0"),
        ({"bound": 1.0, "rho": -0.1}, "rho: expected a finite number > 0 or None"),
        ({"bound": 1.0, "relaxation": 2.0}, r"relaxation: expected a number in \[1, 2\)"),
        ({"bound": 1.0, "eps": -0.5}, "eps: expected a finite number >= 0"),
        ({"bound": 1.0, "start": "warm"}, "start: expected one of model, scratch"),
        ({"bound": 1.0, "rho_rule": "grow"}, "rho_rule: expected one of constant, balance"),
        ({"bound": "1"}, "bound: expected a number from 1e-30 to 1e\\+30, got '1'"),
    ],
)
def test_bad_settings_name_the_field(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)
