"""The LMI with its linear neurons substituted: a graph's inequality, against dense statements."""

from __future__ import annotations

from itertools import pairwise

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from admm_lip.solvers.config import SolverConfig
from admm_lip.solvers.lmi import implied_bound
from admm_lip.solvers.native.interior.interior_point import certify
from admm_lip.solvers.native.lmi.block_cholesky import Band, band_of
from admm_lip.solvers.native.lmi.closed_forms import theta_start
from admm_lip.solvers.native.lmi.eliminated_operator import (
    EliminatedOperator,
    eliminate,
    operator_of,
)
from admm_lip.solvers.native.lmi.lmi_operator import LmiOperator, schur_complement
from admm_lip.solvers.problem import CertifyProblem, Slopes


def residual(rng: np.random.Generator, widths: tuple[int, int, int, int]) -> CertifyProblem:
    """``f = C (s + G relu(H s))``, ``s = relu(V x)``, with s carried by neurons of slope 1."""
    inputs, stream, inner, outputs = widths

    def draw(rows: int, columns: int) -> np.ndarray:
        return rng.standard_normal((rows, columns)) / np.sqrt(columns)

    v, h, g, c = (
        draw(stream, inputs),
        draw(inner, stream),
        draw(stream, inner),
        draw(outputs, stream),
    )
    weights = [v, np.vstack([h, np.eye(stream)]), np.hstack([c @ g, c])]
    low = torch.cat([torch.zeros(inner), torch.ones(stream)]).double()
    slopes = (
        Slopes(torch.zeros(stream).double(), torch.ones(stream).double()),
        Slopes(low, torch.ones(inner + stream).double()),
    )
    return CertifyProblem(tuple(torch.from_numpy(w) for w in weights), slopes)


def mixed(seed: int) -> CertifyProblem:
    """Three hidden layers with linear neurons of several slopes among others of several ranges."""
    rng = np.random.default_rng(seed)
    widths = [int(n) for n in rng.integers(2, 6, size=5)]
    weights = tuple(
        torch.from_numpy(rng.standard_normal((b, a)) / np.sqrt(a)) for a, b in pairwise(widths)
    )
    slopes = []
    for n in widths[1:-1]:
        low = torch.from_numpy(rng.choice([-1.0, 0.0, 0.1], size=n))
        high = torch.ones(n).double()
        known = torch.from_numpy(rng.random(n) < 0.5)
        value = torch.from_numpy(rng.choice([1.0, -0.5, 0.0], size=n))
        slopes.append(Slopes(torch.where(known, value, low), torch.where(known, value, high)))
    slopes[0] = Slopes(slopes[0].alpha.clone(), slopes[0].beta.clone())
    slopes[0].alpha[0], slopes[0].beta[0] = 0.0, 1.0
    return CertifyProblem(weights, tuple(slopes))


def operator(problem: CertifyProblem) -> EliminatedOperator:
    found = operator_of(problem, torch.zeros(sum(problem.widths[1:-1])).double())
    assert isinstance(found, EliminatedOperator)
    return found


def dense(band: Band) -> Tensor:
    return torch.cat(
        [
            torch.cat([band.diagonal[0], band.lower[0].T], 1),
            torch.cat([band.lower[0], band.diagonal[1]], 1),
        ]
    )


def parts(op: EliminatedOperator) -> list[Tensor]:
    """``A_1 .. A_N`` as dense matrices, by their definition."""
    reduced = eliminate(op.problem)
    mask = torch.cat(reduced.free)
    alpha = torch.cat([s.alpha for s in op.problem.slopes])[mask]
    beta = torch.cat([s.beta for s in op.problem.slopes])[mask]
    found = []
    for i, heard in enumerate(reduced.heard):
        unit = torch.zeros_like(heard)
        unit[op.sizes[0] + i] = 1.0
        u, v = unit - alpha[i] * heard, unit - beta[i] * heard
        found.append(torch.outer(u, v) + torch.outer(v, u))
    return found


def positive(order: int, seed: int) -> Tensor:
    root = torch.randn(order, order, generator=torch.Generator().manual_seed(seed)).double()
    return root @ root.T + torch.eye(order)


@pytest.mark.parametrize("seed", range(8))
def test_slack_adjoint_and_schur_complement_are_those_of_the_definition(seed: int) -> None:
    op = operator(mixed(seed))
    a, order = parts(op), op.order
    y = torch.rand(1 + len(a), generator=torch.Generator().manual_seed(seed)).double()
    z, p = positive(order, seed), positive(order, seed + 100)
    unit = torch.zeros(order, order).double()
    unit[: op.sizes[0], : op.sizes[0]].fill_diagonal_(1.0)
    output = op.reduced.output
    moved = y[0] * unit + sum(t * m for t, m in zip(y[1:], a, strict=True))
    assert torch.allclose(dense(op.slack(y)), moved - output.T @ output)
    assert torch.allclose(dense(op.direction(y)), moved)
    every = [unit, *a]
    adjoint = torch.stack([(m * z).sum() for m in every])
    assert torch.allclose(op.adjoint(band_of(z, op.sizes)), adjoint)
    h = torch.stack([torch.stack([torch.trace(i @ z @ j @ p) for j in every]) for i in every])
    assert torch.allclose(schur_complement(op.forms(z), op.forms(p)), h)
    rows = op.rows(p)
    assert torch.allclose(op.times(y, p, rows), moved @ p)
    product = p @ z
    both = torch.stack([(m * (product + product.T) / 2.0).sum() for m in every])
    assert torch.allclose(op.adjoint_of_product(p, rows, z), both)


@pytest.mark.parametrize("seed", range(8))
def test_substitution_computes_the_same_network(seed: int) -> None:
    problem = mixed(seed)
    reduced = eliminate(problem)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(problem.widths[0], generator=generator).double()
    value, free, heard = x, [x], []
    for w, s, mask in zip(problem.weights, problem.slopes, reduced.free, strict=False):
        into = w @ value
        heard.append(into[mask])
        # Any function will do for the neurons that are not linear: their outputs are variables.
        value = torch.where(mask, torch.sin(3.0 * into), s.alpha * into)
        free.append(value[mask])
    z = torch.cat(free)
    assert torch.allclose(reduced.heard @ z, torch.cat(heard))
    assert torch.allclose(reduced.output @ z, problem.weights[-1] @ value)


@pytest.mark.parametrize("theta", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("seed", range(8))
def test_the_closed_form_of_a_graph_proves_the_bound_it_was_built_for(
    seed: int, theta: float
) -> None:
    for problem in (mixed(seed), residual(np.random.default_rng(seed), (4, 5, 6, 2))):
        start = theta_start(problem, theta)
        assert start is not None
        inside = tuple((1.0 + 1e-8) * t for t in start.multiplier)
        implied = implied_bound(problem.weights, problem.slopes, inside)
        assert implied**2 <= start.lip_sq * (1.0 + 1e-6)
    assert implied**2 == pytest.approx(start.lip_sq, rel=1e-6)


def graph_optimum(v: np.ndarray, h: np.ndarray, c: np.ndarray, cg: np.ndarray) -> float:
    """The inequality of a graph with slopes [0, 1], as it is written on paper."""
    n, m, inputs = len(v), len(h), v.shape[1]
    a = np.zeros((n + m, n + m))
    a[n:, :n] = h
    b = np.vstack([v, np.zeros((m, inputs))])
    out = np.hstack([c, cg])
    t, rho = cp.Variable(n + m, nonneg=True), cp.Variable()
    scale = cp.diag(t)
    corner = 2.0 * scale - scale @ a - a.T @ scale - out.T @ out
    lmi = cp.bmat([[rho * np.eye(inputs), -b.T @ scale], [-scale @ b, corner]])
    cp.Problem(cp.Minimize(rho), [lmi >> 0]).solve(solver="CLARABEL")
    return float(np.sqrt(rho.value))


def test_a_residual_block_has_the_optimum_of_its_graph() -> None:
    problem = residual(np.random.default_rng(21), (6, 8, 10, 3))
    claim = certify(problem, SolverConfig(tol=1e-8))
    v, carried, out = (w.numpy() for w in problem.weights)
    exact = graph_optimum(v, carried[:10], out[:, 10:], out[:, :10])
    assert claim.lip_sq**0.5 == pytest.approx(2.8670017, rel=1e-7)
    assert claim.lip_sq**0.5 == pytest.approx(exact, rel=1e-6)
    assert claim.lower_lip_sq <= claim.lip_sq * (1.0 + 1e-12)
    assert claim.lip_sq - claim.lower_lip_sq <= 1e-8 * claim.lip_sq


@pytest.mark.parametrize("seed", range(6))
def test_the_repaired_dual_is_never_above_the_optimum(seed: int) -> None:
    op = operator(residual(np.random.default_rng(seed), (4, 5, 6, 2)))
    claim = certify(op.problem, SolverConfig(tol=1e-7))
    for k in range(5):
        value = op.repaired(band_of(positive(op.order, k), op.sizes))
        assert 0.0 < value <= claim.lip_sq * (1.0 + 1e-9)


def test_without_linear_neurons_the_band_is_kept() -> None:
    problem = residual(np.random.default_rng(0), (3, 4, 4, 2))
    plain = CertifyProblem(
        problem.weights, tuple(Slopes(torch.zeros_like(s.alpha), s.beta) for s in problem.slopes)
    )
    assert type(operator_of(plain, torch.zeros(12).double())) is LmiOperator
