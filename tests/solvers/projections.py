"""Random projection problems for the tests of the native projection, and their measures."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from admm_lip.solvers.config import SolverConfig
from admm_lip.solvers.lmi import ball_tiles, implied_bound
from admm_lip.solvers.native.ball.spectral_ball import project
from admm_lip.solvers.problem import ProjectProblem, Slopes
from admm_lip.solvers.solution import ProjectClaim, Status

TIGHT = SolverConfig(tol=1e-9)
UNIT, GELU, SYMMETRIC = (0.0, 1.0), (-0.13, 1.13), (-1.0, 1.0)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def network(
    widths: tuple[int, ...], seed: int = 0, slope: tuple[float, float] = UNIT
) -> tuple[tuple[Tensor, ...], tuple[Slopes, ...], tuple[Tensor, ...]]:
    """Random weights, one slope range for all neurons, and a multiplier that proves some bound."""
    g = torch.Generator().manual_seed(seed)
    weights = tuple(normal(g, b, a) / a**0.5 for a, b in itertools.pairwise(widths))
    slopes = tuple(
        Slopes(*(torch.full((w.shape[0],), end, dtype=torch.float64) for end in slope))
        for w in weights[:-1]
    )
    norm_sq, multiplier = 1.0, []
    for w in reversed(weights[1:]):
        norm_sq *= float(torch.linalg.matrix_norm(w, 2)) ** 2 * 1.5
        multiplier.insert(0, norm_sq * torch.exp(0.3 * normal(g, w.shape[1]).abs()))
    return weights, slopes, tuple(multiplier)


def random_problem(
    widths: tuple[int, ...], seed: int = 0, slope: tuple[float, float] = UNIT, tight: float = 0.5
) -> ProjectProblem:
    """A hard problem whose bound is ``tight`` times what the anchor needs."""
    weights, slopes, multiplier = network(widths, seed, slope)
    lip = implied_bound(weights, slopes, multiplier)
    lip = lip if lip < float("inf") else 1.0
    return ProjectProblem(weights, slopes, multiplier, bound=tight * lip)


def penalised(problem: ProjectProblem, mu: float, rho: float = 1.0) -> ProjectProblem:
    return replace(problem, bound=None, mu=mu, rho=rho)


def metric_of(problem: ProjectProblem, layer: int) -> Tensor:
    own = problem.structure[layer].metric if problem.structure else None
    return torch.ones_like(problem.anchor[layer]) if own is None else own


def objective(problem: ProjectProblem, claim: ProjectClaim) -> float:
    assert claim.weights is not None
    total = (problem.mu or 0.0) * claim.lip_sq
    for k, (w, v) in enumerate(zip(claim.weights, problem.anchor, strict=True)):
        total += 0.5 * problem.rho * float((metric_of(problem, k) * (w - v).square()).sum())
    return total


def ball_norm(problem: ProjectProblem, claim: ProjectClaim) -> float:
    assert claim.weights is not None
    if not problem.multiplier:
        return float(torch.linalg.matrix_norm(claim.weights[0], 2)) / claim.lip_sq**0.5
    n_in, n_out = problem.widths[0], problem.widths[-1]
    ball = ball_tiles(problem.slopes, problem.multiplier, claim.lip_sq, n_in, n_out)
    return ball.norm(claim.weights)


def solved(
    problem: ProjectProblem, config: SolverConfig = TIGHT, warm: object = None
) -> ProjectClaim:
    """The claim, checked to be optimal by its own word and feasible by measurement."""
    claim = project(problem, config, warm)
    assert claim.status is Status.OPTIMAL, claim.message
    assert ball_norm(problem, claim) <= 1.0 + 1e-12
    return claim


def farthest(a: ProjectClaim, weights: tuple[Tensor, ...]) -> float:
    assert a.weights is not None
    return max(float((x - y).abs().max()) for x, y in zip(a.weights, weights, strict=True))
