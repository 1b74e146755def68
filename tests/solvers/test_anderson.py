"""Anderson acceleration: exact on linear maps, and harmless where it cannot help."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from admm_lip.solvers.native.ball.anderson import DEPTH, Anderson


def contraction(rank: int) -> tuple[Tensor, Tensor]:
    """Slope (of the given rank) and offset of a linear map with norm .99 on 4 x 3 matrices."""
    g = torch.Generator().manual_seed(rank)
    turn, _ = torch.linalg.qr(torch.randn(12, 12, generator=g, dtype=torch.float64))
    rates = torch.zeros(12, dtype=torch.float64)
    rates[:rank] = torch.linspace(0.99, 0.5, rank, dtype=torch.float64)
    return (turn * rates) @ turn.T, torch.randn(12, generator=g, dtype=torch.float64)


def run(slope: Tensor, offset: Tensor, steps: int) -> Tensor:
    """Residual after ``steps`` accelerated steps from zero."""
    point = torch.zeros(4, 3, dtype=torch.float64)
    memory = Anderson(point)
    for _ in range(steps):
        image = (slope @ point.reshape(-1) + offset).reshape(4, 3)
        point = memory.propose(point, image)
    flat = point.reshape(-1)
    return slope @ flat + offset - flat


@pytest.mark.parametrize("rank", [1, 2, DEPTH - 1])
def test_a_linear_map_of_low_rank_is_solved_in_rank_plus_two_steps(rank: int) -> None:
    slope, offset = contraction(rank)
    assert float(run(slope, offset, rank + 3).norm()) < 1e-6
    assert float(run(slope, offset, 1).norm()) > 0.1


def test_a_fixed_point_is_kept() -> None:
    point = torch.ones(4, 3, dtype=torch.float64)
    memory = Anderson(point)
    for _ in range(3 * DEPTH):
        point = memory.propose(point, point.clone())
    assert torch.equal(point, torch.ones(4, 3, dtype=torch.float64))


def test_a_step_that_lengthens_the_residual_is_taken_back() -> None:
    zero = torch.zeros(2, 1, dtype=torch.float64)
    memory = Anderson(zero)
    point = memory.propose(zero, zero + 1.0)
    plain = point + 0.5
    accelerated = memory.propose(point, plain)
    assert not torch.equal(accelerated, plain)
    assert torch.equal(memory.propose(accelerated, accelerated + 100.0), plain)


def test_forgetting_starts_anew() -> None:
    slope, offset = contraction(3)
    memory = Anderson(torch.zeros(4, 3, dtype=torch.float64))
    point = torch.zeros(4, 3, dtype=torch.float64)
    for _ in range(4):
        image = (slope @ point.reshape(-1) + offset).reshape(4, 3)
        point = memory.propose(point, image)
        memory.forget()
        assert torch.equal(point, image)
