"""Adversarial training: what the inner maximisation promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.research.comparators.adversarial import FastGradient, ProjectedGradient
from admm_lip.research.comparators.ascent import BALLS, Ascent, sample_loss
from admm_lip.research.comparators.trades import Trades, divergence
from admm_lip.training.losses import cross_entropy

INPUTS = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(40) % 4
PLAIN = lambda outputs, targets: cross_entropy(outputs, targets, 1.0)  # noqa: E731


@pytest.fixture
def net() -> nn.Sequential:
    return build_mlp(6, 4, ModelConfig(hidden=(16, 16), init="torch"), seed=3)


def distance(move: Tensor, norm: str) -> Tensor:
    flat = move.flatten(1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().amax(dim=1)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_pgd_stays_in_the_ball_and_never_lowers_the_loss(
    norm: str, clip: tuple[float, float] | None, net: nn.Sequential
) -> None:
    attack = ProjectedGradient(eps=0.3, norm=norm, steps=7, clip=clip).ascent()
    value = lambda x: sample_loss(net(x), TARGETS)  # noqa: E731
    torch.manual_seed(0)
    for start in (INPUTS, attack.random_start(INPUTS)):
        moved = attack.climb(value, INPUTS, start)
        assert float(distance(moved - INPUTS, norm).max()) <= 0.3 * (1 + 1e-5)
        assert bool((value(moved) >= value(start)).all())
        assert (value(moved) - value(start)).mean().item() > 1e-3
        if clip is not None:
            assert 0.0 <= float(moved.min()) <= float(moved.max()) <= 1.0
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("norm", BALLS)
def test_random_starts_fill_the_ball(norm: str) -> None:
    torch.manual_seed(0)
    attack = Ascent(norm, 0.5, 1, 0.1)
    centre = torch.zeros(4000, 2)
    lengths = distance(attack.random_start(centre), norm)
    assert float(lengths.max()) <= 0.5 * (1 + 1e-6)
    # In two dimensions a quarter of either ball's area lies within half its radius.
    assert float((lengths < 0.25).float().mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("norm", BALLS)
def test_on_a_linear_model_the_ascent_is_exact(norm: str) -> None:
    weight = torch.randn(6, generator=torch.Generator().manual_seed(2))
    value = lambda x: x @ weight  # noqa: E731
    attack = ProjectedGradient(eps=0.3, norm=norm, steps=10).ascent()
    gain = value(attack.climb(value, INPUTS, INPUTS)) - value(INPUTS)
    dual = weight.norm() if norm == "l2" else weight.abs().sum()
    torch.testing.assert_close(gain, torch.full_like(gain, 0.3 * float(dual)))


def test_fgsm_is_one_signed_step_mixed_with_the_clean_loss(net: nn.Sequential) -> None:
    x = INPUTS.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(PLAIN(net(x), TARGETS), x)
    moved = INPUTS + 0.1 * gradient.sign()
    want = 0.3 * PLAIN(net(INPUTS), TARGETS) + 0.7 * PLAIN(net(moved), TARGETS)
    got = FastGradient(eps=0.1, clean_share=0.3).objective(net, INPUTS, TARGETS, PLAIN, 0.0)
    torch.testing.assert_close(got, want)


def test_adversarial_losses_exceed_the_clean_one_and_reach_the_weights(
    net: nn.Sequential,
) -> None:
    clean = PLAIN(net(INPUTS), TARGETS)
    for method in (FastGradient(), ProjectedGradient(), Trades()):
        torch.manual_seed(0)
        net.zero_grad()
        value = method.objective(net, INPUTS, TARGETS, PLAIN, 0.0)
        assert value.item() > clean.item()
        value.backward()
        assert all(float(p.grad.norm()) > 0.0 for p in net.parameters())


def test_the_divergence_is_torchs_and_zero_only_at_equal_predictions() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 4), torch.randn(5, 4)
    want = torch.nn.functional.kl_div(b.log_softmax(dim=1), a.softmax(dim=1), reduction="none").sum(
        dim=1
    )
    torch.testing.assert_close(divergence(a, b), want)
    assert float(divergence(a, a + 3.0).abs().max()) < 1e-6


def test_trades_without_weight_is_the_plain_loss(net: nn.Sequential) -> None:
    value = Trades(beta=0.0).objective(net, INPUTS, TARGETS, PLAIN, 0.0)
    torch.testing.assert_close(value, PLAIN(net(INPUTS), TARGETS))


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="norm: expected one of l2, linf, got 'l1'"):
        ProjectedGradient(norm="l1")
    with pytest.raises(ValueError, match="steps: expected a finite number >= 1, got 0"):
        Trades(steps=0)
    with pytest.raises(ValueError, match="needs integer class labels"):
        Trades().objective(nn.Linear(6, 1), INPUTS, INPUTS[:, :1], PLAIN, 0.0)
