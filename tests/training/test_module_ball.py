"""The ball of a module ``W1 phi(W0 x)`` against unrolled matrices and the matrix inequality."""

from __future__ import annotations

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from test_kernel_ball import kernel_of, unrolled
from torch import Tensor

from admm_lip.training.kernel_ball import KernelBall
from admm_lip.training.matrix_ball import DENSE
from admm_lip.training.module_ball import ModuleBall

Case = tuple[ModuleBall, tuple[tuple[int, ...], tuple[int, ...]]]


def module(
    first: tuple[int, int], second: tuple[int, int], grid: tuple[int, int], **how: tuple[int, int]
) -> ModuleBall:
    """Kernels of these sizes; ``grid`` is that behind both."""
    (s, t) = how.get("strides", (1, 1))
    (d, e) = how.get("dilations", (1, 1))
    between = (grid[0] * t, grid[1] * t)
    return ModuleBall(
        KernelBall(first, between, (s, s), (d, d)), KernelBall(second, grid, (t, t), (e, e))
    )


CASES: dict[str, Case] = {
    "plain": (module((3, 3), (3, 2), (4, 3)), ((3, 2, 3, 3), (2, 3, 3, 2))),
    "strided twice": (
        module((3, 3), (2, 2), (2, 2), strides=(2, 2)),
        ((2, 1, 3, 3), (3, 2, 2, 2)),
    ),
    "second strided": (
        module((2, 3), (4, 3), (3, 3), strides=(1, 2)),
        ((2, 2, 2, 3), (1, 2, 4, 3)),
    ),
    "first strided, dilated": (
        module((3, 2), (2, 2), (4, 5), strides=(2, 1), dilations=(1, 2)),
        ((3, 1, 3, 2), (2, 3, 2, 2)),
    ),
    "dense": (ModuleBall(DENSE, DENSE), ((5, 4), (3, 5))),
}


def weights_of(name: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    first, second = CASES[name][1]
    return kernel_of(first, seed), kernel_of(second, seed + 1)


def matrices(ball: ModuleBall, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Both layers unrolled on their torus."""
    first, second = ball.apart()
    if isinstance(first, KernelBall) and isinstance(second, KernelBall):
        return unrolled(first, weights[0]), unrolled(second, weights[1])
    return weights[0], weights[1]


def stacked(ball: ModuleBall, weights: tuple[Tensor, ...], b: float = 1.0) -> Tensor:
    first, second = matrices(ball, weights)
    return torch.cat((b * first.T, second / b))


@pytest.mark.parametrize("balance", [1.0, 1.7])
@pytest.mark.parametrize("name", CASES)
def test_the_norm_is_that_of_the_unrolled_layers_side_by_side(name: str, balance: float) -> None:
    ball, weights = CASES[name][0], weights_of(name)
    dense = float(torch.linalg.matrix_norm(stacked(ball, weights, balance), 2)) / math.sqrt(2.0)
    own = ModuleBall(ball.first, ball.second, balance)
    assert own.norm_of(weights) == pytest.approx(dense, rel=1e-9)


@pytest.mark.parametrize("name", ["second strided", "dense"])
def test_it_is_the_matrix_inequality_of_the_module(name: str) -> None:
    """``[[r^2, -W0' T], [-T W0, 2 T - W1' W1]] >= 0`` for ``T = r b^2``, and for no smaller r."""
    ball, weights = CASES[name][0], weights_of(name)
    own = ball.fitted(weights)
    first, second = matrices(ball, weights)
    r, t = own.norm_of(weights) ** 2, own.norm_of(weights) ** 2 * own.balance**2

    def least(r: float) -> float:
        eye = [torch.eye(n, dtype=torch.float64) for n in first.shape]
        rows = (
            torch.cat((r**2 * eye[1], -t * first.T), 1),
            torch.cat((-t * first, 2.0 * t * eye[0] - second.T @ second), 1),
        )
        return float(torch.linalg.eigvalsh(torch.cat(rows))[0])

    assert least(r * (1.0 + 1e-8)) > -1e-9 > 1e-4 * least(0.99 * r)


def test_padding_of_the_second_layer_changes_no_norm() -> None:
    ball, weights = CASES["strided twice"][0], weights_of("strided twice")
    first, second = matrices(ball, weights)
    images = second.view(-1, len(weights[0]), *ball.first.grid)  # type: ignore[union-attr]
    moved = images.roll((1, 1), (2, 3)).flatten(1)
    stack = torch.cat((first.T, moved))
    expected = math.sqrt(2.0) * ball.norm_of(weights)
    assert float(torch.linalg.matrix_norm(stack, 2)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_layers_apart_bound_the_module_and_moved_scales_bound_it_as_well(name: str) -> None:
    ball, (first, second) = CASES[name][0], weights_of(name)
    own = ball.fitted((first, second))
    sizes = [one.norm(w) for one, w in zip(ball.apart(), (first, second), strict=True)]
    product = math.sqrt(sizes[0] * sizes[1])
    assert product * math.sqrt(0.5) <= own.norm_of((first, second)) <= product * (1.0 + 1e-9)
    b = own.balance
    assert ball.norm_of((b * first, second / b)) == pytest.approx(own.norm_of((first, second)))
    assert ball.norm_of((first, 0.0 * second)) == 0.0


@pytest.mark.parametrize(
    ("name", "balance"), [("second strided", 1.2), ("dense", 1.0), ("dense", 1.5)]
)
def test_the_nearest_is_that_of_a_general_solver(name: str, balance: float) -> None:
    ball, anchor = CASES[name][0], weights_of(name)
    own, radius = ModuleBall(ball.first, ball.second, balance), 1.1
    sizes = [w.numel() for w in anchor]
    columns = []
    for k, w in enumerate(anchor):
        for entry in torch.eye(w.numel(), dtype=torch.float64):
            both = [torch.zeros_like(v) for v in anchor]
            both[k] = entry.view_as(w)
            columns.append(stacked(ball, tuple(both), balance).numpy())
    free = cp.Variable(sum(sizes))
    shape = columns[0].shape
    flat = np.stack(columns).reshape(len(columns), -1).T
    start = torch.cat([w.flatten() for w in anchor]).numpy()
    goal = cp.norm(free - start)
    held = cp.sigma_max(cp.reshape(flat @ free, shape, order="C")) <= math.sqrt(2.0) * radius
    cp.Problem(cp.Minimize(goal), [held]).solve("SCS", eps_abs=1e-5, eps_rel=1e-5, max_iters=20000)
    found, _, _ = own.nearest_to(anchor, radius, 1e-8)
    assert own.norm_of(found) <= radius * (1.0 + 1e-9)
    away = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(found, anchor, strict=True)))
    assert away == pytest.approx(goal.value, rel=1e-4)


@pytest.mark.parametrize("tol", [1e-3, 1e-8])
def test_what_is_inside_stays_and_the_nearest_is_its_own_nearest(tol: float) -> None:
    ball, anchor = CASES["strided twice"][0], weights_of("strided twice")
    inside = tuple(w / (1.01 * ball.norm_of(anchor)) for w in anchor)
    for kept, w in zip(ball.nearest_to(inside, 1.0, tol)[0], inside, strict=True):
        torch.testing.assert_close(kept, w, rtol=1e-5, atol=1e-6)
    far = tuple(3.0 * w for w in inside)
    once, warm, _ = ball.nearest_to(far, 1.0, tol)
    assert 0.998 < ball.norm_of(once) <= 1.0 + 1e-12
    cold = ball.nearest_to(tuple(0.99 * w for w in far), 1.0, tol)[2]
    assert ball.nearest_to(tuple(0.99 * w for w in far), 1.0, tol, warm)[2] < cold
    again, _, _ = ball.nearest_to(once, 1.0, tol)
    for a, b in zip(again, once, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
