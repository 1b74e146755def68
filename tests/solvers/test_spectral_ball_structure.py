"""The native projection of tied, weighted and held entries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from projections import GELU, TIGHT, UNIT, normal, objective, penalised, random_problem, solved
from torch import Tensor

from admm_lip.solvers.config import SolverConfig
from admm_lip.solvers.cvxpy_ import CvxpyBackend
from admm_lip.solvers.errors import ProblemError
from admm_lip.solvers.native.ball.spectral_ball import project
from admm_lip.solvers.problem import ProjectProblem, Structure, unit_slopes
from admm_lip.solvers.solution import Status


def kernel_labels(c_in: int, c_out: int, side: int) -> Tensor:
    """Labels of the matrix of a 3 x 3 convolution with padding 1, in (c, h, w) order."""
    labels = torch.full((c_out, side, side, c_in, side, side), -1)
    for y in range(side):
        for x in range(side):
            for dy in range(3):
                for dx in range(3):
                    v, u = y + dy - 1, x + dx - 1
                    if 0 <= v < side and 0 <= u < side:
                        kernel = torch.arange(c_out * c_in).reshape(c_out, c_in)
                        labels[:, y, x, :, v, u] = 9 * kernel + 3 * dy + dx
    return labels.reshape(c_out * side**2, c_in * side**2)


def structured(kind: str, slope: tuple[float, float]) -> ProjectProblem:
    """A projection with ties, metrics or held entries; held ones leave room to move."""
    widths = (9, 18, 9, 2) if kind == "ties" else (4, 6, 5, 3)
    problem = random_problem(widths, 2, slope)
    g = torch.Generator().manual_seed(7)
    metrics = [torch.exp(normal(g, *w.shape)) for w in problem.anchor]
    held = [torch.rand(w.shape, generator=g) < 0.2 for w in problem.anchor]
    anchor = list(problem.anchor)
    if kind == "ties":
        labels = [kernel_labels(1, 2, 3), kernel_labels(2, 1, 3)]
        for k, own in enumerate(labels):
            kernel = torch.cat([normal(g, 18) * 0.5, torch.zeros(1, dtype=torch.float64)])
            anchor[k] = kernel[own]
        parts = (Structure(ties=labels[0]), Structure(ties=labels[1]), Structure())
    elif kind == "mixed":
        # Labels with gaps, and a metric on tied entries.
        labels = [3 * torch.randint(0, 6, anchor[1].shape, generator=g)]
        labels[0][0, :2] = -1
        kernel = torch.cat([normal(g, 16) * 0.3, torch.zeros(1, dtype=torch.float64)])
        anchor[1] = kernel[labels[0]]
        parts = (
            Structure(metric=metrics[0], held=held[0]),
            Structure(metric=metrics[1], ties=labels[0]),
            Structure(held=held[2]),
        )
    elif kind == "held":
        parts = tuple(Structure(held=h) for h in held)
    else:
        parts = tuple(Structure(metric=m) for m in metrics)
    bound = problem.bound if kind != "held" else 1.5 * (problem.bound or 1.0)
    return replace(problem, anchor=tuple(anchor), structure=parts, bound=bound)


@pytest.mark.parametrize("kind", ["ties", "metric", "held", "mixed"])
@pytest.mark.parametrize("slope", [UNIT, GELU])
@pytest.mark.parametrize("mu", [None, 0.02])
def test_structure_is_kept_and_agrees_with_an_interior_point_solver(
    kind: str, slope: tuple[float, float], mu: float | None
) -> None:
    problem = structured(kind, slope)
    problem = problem if mu is None else penalised(problem, mu)
    ours = solved(problem, SolverConfig(tol=1e-7))
    theirs = CvxpyBackend("clarabel").project(problem, SolverConfig(tol=1e-9))
    assert ours.iterations > 0  # the anchor was not feasible: something was solved
    assert objective(problem, ours) == pytest.approx(objective(problem, theirs), rel=2e-6)
    assert ours.weights is not None
    for w, v, own in zip(ours.weights, problem.anchor, problem.structure, strict=True):
        if own.held is not None:
            assert torch.equal(w[own.held], v[own.held])
        if own.ties is not None:
            assert torch.equal(w[own.ties < 0], torch.zeros_like(w[own.ties < 0]))
            for label in own.ties.unique():
                assert w[own.ties == label].unique().numel() == 1


def test_held_entries_beyond_the_bound_are_refused_with_a_proof() -> None:
    problem = random_problem((3, 5, 2))
    held = torch.zeros(5, 3, dtype=torch.bool)
    held[:, 0] = True
    anchor = (problem.anchor[0].clone(), problem.anchor[1])
    anchor[0][:, 0] = 50.0
    structure = (Structure(held=held), Structure())
    claim = project(replace(problem, anchor=anchor, structure=structure), TIGHT)
    assert claim.status is Status.INFEASIBLE
    assert claim.weights is None
    assert "held entries alone exceed the ball" in claim.message


def test_a_penalised_bound_rises_until_the_held_entries_fit() -> None:
    problem = penalised(random_problem((3, 5, 2)), 10.0)
    held = torch.zeros(5, 3, dtype=torch.bool)
    held[:, 0] = True
    problem = replace(problem, structure=(Structure(held=held), Structure()))
    claim = solved(problem, SolverConfig(tol=1e-7))
    assert claim.weights is not None
    assert torch.equal(claim.weights[0][:, 0], problem.anchor[0][:, 0])
    theirs = CvxpyBackend("clarabel").project(problem, SolverConfig(tol=1e-9))
    assert objective(problem, claim) == pytest.approx(objective(problem, theirs), rel=2e-6)


def test_held_entries_behind_the_input_are_refused_in_the_penalised_form_too() -> None:
    problem = penalised(random_problem((3, 5, 2)), 1.0)
    anchor = (problem.anchor[0], 50.0 * problem.anchor[1])
    structure = (Structure(), Structure(held=torch.ones(2, 5, dtype=torch.bool)))
    claim = project(replace(problem, anchor=anchor, structure=structure), TIGHT)
    assert claim.status is Status.INFEASIBLE
    assert "held entries alone exceed the ball" in claim.message


@pytest.mark.parametrize("bound", [1.02, 1.0001])
def test_held_entries_may_need_the_free_ones_to_be_feasible(bound: float) -> None:
    # With x = 0 the norm of [[.6, .8], [.8, x]] is 1.15; with x near -.6 it is 1 (Parrott).
    matrix = torch.tensor([[0.6, 0.8], [0.8, 0.5]], dtype=torch.float64)
    held = torch.tensor([[True, True], [True, False]])
    problem = ProjectProblem((matrix,), (), (), bound=bound, structure=(Structure(held=held),))
    claim = solved(problem)
    grid = torch.linspace(-1.0, 0.5, 150_001, dtype=torch.float64)
    tried = matrix.repeat(len(grid), 1, 1)
    tried[:, 1, 1] = grid
    best = float(grid[torch.linalg.matrix_norm(tried, 2) <= bound].max())
    assert claim.weights is not None
    assert float(claim.weights[0][1, 1]) == pytest.approx(best, abs=2e-5)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (Structure(metric=torch.ones(2, 2)), r"structure\[0\]\.metric: expected shape \(5, 3\)"),
        (Structure(held=torch.ones(3, 5) > 0), r"structure\[0\]\.held: expected shape \(5, 3\)"),
        (Structure(ties=torch.ones(1)), r"structure\[0\]\.ties: expected shape \(5, 3\)"),
        (Structure(metric=torch.zeros(5, 3)), r"structure\[0\]\.metric: expected entries > 0"),
        (Structure(ties=torch.full((5, 3), -2)), r"structure\[0\]\.ties: expected labels >= -1"),
    ],
)
def test_a_structure_that_does_not_fit_is_refused(own: Structure, message: str) -> None:
    problem = random_problem((3, 5, 2))
    with pytest.raises(ProblemError, match=message):
        project(replace(problem, structure=(own, Structure())), TIGHT)


def test_unit_slopes_with_a_dead_neuron_leave_it_alone() -> None:
    # A neuron of slope 0 passes nothing on, so its incoming weights are free.
    problem = random_problem((3, 5, 2))
    slopes = unit_slopes(problem.anchor)
    slopes[0].beta[2] = 0.0
    claim = solved(replace(problem, slopes=slopes))
    assert claim.weights is not None
    assert torch.equal(claim.weights[0][2], problem.anchor[0][2])
