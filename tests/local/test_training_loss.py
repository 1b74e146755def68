"""The worst-case shift, the surrogates built on it, and the sparsity loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor, nn

from admm_lip.local.curves import Range
from admm_lip.local.layers import live_layers
from admm_lip.local.surrogates import (
    extra_logit,
    pair_norms,
    pair_rows,
    stretched,
    support,
    worst_logits,
)
from admm_lip.networks.clipped import ClippedMaxMin, ClippedReLU


def problem(
    seed: int, scale: float = 1.0, kink: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(3, 2, 6, generator=g, dtype=torch.float64)
    low, high = (torch.rand(3, 6, generator=g, dtype=torch.float64) for _ in range(2))
    if kink:
        v[0, 0, 0] = 0.0
        high[1, :3] = 0.0
    return v, scale * torch.rand(3, generator=g, dtype=torch.float64), -low, high


def by_root_finding(v: Tensor, radius: float, low: Tensor, high: Tensor) -> float:
    """The t at which the clipped step has the radius' length, by Brent's method."""

    def step(t: float) -> Tensor:
        return torch.maximum(torch.minimum(t * v, high), low)

    if float(step(1e12).norm()) <= radius:
        return float(v @ step(1e12))
    t = brentq(lambda s: float(step(math.exp(s)).norm()) - radius, -60.0, 28.0, xtol=1e-14)
    return float(v @ step(math.exp(t)))


@settings(max_examples=30)
@given(seed=st.integers(0, 100_000), scale=st.sampled_from([1e-6, 0.1, 1.0, 3.0, 100.0]))
def test_the_support_is_the_maximum(seed: int, scale: float) -> None:
    v, radius, low, high = problem(seed, scale)
    found = support(v, radius, low, high)
    for b in range(3):
        for m in range(2):
            exact = by_root_finding(v[b, m], float(radius[b]), low[b], high[b])
            assert float(found[b, m]) == pytest.approx(exact, rel=1e-9, abs=1e-15)
    room = torch.where(v > 0, high[:, None], -low[:, None])
    step, share = stretched(v.abs(), room, radius)
    assert bool((step.norm(dim=-1) <= radius[:, None] * (1 + 1e-12)).all())
    dual = radius[:, None] * share.norm(dim=-1) + ((v.abs() - share) * room).sum(-1)
    assert torch.allclose(dual, found, rtol=1e-10)


def test_the_support_has_the_gradients_of_differences() -> None:
    for seed in range(5):
        tensors = tuple(t.requires_grad_(True) for t in problem(seed, 1.5, kink=False))
        assert torch.autograd.gradcheck(support, tensors, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("radius", [0.0, 1e30])
def test_extreme_radii_have_finite_values_and_gradients(radius: float) -> None:
    v, _, low, high = problem(0)
    v.requires_grad_(True)
    value = support(v, torch.full((3,), radius, dtype=torch.float64), low, high)
    (gradient,) = torch.autograd.grad(value.sum(), v)
    assert bool(torch.isfinite(value).all() and torch.isfinite(gradient).all())
    if radius == 0.0:
        assert value.abs().max() == 0.0
    else:
        room = torch.where(v > 0, high[:, None], -low[:, None])
        assert torch.allclose(value, (v.abs() * room).sum(-1))


def test_pair_norms_leave_out_constant_units() -> None:
    weight = torch.tensor([[1.0, 2.0], [4.0, 6.0], [1.0, 2.0]], requires_grad=True)
    rows = pair_rows(weight, torch.tensor([0, 1]))
    assert pair_norms(rows, None).tolist() == [[0.0, 5.0, 0.0], [5.0, 0.0, 5.0]]
    masked = pair_norms(rows, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert masked.tolist() == [[0.0, 3.0, 0.0], [4.0, 0.0, 4.0]]
    masked.sum().backward()
    assert weight.grad is not None
    assert bool(torch.isfinite(weight.grad).all())


def test_surrogates_by_hand() -> None:
    logits, labels = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])
    shift = torch.tensor([[9.0, 0.5, 3.0]])
    moved = functional.cross_entropy(torch.tensor([[2.0, 1.5, 3.0]]), labels)
    plain = functional.cross_entropy(logits, labels)
    assert torch.allclose(worst_logits(logits, labels, shift, 0.0), moved)
    assert torch.allclose(worst_logits(logits, labels, shift, 0.25), 0.25 * plain + 0.75 * moved)
    extra = functional.cross_entropy(torch.tensor([[2.0, 1.0, 0.0, 3.0]]), labels)
    assert torch.allclose(extra_logit(logits, labels, shift, 0.7), extra)


def test_the_sparsity_loss_by_hand() -> None:
    def loss(act: nn.Module) -> float:
        model = nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2))
        box = Range(torch.tensor([[-1.0, 0.5]]), torch.tensor([[1.0, 3.0]]))
        with torch.no_grad():
            activation = live_layers(model, (2,))[0].activation
            assert activation is not None
            return float(activation.sparsity(box))

    assert loss(nn.ReLU()) == pytest.approx((1.0 + 3.0) / 2)
    assert loss(ClippedReLU((2,), 2.0)) == pytest.approx(2.0 + 0.1 * (3.0 + 1.5) / 2)
    # Sorted: maxima in [0.5, 3], minima in [-1, 1]; cap 2, floor -2.
    assert loss(ClippedMaxMin((2,), 2.0)) == pytest.approx((2.0 - 0.5) + (1.0 + 2.0))
