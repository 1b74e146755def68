"""The one statement of the LMI, against the naive one of ``oracles``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    Net,
    hat_net,
    masked_constant,
    mixed_net,
    naive_bound,
    naive_lmi,
    random_net,
    sampled_lower_bound,
    signed_net,
)
from torch import Tensor

from admm_lip.solvers.lmi import (
    assemble,
    ball_tiles,
    eliminate_output,
    implied_bound,
    lmi_blocks,
)
from admm_lip.solvers.problem import Slopes

widths_strategy = st.lists(st.integers(1, 5), min_size=3, max_size=6)
seed_strategy = st.integers(0, 10**6)


def tensors(arrays: list[np.ndarray]) -> tuple[Tensor, ...]:
    return tuple(torch.as_tensor(a, dtype=torch.float64) for a in arrays)


def slopes_of(net: Net) -> tuple[Slopes, ...]:
    return tuple(Slopes(*tensors([a, b])) for a, b in net.ranges)


def random_multiplier(net: Net, seed: int, scale: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [scale * rng.uniform(0.5, 1.5, len(w)) for w in net.weights[:-1]]


@pytest.mark.parametrize("ranges", [(0.0, 1.0), (-0.2, 1.1), (0.3, 0.8), (0.0, 0.25)])
@given(widths=widths_strategy, seed=seed_strategy)
@settings(max_examples=15, deadline=None)
def test_blocks_assemble_to_the_naive_lmi(
    ranges: tuple[float, float], widths: list[int], seed: int
) -> None:
    net = random_net(widths, seed, ranges)
    t = random_multiplier(net, seed)
    dense = assemble(*lmi_blocks(tensors(net.weights), slopes_of(net), tensors(t), 1.7))
    np.testing.assert_allclose(dense, naive_lmi(net.weights, net.ranges, t, 1.7), atol=1e-12)


@given(widths=widths_strategy, seed=seed_strategy)
@settings(max_examples=20, deadline=None)
def test_eliminating_the_output_keeps_the_determinant(widths: list[int], seed: int) -> None:
    net = mixed_net(widths, seed)
    t = tensors(random_multiplier(net, seed))
    blocks = lmi_blocks(tensors(net.weights), slopes_of(net), t, 2.0)
    whole, reduced = assemble(*blocks), assemble(*eliminate_output(*blocks))
    # The eliminated block is the identity, so both have the same determinant.
    torch.testing.assert_close(torch.linalg.det(whole), torch.linalg.det(reduced))


@pytest.mark.parametrize("ranges", [(0.0, 1.0), (-0.2, 1.1), (0.3, 0.8)])
@given(widths=widths_strategy, seed=seed_strategy)
@settings(max_examples=15, deadline=None)
def test_implied_bound_is_the_least_that_the_naive_lmi_allows(
    ranges: tuple[float, float], widths: list[int], seed: int
) -> None:
    net = random_net(widths, seed, ranges)
    for scale in (0.2, 1.0, 5.0):
        t = random_multiplier(net, seed, scale)
        lip = implied_bound(tensors(net.weights), slopes_of(net), tensors(t))
        assert lip == pytest.approx(naive_bound(net.weights, net.ranges, t), rel=1e-5)


def test_a_multiplier_too_small_proves_nothing() -> None:
    net = hat_net()
    tiny = (torch.full((2,), 1e-3).double(),)
    assert implied_bound(tensors(net.weights), slopes_of(net), tiny) == float("inf")


def test_the_hat_is_certified_as_close_to_one_as_wanted_and_never_below() -> None:
    net = hat_net()

    def bound(a: float, b: float) -> float:
        t = (torch.tensor([a, b], dtype=torch.float64),)
        return implied_bound(tensors(net.weights), slopes_of(net), t)

    # S = [[2a - 1, 1], [1, 2b - 1]] is singular at a = b = 1, where the infimum lies.
    for excess in (1e-3, 1e-6, 1e-9):
        assert bound(1 + excess, 1 + excess) == pytest.approx((1 + excess) ** 0.5, rel=1e-9)
    grid = np.linspace(0.6, 2.0, 29)
    assert min(bound(a, b) for a in grid for b in grid) >= 1.0


@given(widths=st.lists(st.integers(1, 3), min_size=3, max_size=5), seed=seed_strategy)
@settings(max_examples=20, deadline=None)
def test_no_multiplier_proves_less_than_a_reachable_slope(widths: list[int], seed: int) -> None:
    net = random_net(widths, seed)
    biases = [np.zeros(len(w)) for w in net.weights]
    floor = max(masked_constant(net.weights), sampled_lower_bound(net.weights, biases, 50, seed))
    for scale in (0.3, 1.0, 3.0):
        t = tensors(random_multiplier(net, seed, scale))
        assert implied_bound(tensors(net.weights), slopes_of(net), t) >= floor * (1 - 1e-9)


@given(widths=widths_strategy, seed=seed_strategy, lip_sq=st.floats(0.1, 10.0))
@settings(max_examples=40, deadline=None)
def test_the_ball_holds_exactly_where_the_lmi_does(
    widths: list[int], seed: int, lip_sq: float
) -> None:
    net = mixed_net(widths, seed)
    t = random_multiplier(net, seed)
    ball = ball_tiles(slopes_of(net), tensors(t), lip_sq, widths[0], widths[-1])
    norm = ball.norm(tensors(net.weights))
    # B is linear in the weights: on the boundary the naive LMI turns singular.
    for factor, holds in ((1 - 1e-6, True), (1 + 1e-6, False)):
        scaled = [w * (factor / norm) for w in net.weights]
        m = naive_lmi(scaled, net.ranges, t, lip_sq)
        assert (np.linalg.eigvalsh(m)[0] >= 0.0) == holds


def test_the_ball_of_a_single_affine_map_is_refused() -> None:
    with pytest.raises(ValueError, match="multiplier: a single affine map has no hidden layer"):
        ball_tiles((), (), 1.0, 2, 2)


def test_bounds_do_not_change_when_neurons_are_permuted_and_ends_rotated() -> None:
    net, twin = random_net((3, 6, 5, 2), 7), signed_net((3, 6, 5, 2), 7)
    assert twin.lip is not None
    order = np.random.default_rng(0).permutation(6)
    t = random_multiplier(net, 7)
    permuted = [net.weights[0][order], net.weights[1][:, order], net.weights[2]]
    moved = implied_bound(tensors(permuted), slopes_of(net), tensors([t[0][order], t[1]]))
    still = implied_bound(tensors(net.weights), slopes_of(net), tensors(t))
    assert moved == pytest.approx(still, rel=1e-12)
