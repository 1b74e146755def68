import math

import pytest
import torch
from gradient_nets import tanh_net
from torch import nn

from admm_lip import TrainConfig, train
from admm_lip.data import load_data
from admm_lip.evaluation.attacks import AttackConfig, fooled, pgd
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.research.attack_suite import (
    EvasiveConfig,
    NearestConfig,
    boundary,
    carlini_wagner,
    deepfool,
    evasive,
)
from admm_lip.research.comparators.nominal import Nominal
from admm_lip.research.detection import calibrate, score
from admm_lip.research.input_gradients import jacobian_norms

ATTACKS = (deepfool, carlini_wagner, boundary)
# The share above the exact distance of a linear classifier that an attack may end with.
EXCESS = {deepfool: 0.01, carlini_wagner: 0.01, boundary: 0.25}


def linear(classes: int, features: int = 4) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(features, classes).requires_grad_(False)


def exact_distance(layer: nn.Linear, x, y, dual: float = 2.0):
    logits = layer(x)
    gaps = logits.gather(1, y[:, None]) - logits
    slopes = (layer.weight[y][:, None] - layer.weight[None]).norm(p=dual, dim=2)
    return (gaps / slopes).scatter(1, y[:, None], torch.inf).amin(dim=1)


@pytest.fixture(scope="module")
def trained():
    data = load_data("digits")
    model = build_mlp(64, 10, ModelConfig((32, 32)))
    result = train(
        model, data.train, TrainConfig(epochs=8, batch_size=128), method=Nominal(), progress=False
    )
    x, y = data.test
    right = result.model(x).argmax(dim=1) == y
    return result.model, x[right][:200], y[right][:200]


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_nearest_boundary_of_a_linear_classifier(attack):
    layer, x = linear(3), torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    y = layer(x).argmax(dim=1)
    exact = exact_distance(layer, x, y)
    found = attack(layer, x, y, NearestConfig(steps=400 if attack is boundary else 50))
    reached = (found - x).norm(dim=1)
    assert fooled(layer, found, y).all()
    assert (reached >= exact * (1 - 1e-5)).all()
    assert float((reached / exact).median()) <= 1 + EXCESS[attack]


def test_deepfool_in_the_largest_entry():
    layer, x = linear(3), torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    y = layer(x).argmax(dim=1)
    found = deepfool(layer, x, y, NearestConfig(norm="linf"))
    reached, exact = (found - x).abs().amax(dim=1), exact_distance(layer, x, y, 1.0)
    assert fooled(layer, found, y).all()
    assert (reached >= exact * (1 - 1e-5)).all()
    assert (reached <= exact * 1.01).all()


@pytest.mark.parametrize("attack", ATTACKS)
def test_trained_networks_are_fooled_inside_the_box(attack, trained):
    model, x, y = trained
    found = attack(model, x, y, NearestConfig(steps=60, clip=(0.0, 1.0)))
    assert float(fooled(model, found, y).float().mean()) > 0.95
    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 1.0
    assert all(p.requires_grad for p in model.parameters())


def test_carlini_and_wagner_never_end_farther_than_deepfool(trained):
    model, x, y = trained
    config = NearestConfig(steps=40, clip=(0.0, 1.0))
    near = (carlini_wagner(model, x, y, config) - x).norm(dim=1)
    far = (deepfool(model, x, y, config) - x).norm(dim=1)
    assert (near <= far * (1 + 2e-3) + 1e-6).all()
    assert float(near.mean()) < float(far.mean())


def test_carlini_and_wagner_reach_the_confidence_they_are_asked_for(trained):
    model, x, y = trained
    found = carlini_wagner(model, x, y, NearestConfig(steps=60, searches=5, confidence=1.0))
    logits = model(found).detach()
    others = logits.scatter(1, y[:, None], -math.inf).amax(dim=1)
    assert float((others - logits.gather(1, y[:, None])[:, 0] > 0.99).float().mean()) > 0.9


@pytest.mark.parametrize("attack", ATTACKS)
def test_wrong_predictions_are_left_alone(attack, trained):
    model, x, y = trained
    other = (y + 1) % 10
    assert torch.equal(attack(model, x, other), x)


def test_the_walk_along_the_boundary_needs_no_gradient():
    class Decisions(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = linear(2)

        def forward(self, x):
            return nn.functional.one_hot(self.layer(x).argmax(dim=1), 2).float()

    model, x = Decisions(), torch.randn(60, 4, generator=torch.Generator().manual_seed(2))
    y = model(x).argmax(dim=1)
    found = boundary(model, x, y, NearestConfig(steps=400))
    exact = exact_distance(model.layer, x, y)
    assert float(((found - x).norm(dim=1) / exact).median()) < 1.25
    first = boundary(model, x, y, NearestConfig(steps=5))
    assert ((found - x).norm(dim=1) <= (first - x).norm(dim=1) + 1e-6).all()
    assert torch.equal(boundary(model, x, y, NearestConfig(steps=5)), first)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_evasive_attack_stays_in_its_ball_and_scores_lower(norm, trained):
    model, x, y = trained
    radius = {"l2": 1.0, "linf": 0.15}[norm]
    plain = pgd(model, x, y, radius, AttackConfig(norm=norm))
    found = evasive(model, x, y, radius, EvasiveConfig(norm=norm))
    size = (found - x).norm(p=2 if norm == "l2" else math.inf, dim=1)
    assert (size <= radius * (1 + 1e-5)).all()
    wrong = fooled(model, plain, y)
    assert float(wrong.float().mean()) > 0.3
    assert torch.equal(fooled(model, found, y), wrong)
    scores = jacobian_norms(model, found)
    assert (scores[wrong] <= jacobian_norms(model, plain)[wrong] * (1 + 1e-4)).all()
    threshold = calibrate(score(model, x))
    caught = threshold.rejects(score(model, plain))[wrong].float().mean()
    assert threshold.rejects(score(model, found))[wrong].float().mean() <= caught


def test_settings_are_checked():
    model, x = tanh_net(), torch.zeros(2, 5, dtype=torch.float64)
    y = torch.zeros(2, dtype=torch.int64)
    for attack in (carlini_wagner, boundary):
        with pytest.raises(ValueError, match=r"norm: .* is an l2 attack, got 'linf'; use deepfool"):
            attack(model, x, y, NearestConfig(norm="linf"))
    with pytest.raises(ValueError, match=r"steps: expected .* got 0"):
        NearestConfig(steps=0)
    with pytest.raises(ValueError, match="norm: expected one of l2, linf, got 'l1'"):
        NearestConfig(norm="l1")
    with pytest.raises(ValueError, match=r"steps: expected .* got 0"):
        EvasiveConfig(steps=0)
    with pytest.raises(ValueError, match="kind: expected one of 2_inf, frobenius, got 'l2'"):
        EvasiveConfig(kind="l2")
