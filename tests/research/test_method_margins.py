"""Losses that move the logits by a Lipschitz bound."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.research.comparators.lmt import LipschitzMargin
from admm_lip.research.comparators.product_margin import SURROGATES, ProductMargin, row_distances
from admm_lip.research.comparators.spectral import linears, product_bound, spectral_norm
from admm_lip.training.losses import cross_entropy

INPUTS = torch.randn(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(30) % 4


@pytest.fixture
def net() -> nn.Sequential:
    return build_mlp(6, 4, ModelConfig(hidden=(9, 5), init="torch"), seed=3).double()


def seen_by(method: LipschitzMargin | ProductMargin, net: nn.Module, progress: float) -> Tensor:
    """The logits that reach the loss."""
    seen: list[Tensor] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs)
        return cross_entropy(outputs, targets, 1.0)

    method.objective(net, INPUTS, TARGETS, loss, progress).backward()
    return seen[0].detach()


def test_lmt_raises_the_other_logits_by_sqrt2_eps_product(net: nn.Sequential) -> None:
    method = LipschitzMargin(eps=0.3, iterations=300)
    moved = seen_by(method, method.prepare(net), 0.0) - net(INPUTS).detach()
    own = torch.nn.functional.one_hot(TARGETS, 4).bool()
    assert float(moved[own].abs().max()) == 0.0
    torch.testing.assert_close(
        moved[~own], torch.full_like(moved[~own], math.sqrt(2.0) * 0.3 * product_bound(net))
    )


def test_lmt_needs_classes(net: nn.Sequential) -> None:
    method = LipschitzMargin()
    with pytest.raises(ValueError, match="needs integer class labels, got targets of type"):
        method.objective(
            method.prepare(net), INPUTS, INPUTS, lambda outputs, targets: outputs.sum(), 0.0
        )


def reach_of(net: nn.Sequential, eps: float) -> Tensor:
    *inner, last = linears(net)
    rest = math.prod(spectral_norm(layer.weight) for layer in inner)
    return eps * rest * row_distances(last.weight.detach())


def test_pair_bounds_hold_and_never_exceed_sqrt2_times_the_product(net: nn.Sequential) -> None:
    reach = reach_of(net, 1.0)
    assert float(reach.max()) <= math.sqrt(2.0) * product_bound(net) * (1 + 1e-12)
    other = INPUTS + 0.1 * torch.randn_like(INPUTS)
    moved = (net(other) - net(INPUTS)).detach()
    pairs = (moved[:, :, None] - moved[:, None, :]).abs()
    far = (other - INPUTS).norm(dim=1)[:, None, None]
    assert bool((pairs <= reach * far + 1e-12).all())


def test_shift_puts_every_other_class_at_its_worst(net: nn.Sequential) -> None:
    method = ProductMargin(eps=0.2, style="shift", ramp=0.5, iterations=300)
    net = method.prepare(net)
    logits = net(INPUTS).detach()
    for progress, eps in ((0.0, 0.0), (0.25, 0.1), (0.5, 0.2), (0.9, 0.2)):
        want = logits + reach_of(net, eps)[TARGETS]
        torch.testing.assert_close(seen_by(method, net, progress), want)


def test_emma_shifts_no_further_than_the_boundary(net: nn.Sequential) -> None:
    method = ProductMargin(eps=0.2, style="emma", ramp=0.0, iterations=300)
    net = method.prepare(net)
    logits, reach = net(INPUTS).detach(), reach_of(net, 0.2)[TARGETS]
    moved = seen_by(method, net, 0.0)
    own = logits.gather(1, TARGETS[:, None])
    lead = own - logits
    between = (lead > 0.01 * reach) & (lead < reach)
    assert bool(between.any())
    torch.testing.assert_close(moved[between], own.expand_as(moved)[between])
    beyond = lead >= reach
    torch.testing.assert_close(moved[beyond], (logits + reach)[beyond])
    assert bool((moved <= logits + reach + 1e-12).all())


def test_gloros_extra_logit_leads_exactly_where_nothing_is_certified(net: nn.Sequential) -> None:
    method = ProductMargin(eps=0.15, style="gloro", ramp=0.0, iterations=300)
    net = method.prepare(net)
    logits, reach = net(INPUTS).detach(), reach_of(net, 0.15)
    moved = seen_by(method, net, 0.0)
    assert moved.shape == (30, 5)
    torch.testing.assert_close(moved[:, :4], logits)
    predicted = logits.argmax(dim=1)
    for row, i in enumerate(predicted.tolist()):
        rivals = [float(logits[row, j] + reach[i, j]) for j in range(4) if j != i]
        certified = float(logits[row, i]) > max(rivals)
        assert certified == (int(moved[row].argmax()) != 4)
    assert 0 < int((moved.argmax(dim=1) == 4).sum()) < 30


@pytest.mark.parametrize("style", SURROGATES)
def test_gradients_reach_every_weight_and_match_differences(style: str, net: nn.Sequential) -> None:
    method = ProductMargin(eps=0.2, style=style, ramp=0.0, iterations=500)
    net = method.prepare(net)

    def value() -> float:
        loss = lambda f, y: cross_entropy(f, y, 1.0)  # noqa: E731
        return method.objective(net, INPUTS, TARGETS, loss, 0.5).item()

    method.objective(net, INPUTS, TARGETS, lambda f, y: cross_entropy(f, y, 1.0), 0.5).backward()
    for layer in linears(net):
        torch.manual_seed(0)
        direction = torch.randn_like(layer.weight)
        slope = float((layer.weight.grad * direction).sum())
        assert slope != 0.0
        if style == "emma":  # its shares are held, so the value's own slope is another one
            continue
        with torch.no_grad():
            layer.weight.add_(direction, alpha=1e-6)
            above = value()
            layer.weight.sub_(direction, alpha=2e-6)
            below = value()
            layer.weight.add_(direction, alpha=1e-6)
        assert slope == pytest.approx((above - below) / 2e-6, rel=1e-4, abs=1e-7)


def test_an_unknown_style_is_named() -> None:
    with pytest.raises(ValueError, match="style: expected one of emma, gloro, shift, got 'glora'"):
        ProductMargin(style="glora")
