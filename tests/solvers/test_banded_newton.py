"""The centring steps that are linear in depth, against the dense equations they replace."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from admm_lip.solvers.config import SolverConfig
from admm_lip.solvers.native.interior.centring import centre, newton_step
from admm_lip.solvers.native.large.banded_newton import (
    approach,
    hessian_band,
    hessian_product,
    newton_direction,
    worthwhile,
)
from admm_lip.solvers.native.large.conjugate_gradients import solve_completed
from admm_lip.solvers.native.large.markov import markov
from admm_lip.solvers.native.lmi.block_cholesky import (
    Band,
    Factor,
    completion,
    factorize,
    factorize_cliques,
    inverse,
    inverse_band,
)
from admm_lip.solvers.native.lmi.closed_forms import theta_start
from admm_lip.solvers.native.lmi.lmi_operator import LmiOperator, schur_complement
from admm_lip.solvers.native.lmi.progress import Progress
from admm_lip.solvers.problem import CertifyProblem, Slopes

WIDTHS = (4, 6, 3, 7, 5, 2)
DEEP = (40,) * 9


def started(widths: tuple[int, ...], low: float) -> tuple[LmiOperator, Tensor]:
    """A random chain with slopes in [low, 1] and a strictly feasible point."""
    generator = torch.Generator().manual_seed(3)
    weights = tuple(
        torch.randn(m, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
        for n, m in pairwise(widths)
    )
    ones = [torch.ones(n, dtype=torch.float64) for n in widths[1:-1]]
    problem = CertifyProblem(weights, tuple(Slopes(low * e, e) for e in ones))
    start = theta_start(problem, 1.0)
    assert start is not None
    y = torch.cat([torch.tensor([start.lip_sq]).double(), *start.multiplier])
    return LmiOperator(problem, torch.zeros(sum(widths[1:-1])).double()), 2.0 * y


def factored(op: LmiOperator, y: Tensor) -> tuple[Factor, Tensor]:
    """The factor of S and the dense H, rho left out."""
    factor = factorize(op.slack(y))
    assert factor is not None
    forms = op.forms(inverse(factor))
    return factor, schur_complement(forms, forms)[1:, 1:]


def near_band(dense: Tensor, sizes: list[int]) -> Band:
    """Blocks on and below the diagonal."""
    rows = [list(r.split(sizes, dim=1)) for r in dense.split(sizes)]
    count = range(len(sizes))
    return Band([rows[k][k] for k in count], [rows[k + 1][k] for k in count[:-1]])


@pytest.mark.parametrize("low", [0.0, -0.2, 0.1])
def test_product_and_band_are_those_of_the_dense_matrix(low: float) -> None:
    op, y = started(WIDTHS, low)
    factor, dense = factored(op, y)
    band = inverse_band(factor)
    dt = torch.linspace(-1.0, 2.0, dense.shape[0], dtype=torch.float64)
    torch.testing.assert_close(
        hessian_product(op, factor, band)(dt), dense @ dt, rtol=1e-10, atol=1e-12
    )
    chain = markov(band)
    assert chain is not None
    found, expected = hessian_band(op, chain, chain), near_band(dense, op.sizes[1:])
    torch.testing.assert_close(found.diagonal, expected.diagonal, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.lower, expected.lower, rtol=1e-10, atol=1e-14)


def test_preconditioner_inverts_the_completion() -> None:
    op, y = started(WIDTHS, 0.0)
    band = near_band(factored(op, y)[1], op.sizes[1:])
    cliques = factorize_cliques(band)
    assert cliques is not None
    dense = completion(band, cliques)
    x = torch.linspace(-1.0, 2.0, dense.shape[0], dtype=torch.float64)
    torch.testing.assert_close(solve_completed(band, cliques, dense @ x), x)


def test_direction_nearly_solves_the_newton_equations() -> None:
    op, y = started(DEEP, 0.0)
    factor, dense = factored(op, y)
    found = newton_direction(op, factor)
    assert found is not None
    g = op.adjoint(inverse_band(factor))[1:]
    exact = torch.linalg.solve(dense, g)
    error = found[0] - exact
    squared = float(torch.dot(error, dense @ error))
    assert squared <= 0.2**2 * float(torch.dot(g, exact))
    assert 0.9 * float(torch.dot(g, exact)) <= found[1] ** 2 <= float(torch.dot(g, exact)) + 1e-9


def test_approach_ends_where_one_dense_step_finishes() -> None:
    op, y = started(DEEP, 0.0)
    assert worthwhile(op)
    run = Progress(SolverConfig())
    reached = approach(op, y, run)
    assert float(reached[0]) == float(y[0])
    factor = factorize(op.slack(reached))
    assert factor is not None
    step = newton_step(op, factor)
    assert step is not None and step.decrement < 0.7
    before = run.iterations
    assert centre(op, reached, run) is not None
    assert run.iterations <= before + 1


def test_limits_stop_the_approach() -> None:
    op, y = started(DEEP, 0.0)
    run = Progress(SolverConfig(max_iterations=2))
    reached = approach(op, y, run)
    assert run.limited and run.iterations == 2
    assert factorize(op.slack(reached)) is not None


def test_shallow_or_narrow_networks_keep_the_dense_steps() -> None:
    assert not worthwhile(started(WIDTHS, 0.0)[0])
    assert not worthwhile(started((40, 40, 40, 40), 0.0)[0])
