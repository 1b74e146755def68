from dataclasses import replace

import pytest
import torch
from gradient_nets import residual
from torch import nn

from admm_lip import TrainConfig, train
from admm_lip.data import load_data
from admm_lip.research.comparators.gradient import InputGradient
from admm_lip.research.comparators.nominal import Nominal
from admm_lip.research.input_gradients import loss_gradient_norms

CONFIG = TrainConfig(epochs=4, batch_size=128, lr=3e-3)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = load_data("digits").train
    return x[:600].reshape(-1, 1, 8, 8), y[:600]


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def size_after(method, norm: str = "l2") -> torch.Tensor:
    data = digits()
    model = train(convolutional(), data, CONFIG, method=method, progress=False).model
    return loss_gradient_norms(model, *data, norm)


def test_without_weights_it_is_plain_training():
    data = digits()
    plain = train(convolutional(), data, CONFIG, method=Nominal(), progress=False).model
    found = train(
        convolutional(), data, CONFIG, method=InputGradient(0.0, 0.0), progress=False
    ).model
    for a, b in zip(plain.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scheme", ["finite", "double"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_every_part_brings_down_what_it_penalises(scheme, norm):
    unit = {"l2": 1.0, "linf": 0.2}[norm]
    plain = size_after(Nominal(), norm)
    mean = size_after(InputGradient(0.3 * unit, 0.0, norm=norm, scheme=scheme), norm)
    most = size_after(InputGradient(0.0, 0.1 * unit, norm=norm, scheme=scheme), norm)
    square = size_after(InputGradient(0.0, 0.0, 5.0, norm=norm, scheme=scheme), norm)
    assert mean.mean() < 0.8 * plain.mean()
    assert most.max() < 0.8 * plain.max()
    assert square.square().mean() < 0.8 * plain.square().mean()


def test_a_residual_network_with_batch_normalisation_trains():
    model = residual(dropout=0.1)
    model.last = nn.Linear(4 * 64, 10).double()
    x, y = digits()
    config = replace(CONFIG, epochs=8)
    result = train(model, (x.double(), y), config, method=InputGradient(), progress=False)
    rows = [row["loss"] for row in result.history]
    assert rows[-1] < 0.7 * rows[0]
    assert result.claimed_lip is None
    with torch.no_grad():
        assert (result.model(x.double()).argmax(1) == y).float().mean() > 0.5


def test_its_settings_are_those_of_the_penalty():
    with pytest.raises(ValueError, match="scheme: expected one of finite, double"):
        InputGradient(scheme="other")
    with pytest.raises(ValueError, match="total_variation: expected a finite number >= 0"):
        InputGradient(total_variation=-0.1)
