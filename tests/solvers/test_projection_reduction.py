"""The reduction of wide first and last layers: exact, whatever the rank."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from admm_lip.solvers.config import SolverConfig
from admm_lip.solvers.native.ball.spectral_ball import project
from admm_lip.solvers.problem import ProjectProblem, Structure, unit_slopes
from admm_lip.solvers.projection_reduction import reduce_project, row_factor
from admm_lip.solvers.solution import Status


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wide_problem(first: Tensor, last: Tensor, bound: float = 0.5) -> ProjectProblem:
    """Two hidden layers between the given first and last weights."""
    middle = normal(3, last.shape[1], first.shape[0]) / first.shape[0] ** 0.5
    weights = (first, middle, last)
    multiplier = tuple(
        torch.linspace(0.7, 1.4, w.shape[0], dtype=torch.float64) for w in weights[:-1]
    )
    return ProjectProblem(weights, unit_slopes(weights), multiplier, bound=bound)


def assert_same_optimum(problem: ProjectProblem) -> None:
    """Lifted solution of the reduced problem against the solution of the given one."""
    config = SolverConfig(tol=1e-11)
    reduced = reduce_project(problem)
    small, direct = project(reduced.problem, config), project(problem, config)
    assert small.status is direct.status is Status.OPTIMAL
    assert small.weights is not None and direct.weights is not None
    assert small.lip_sq == pytest.approx(direct.lip_sq, rel=1e-4)
    for a, b in zip(reduced.lift(small.weights), direct.weights, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) < 2e-5 * float(b.abs().max()) + 1e-12


@pytest.mark.parametrize("mu", [None, 0.05])
@pytest.mark.parametrize("n_in", [4, 5, 30])
@pytest.mark.parametrize("n_out", [3, 6, 20])
def test_the_lifted_optimum_is_the_optimum(n_in: int, n_out: int, mu: float | None) -> None:
    problem = wide_problem(normal(1, 5, n_in) / n_in**0.5, normal(2, n_out, 6) / 3.0)
    problem = problem if mu is None else replace(problem, bound=None, mu=mu)
    assert reduce_project(problem).problem.widths == (min(n_in, 5), 5, 6, min(n_out, 6))
    assert_same_optimum(problem)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_first_layer_of_low_rank_is_reduced_too(rank: int) -> None:
    problem = wide_problem(normal(1, 5, rank) @ normal(4, rank, 12), normal(2, 3, 6))
    assert reduce_project(problem).problem.widths[0] == 5
    assert_same_optimum(problem)


def test_a_nearly_singular_first_layer_keeps_orthonormal_rows() -> None:
    first = normal(1, 6, 40)
    first[1] = first[0] + 1e-9 * first[1]
    found = row_factor(first)
    eye = torch.eye(6, dtype=torch.float64)
    factor, rows = found.factor, found.times_rows(eye)
    assert float((rows @ rows.T - eye).abs().max()) < 1e-13
    assert float((factor @ rows - first).abs().max()) < 1e-13
    assert bool((factor.diagonal() >= 0).all())


@given(
    rows=st.integers(1, 12),
    extra=st.integers(0, 20),
    scale=st.floats(-8.0, 8.0),
    decay=st.floats(0.0, 3.0),
    seed=st.integers(0, 1000),
)
def test_the_factor_reproduces_any_matrix(
    rows: int, extra: int, scale: float, decay: float, seed: int
) -> None:
    wide = normal(seed, rows, rows + extra)
    wide *= 10.0**scale * 10.0 ** (-decay * torch.arange(rows, dtype=torch.float64))[:, None]
    found = row_factor(wide)
    eye = torch.eye(rows, dtype=torch.float64)
    factor, frame = found.factor, found.times_rows(eye)
    assert float((frame @ frame.T - eye).abs().max()) < 1e-9
    assert float((factor @ frame - wide).abs().max()) <= 1e-12 * float(wide.abs().max())
    assert torch.equal(factor, factor.tril())


def test_the_factor_moves_continuously_with_the_anchor() -> None:
    wide = normal(5, 8, 50)
    near = wide + 1e-6 * normal(6, 8, 50)
    assert float((row_factor(wide).factor - row_factor(near).factor).abs().max()) < 1e-4


def test_layers_with_structure_and_narrow_layers_are_left_alone() -> None:
    problem = wide_problem(normal(1, 5, 30), normal(2, 20, 6))
    weighted = Structure(metric=torch.full((5, 30), 2.0, dtype=torch.float64))
    kept = reduce_project(replace(problem, structure=(weighted, Structure(), Structure())))
    assert kept.problem.widths == (30, 5, 6, 6)
    assert kept.first is None and kept.last is not None
    narrow = wide_problem(normal(1, 5, 4), normal(2, 3, 6))
    assert reduce_project(narrow).problem is narrow
    weights = narrow.anchor
    assert all(a is b for a, b in zip(reduce_project(narrow).lift(weights), weights, strict=True))


@pytest.mark.parametrize("shape", [(3, 20), (20, 3), (4, 4)])
def test_a_single_affine_map(shape: tuple[int, int]) -> None:
    problem = ProjectProblem((normal(1, *shape),), (), (), bound=0.7)
    assert max(reduce_project(problem).problem.widths) == min(shape)
    assert_same_optimum(problem)


def test_restart_data_of_one_anchor_serve_the_next() -> None:
    config = SolverConfig(tol=1e-6)
    problem = wide_problem(normal(1, 16, 200) / 14.0, normal(2, 3, 16) / 4.0)
    noise = [1e-6 * normal(7 + k, *v.shape) for k, v in enumerate(problem.anchor)]
    moved = replace(
        problem, anchor=tuple(v + e for v, e in zip(problem.anchor, noise, strict=True))
    )
    first, second = reduce_project(problem), reduce_project(moved)
    start = project(first.problem, config)
    warm = project(second.problem, config, start.warm)
    cold = project(second.problem, config)
    assert warm.status is cold.status is Status.OPTIMAL
    assert warm.iterations < cold.iterations // 2
