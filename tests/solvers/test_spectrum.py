"""Leading eigenvalues near those of another matrix, against whole decompositions."""

from __future__ import annotations

import pytest
import torch
from projections import SYMMETRIC, UNIT, network
from torch import Tensor

from admm_lip.solvers import ProjectProblem, SolverConfig, Status, solve_project
from admm_lip.solvers.lmi import ball_tiles
from admm_lip.solvers.spectrum import eigenpairs_above, gram, is_below, top_within

ORDER = 150


def planted(seed: int, tops: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """A matrix with these eigenvalues, and others from 0 to 0.8; its vectors, by rising values."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.cat([torch.linspace(0.0, 0.8, ORDER - len(tops)), torch.tensor(tops)]).double()
    vectors = torch.linalg.qr(torch.randn(ORDER, ORDER, generator=generator).double())[0]
    return (vectors * values) @ vectors.T, vectors


def moved(matrix: Tensor, seed: int, by: float) -> Tensor:
    change = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(seed)).double()
    return matrix + by * (change + change.T) / ORDER**0.5


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (140, 160), (160, 140), (140, 140)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gram_matrix_is_the_smaller_product(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for a in (matrix, matrix.T, matrix.T.contiguous(), torch.cat([matrix, matrix])[::2]):
        tall = a if a.shape[1] <= a.shape[0] else a.T
        torch.testing.assert_close(gram(a), tall.T @ tall, rtol=1e-4, atol=1e-4)
        assert torch.equal(gram(a), gram(a).T)


def test_eigenpairs_are_found_from_those_of_a_matrix_nearby() -> None:
    first, _ = planted(0, (1.1, 1.2, 1.5, 2.0, 2.0))
    found = eigenpairs_above(first, 1.0)
    assert found.values.tolist() == pytest.approx([1.1, 1.2, 1.5, 2.0, 2.0])
    assert found.basis is not None
    second = moved(first, 1, 0.01)
    again = eigenpairs_above(second, 1.0, found.basis)
    values, vectors = torch.linalg.eigh(second)
    assert again.basis is not None
    torch.testing.assert_close(again.values, values[-5:], rtol=1e-5, atol=0.0)
    exact = vectors[:, -5:] @ vectors[:, -5:].T
    torch.testing.assert_close(again.vectors @ again.vectors.T, exact, rtol=0.0, atol=1e-3)


def test_a_basis_that_is_too_small_or_does_not_fit_is_none() -> None:
    matrix, vectors = planted(0, (1.1, 1.2, 1.5, 2.0))
    for basis in (vectors[:, -3:], torch.eye(ORDER - 1).double()[:, :4]):
        assert len(eigenpairs_above(matrix, 1.0, basis).values) == 4
    many = eigenpairs_above(matrix, 0.1)
    assert many.basis is None


def test_an_eigenvalue_that_a_basis_does_not_show_is_within_all_the_same() -> None:
    matrix, vectors = planted(0, (1.1, 1.2, 1.5, 2.0))
    blind = vectors[:, -20:-1]  # all but the largest
    assert top_within(matrix, blind) == pytest.approx(2.0)
    assert 2.0 <= top_within(matrix, vectors[:, -20:]) * (1.0 + 1e-12) <= 2.0001
    assert is_below(matrix, 2.001)
    assert not is_below(matrix, 1.999)


@pytest.mark.parametrize("slope", [UNIT, SYMMETRIC])
def test_a_wide_projection_from_a_warm_start_is_inside_and_as_near(
    slope: tuple[float, float],
) -> None:
    weights, slopes, multiplier = network((140, 150, 145, 4), seed=1, slope=slope)
    warm = None
    for step in range(4):
        near = tuple(w + 0.02 * step * w.flip(0).roll(step, 1) for w in weights)
        size = ball_tiles(slopes, multiplier, 1.0, 140, 4).norm(near)
        bound = 0.8 * size
        problem = ProjectProblem(near, slopes, multiplier, bound=bound)
        solution = solve_project(problem, SolverConfig(tol=1e-3), warm=warm)
        warm = solution.warm
        assert warm.data.basis is not None
        assert solution.status is Status.OPTIMAL
        assert ball_tiles(slopes, multiplier, bound**2, 140, 4).norm(solution.weights) <= 1.0
        fine = solve_project(problem, SolverConfig(tol=1e-7))
        assert fine.objective * (1.0 - 1e-6) <= solution.objective <= 1.0011 * fine.objective
