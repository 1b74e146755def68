"""Methods that change the weights after a step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.research.comparators.gouk import NORMS, LayerwiseProjection
from admm_lip.research.comparators.parseval import Parseval, retract
from admm_lip.research.comparators.spectral import linears, product_bound


def net_of(scale: float, seed: int = 0) -> nn.Sequential:
    net = build_mlp(7, 3, ModelConfig(hidden=(9, 4), init="torch"), seed=seed)
    with torch.no_grad():
        for layer in linears(net):
            layer.weight.mul_(scale)
    return net


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("scale", [0.1, 5.0])
def test_gouk_scales_exactly_the_layers_above_their_share(p: float, scale: float) -> None:
    method = LayerwiseProjection(bound=2.0, p=p, iterations=200)
    net = net_of(scale)
    before = [layer.weight.detach().double() for layer in linears(net)]
    after = [layer.weight.detach().double() for layer in linears(method.prepare(net))]
    cap = 2.0 ** (1.0 / 3.0)
    for old, new in zip(before, after, strict=True):
        norm = float(torch.linalg.matrix_norm(old, p))
        torch.testing.assert_close(new, old / max(1.0, norm / cap), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("p", NORMS)
def test_gouk_finishes_below_the_bound_even_from_a_poor_estimate(p: float) -> None:
    method = LayerwiseProjection(bound=2.0, p=p, iterations=1)
    net = method.prepare(net_of(1.0))
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in linears(net):
            layer.weight.add_(torch.randn_like(layer.weight))
    method.after_step(net)
    net = method.finish(net)
    norms = [torch.linalg.matrix_norm(m.weight.double(), p).item() for m in linears(net)]
    assert math.prod(norms) <= 2.0
    assert method.lipschitz(net) == pytest.approx(product_bound(net))
    assert not dict(net.named_buffers())


def test_gouks_norms_are_those_of_the_vector_norms() -> None:
    # ||W||_1 is the largest column sum, ||W||_inf the largest row sum.
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(weight)
    net = nn.Sequential(layer)
    for p, norm in ((1.0, 4.0), (math.inf, 3.5)):
        layer.weight = nn.Parameter(weight.clone())
        LayerwiseProjection(bound=1.0, p=p).prepare(net)
        torch.testing.assert_close(layer.weight.detach(), weight / norm)
        LayerwiseProjection(bound=1.0, p=p).finish(net)


def test_gouk_refuses_other_norms() -> None:
    with pytest.raises(ValueError, match=r"p: expected 1, 2 or inf, got 3\.0"):
        LayerwiseProjection(p=3.0)
    with pytest.raises(ValueError, match="bound: expected a finite number > 0, got 0"):
        LayerwiseProjection(bound=0)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    scale=st.floats(1e-2, 1e4),
    beta=st.floats(1e-4, 0.5),
)
def test_parseval_moves_every_singular_value_towards_one(
    shape: tuple[int, int], scale: float, beta: float
) -> None:
    weight = scale * torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    u, before, vh = torch.linalg.svd(weight, full_matrices=False)
    turned = u.T @ retract(weight, beta) @ vh.T
    after = torch.diagonal(turned)
    torch.testing.assert_close(turned, torch.diag(after), rtol=0.0, atol=1e-11 * scale)
    # s -> s (1 + b - b s^2): from below 1 it grows towards 1, from above it lands in [1/s, s].
    assert bool((after.log().abs() <= before.log().abs() + 1e-9).all())


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_parseval_converges_to_a_tight_frame_from_any_scale(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for scale in (0.1, 30.0):
        weight = scale * torch.randn(*shape, dtype=torch.float64)
        for _ in range(4000):
            weight = retract(weight, 0.1)
        torch.testing.assert_close(
            torch.linalg.svdvals(weight), torch.ones(min(shape), dtype=torch.float64)
        )


def test_parseval_step_is_the_formula_and_respects_the_bound_and_rows() -> None:
    net = net_of(1.0)
    cap = 8.0 ** (1.0 / 3.0)
    before = [layer.weight.detach().clone() / cap for layer in linears(net)]
    Parseval(bound=8.0, beta=0.01).after_step(net)
    for old, layer in zip(before, linears(net), strict=True):
        want = cap * (1.01 * old - 0.01 * old @ old.T @ old)
        torch.testing.assert_close(layer.weight.detach(), want)
    net = net_of(1.0)
    before = [layer.weight.detach().clone() for layer in linears(net)]
    Parseval(beta=0.01, rows=0.5).after_step(net)
    changed = [
        int((old != layer.weight).any(dim=1).sum())
        for old, layer in zip(before, linears(net), strict=True)
    ]
    assert changed == [4, 2, 2]
