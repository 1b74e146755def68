"""The ball of one convolution against the unrolled matrix of its torus."""

from __future__ import annotations

import itertools
import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from admm_lip.training.kernel_ball import KernelBall, clip_excess, symbols_of

CASES = {
    "plain": (KernelBall((3, 3), (5, 4)), (3, 2, 3, 3)),
    "strided": (KernelBall((3, 3), (4, 3), (2, 2)), (3, 2, 3, 3)),
    "stride beyond the kernel": (KernelBall((2, 2), (3, 3), (3, 3)), (2, 2, 2, 2)),
    "even, one stride": (KernelBall((4, 2), (4, 5), (2, 1)), (2, 3, 4, 2)),
    "dilated": (KernelBall((2, 3), (5, 6), (1, 2), (2, 3)), (2, 2, 2, 3)),
    "groups": (KernelBall((3, 3), (4, 4), groups=2), (4, 3, 3, 3)),
    "one row": (KernelBall((1, 5), (1, 7), (1, 2)), (4, 2, 1, 5)),
    "dense": (KernelBall((1, 1), (1, 1)), (4, 6, 1, 1)),
}


def kernel_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unrolled(ball: KernelBall, kernel: Tensor) -> Tensor:
    """The matrix of the periodic convolution, column by column as torch computes it."""
    sides = [n * s for n, s in zip(ball.grid, ball.stride, strict=True)]
    channels = kernel.shape[1] * ball.groups
    inputs = torch.eye(channels * math.prod(sides), dtype=torch.float64).view(-1, channels, *sides)
    reach = [d * (k - 1) for k, d in zip(ball.kernel, ball.dilation, strict=True)]
    rows, columns = ([i % n for i in range(n + r)] for n, r in zip(sides, reach, strict=True))
    padded = inputs[:, :, rows][:, :, :, columns]
    out = F.conv2d(padded, kernel, None, ball.stride, 0, ball.dilation, ball.groups)
    assert out.shape[2:] == ball.grid
    return out.flatten(1).T


@pytest.mark.parametrize("name", CASES)
def test_the_norm_is_that_of_the_unrolled_matrix(name: str) -> None:
    ball, shape = CASES[name]
    kernel = kernel_of(shape)
    dense = float(torch.linalg.matrix_norm(unrolled(ball, kernel), 2))
    assert ball.norm(kernel) == pytest.approx(dense, rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_gathering_is_the_adjoint_of_spreading_and_undoes_it(name: str) -> None:
    ball, shape = CASES[name]
    symbols = symbols_of(ball, ball.grid, torch.float64, torch.device("cpu"))
    kernel, spread = kernel_of(shape), ball.spread(kernel_of(shape, 1), symbols)
    other = torch.complex(*(kernel_of(tuple(spread.shape), seed) for seed in (2, 3)))
    inner = (ball.spread(kernel, symbols).conj() * other).sum().real
    assert float(inner) == pytest.approx(
        float((kernel * ball.gather(other, symbols, kernel)).sum())
    )
    torch.testing.assert_close(ball.gather(ball.spread(kernel, symbols), symbols, kernel), kernel)


@pytest.mark.parametrize("name", ["strided", "one row"])
def test_the_nearest_kernel_is_that_of_a_general_solver(name: str) -> None:
    ball, shape = CASES[name]
    anchor, radius = kernel_of(shape), 1.3
    basis = torch.eye(anchor.numel(), dtype=torch.float64).view(-1, *shape)
    columns = np.stack([unrolled(ball, one).numpy() for one in basis])
    free = cp.Variable(anchor.numel())
    rows = columns.shape[1:]
    matrix = cp.reshape(columns.reshape(len(columns), -1).T @ free, rows, order="C")
    goal = cp.norm(free - anchor.flatten().numpy())
    cp.Problem(cp.Minimize(goal), [cp.sigma_max(matrix) <= radius]).solve(
        "SCS", eps_abs=1e-7, eps_rel=1e-7, max_iters=20000
    )
    found, _, _ = ball.nearest(anchor, radius, 1e-8)
    assert ball.norm(found) <= radius * (1.0 + 1e-9)
    assert float((found - anchor).norm()) == pytest.approx(goal.value, rel=1e-5)


def test_the_nearest_kernel_meets_its_conditions() -> None:
    """``V - K = gather(Z)``, Z only where singular values stand at the radius, positive there."""
    ball, shape = CASES["strided"]
    anchor = kernel_of(shape)
    found, (_, excess), _ = ball.nearest(anchor, 1.0, 1e-10)
    symbols = symbols_of(ball, ball.coarse, torch.float64, torch.device("cpu"))
    force = torch.view_as_complex(excess)
    pull = ball.gather(force, symbols, anchor)
    share = float((pull * (anchor - found)).sum() / pull.square().sum())
    torch.testing.assert_close(share * pull, anchor - found, rtol=1e-6, atol=1e-7)
    spread = ball.spread(found, symbols)
    nuclear = torch.linalg.svdvals(force).sum(1) * symbols.limits
    torch.testing.assert_close((force.conj() * spread).sum((1, 2)).real, nuclear, atol=1e-7, rtol=0)


@pytest.mark.parametrize("tol", [1e-3, 1e-8])
def test_a_kernel_inside_stays_and_the_nearest_is_its_own_nearest(tol: float) -> None:
    ball, shape = KernelBall((3, 3), (20, 20)), (4, 3, 3, 3)
    inside = kernel_of(shape) / (1.01 * ball.norm(kernel_of(shape)))
    torch.testing.assert_close(ball.nearest(inside, 1.0, tol)[0], inside, rtol=1e-6, atol=1e-6)
    once, warm, _ = ball.nearest(3.0 * inside, 1.0, tol)
    assert 0.999 < ball.norm(once) <= 1.0 + 1e-12
    again, _, _ = ball.nearest(once, 1.0, tol)
    torch.testing.assert_close(again, once, rtol=1e-5, atol=1e-5)
    _, _, cold = ball.nearest(2.99 * inside, 1.0, tol)
    assert ball.nearest(2.99 * inside, 1.0, tol, warm)[2] < cold


def test_a_coarse_grid_costs_little_of_the_distance() -> None:
    ball, shape = KernelBall((3, 3), (34, 34)), (3, 4, 3, 3)
    anchor = kernel_of(shape) / 4.0
    fine = KernelBall((3, 3), (16, 16))
    assert ball.coarse == (12, 12)
    near, best = (float((b.nearest(anchor, 1.0, 1e-6)[0] - anchor).norm()) for b in (ball, fine))
    assert near < 1.01 * best


def test_the_norm_bounds_every_zero_padded_convolution_within_the_torus() -> None:
    for stride, padding in itertools.product((1, 2), (0, 1, 2)):
        image, kernel = (5, 6), kernel_of((3, 2, 3, 3))
        sides = [-(-(n + 2 * padding) // stride) for n in image]
        ball = KernelBall((3, 3), (sides[0], sides[1]), (stride, stride))
        inputs = torch.eye(2 * math.prod(image), dtype=torch.float64).view(-1, 2, *image)
        dense = F.conv2d(inputs, kernel, None, stride, padding).flatten(1)
        assert float(torch.linalg.matrix_norm(dense, 2)) <= ball.norm(kernel) * (1.0 + 1e-12)


def test_a_torus_that_is_too_small_for_the_image_bounds_another_operator() -> None:
    """Differences of three pixels, zeros around them, reach over five places."""
    kernel = torch.tensor([1.0, -1.0], dtype=torch.float64).view(1, 1, 1, 2)
    inputs = torch.eye(3, dtype=torch.float64).view(-1, 1, 1, 3)
    dense = F.conv2d(inputs, kernel, None, 1, (0, 1)).flatten(1)
    true = float(torch.linalg.matrix_norm(dense, 2))
    assert KernelBall((1, 2), (1, 3)).norm(kernel) < true < KernelBall((1, 2), (1, 5)).norm(kernel)


def test_a_torus_smaller_than_the_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grid: expected at least 3 along axis 1.*got 2"):
        KernelBall((1, 5), (1, 2), (1, 2))
    KernelBall((1, 5), (1, 3), (1, 2))


def test_clipping_takes_away_what_is_above_each_limit() -> None:
    a = torch.complex(kernel_of((5, 3, 4), 1), kernel_of((5, 3, 4), 2))
    limits = torch.tensor([0.5, 1.0, 2.0, 3.0, 100.0], dtype=torch.float64)
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    expected = (u * (s - limits[:, None]).clamp(min=0.0)[:, None]) @ vh
    torch.testing.assert_close(clip_excess(a, limits), expected)
    torch.testing.assert_close(clip_excess(a.mH.contiguous(), limits), expected.mH)
