import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip.evaluation.attacks import (
    AttackConfig,
    fooled,
    frozen,
    gradient_free,
    margin,
    pgd,
    rays,
)
from admm_lip.networks.models import ModelConfig, build_mlp

ATTACKS = (pgd, gradient_free, rays)


def linear(classes: int = 4, features: int = 5, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(features, classes).requires_grad_(False)


def distance_to_boundary(layer: nn.Linear, x: torch.Tensor, y: torch.Tensor, dual: float):
    """Exact distance of each row to the nearest other class of a linear classifier."""
    logits = layer(x)
    gaps = logits.gather(1, y[:, None]) - logits
    slopes = (layer.weight[y][:, None] - layer.weight[None]).norm(p=dual, dim=2)
    return (gaps / slopes).scatter(1, y[:, None], torch.inf).amin(dim=1)


class Staircase(nn.Module):
    """Constant pieces: correct everywhere, with a gradient that is zero everywhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = torch.floor(4.0 * x[:, 0]) + 0.5 + 0.0 * x.sum(dim=1)
        return torch.stack([step, -step], dim=1)


@pytest.mark.parametrize(("norm", "dual"), [("l2", 2.0), ("linf", 1.0)])
def test_pgd_finds_the_boundary_of_a_linear_classifier(norm, dual):
    layer, x = linear(), torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    y = layer(x).argmax(dim=1)
    exact = distance_to_boundary(layer, x, y, dual)
    config = AttackConfig(norm=norm)
    assert not fooled(layer, pgd(layer, x, y, 0.99 * exact, config), y).any()
    assert fooled(layer, pgd(layer, x, y, 1.01 * exact, config), y).all()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
@settings(max_examples=10, deadline=None)
def test_the_ball_is_kept(attack, norm, seed, scale):
    model = build_mlp(6, 3, ModelConfig((8,)), seed=seed)
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(seed)) * scale
    radius = torch.linspace(0.0, 1.0, 9) * scale
    config = AttackConfig(norm=norm, steps=5, seed=seed)
    moved = attack(model, x, torch.zeros(9, dtype=torch.int64), radius, config) - x
    size = moved.norm(p=2 if norm == "l2" else torch.inf, dim=1)
    assert (size <= radius * (1 + 1e-4) + 1e-6 * scale).all()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_larger_margin_is_never_given_up(attack):
    model = build_mlp(6, 3, ModelConfig((8,)))
    x, y = torch.randn(50, 6), torch.arange(50) % 3
    found = attack(model, x, y, 0.3, AttackConfig(steps=5))
    with torch.no_grad():
        assert (margin(model(found), y) >= margin(model(x), y)).all()


def test_the_clip_box_is_kept():
    layer, x = linear(), torch.rand(20, 5)
    found = pgd(layer, x, layer(x).argmax(dim=1), 2.0, AttackConfig(clip=(0.0, 1.0)))
    assert found.min() >= 0.0
    assert found.max() <= 1.0


def test_gradient_free_breaks_what_hides_its_gradient():
    model, x = Staircase(), torch.rand(64, 3) * 2 - 1
    y = model(x).argmax(dim=1)
    assert not fooled(model, pgd(model, x, y, 3.0, AttackConfig(restarts=1)), y).any()
    assert fooled(model, gradient_free(model, x, y, 3.0), y).float().mean() > 0.9


class Island(nn.Module):
    """Another class between 1 and 1.5 to the right alone: neither at the input nor far from it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = (x[:, 0] - 1.0).relu() - 2.0 * (x[:, 0] - 1.25).relu()
        return torch.stack([0.05 + 0.01 * x[:, 0].neg(), inside], dim=1)


def test_rays_find_what_the_sphere_does_not_show():
    model, x, y = Island(), torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64)
    assert fooled(model, rays(model, x, y, 2.5), y).all()
    assert not fooled(model, torch.tensor([[-2.5], [2.5]]), y[:2]).any()


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_model_and_the_random_state_are_left_alone(attack):
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[1].eval()
    model[2].weight.requires_grad_(False)
    state = torch.random.get_rng_state()
    attack(model, torch.randn(5, 3, generator=torch.Generator()), torch.zeros(5).long(), 0.5)
    assert [m.training for m in model] == [True, False, True]
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, True]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


def test_frozen_restores_after_an_error():
    model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError), frozen(model):
        raise RuntimeError
    assert model.training
    assert model.weight.requires_grad


def test_seeded_and_independent_of_batching():
    # In double precision: a product of another batch size is rounded differently, and the search
    # multiplies that.
    model = build_mlp(4, 3, ModelConfig((8,))).double()
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 3
    one = AttackConfig(restarts=1, steps=10)
    small = AttackConfig(restarts=1, steps=10, batch_size=7)
    found = pgd(model, x, y, 0.4, one)
    assert torch.equal(found, pgd(model, x, y, 0.4, one))
    assert torch.allclose(found, pgd(model, x, y, 0.4, small), atol=1e-9)


@pytest.mark.parametrize("attack", ATTACKS)
def test_images_and_no_rows_at_all(attack):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64)
    assert attack(model, x, y, 0.1).shape == x.shape
    assert attack(model, x[:0], y[:0], 0.1).shape == (0, 3, 2, 2)


@pytest.mark.parametrize("radius", [-1.0, float("nan"), float("inf")])
def test_bad_radius_is_named(radius):
    with pytest.raises(ValueError, match=r"radius: expected finite numbers >= 0"):
        pgd(linear(), torch.zeros(1, 5), torch.zeros(1).long(), radius)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l1"}, r"norm: expected one of l2, linf, got 'l1'"),
        ({"steps": 0}, r"steps: expected a whole number >= 1, got 0"),
        ({"batch_size": -1}, r"batch_size: expected a whole number >= 1, got -1"),
    ],
)
def test_bad_configs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        AttackConfig(**change)
