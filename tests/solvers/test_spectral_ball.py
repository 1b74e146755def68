"""The native projection against planted optima, an interior-point solver, and its invariants."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from projections import (
    GELU,
    SYMMETRIC,
    TIGHT,
    UNIT,
    ball_norm,
    farthest,
    network,
    normal,
    objective,
    penalised,
    random_problem,
    solved,
)
from torch import Tensor

from admm_lip.solvers.config import SolverConfig
from admm_lip.solvers.cvxpy_ import CvxpyBackend
from admm_lip.solvers.lmi import assemble, implied_bound, lmi_blocks
from admm_lip.solvers.native.ball.spectral_ball import project
from admm_lip.solvers.problem import ProjectProblem, Slopes, Structure
from admm_lip.solvers.solution import Status

WIDTHS = [(2, 5, 2), (3, 10, 10, 3), (8, 6, 7, 6, 2)]


def doubled(weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Two copies side by side: every singular value of B twice."""
    return tuple(torch.block_diag(w, w) for w in weights)


def planted(
    weights: tuple[Tensor, ...],
    slopes: tuple[Slopes, ...],
    multiplier: tuple[Tensor, ...],
    metric: tuple[Tensor, ...],
    strength: float,
) -> tuple[ProjectProblem, float]:
    """A problem whose solution is ``weights``, and the mu for which s is ``bound^2`` as well.

    At the implied bound the LMI is singular.  With X >= 0 on its null space (complementary
    slackness) the anchor ``V = W - grad_W <M(W), X> / metric`` has W as its projection, and the
    multiplier of s is tr(X_00).
    """
    lip = implied_bound(weights, slopes, multiplier)
    free = [w.clone().requires_grad_(True) for w in weights]
    m = assemble(*lmi_blocks(free, slopes, multiplier, lip**2))
    values, vectors = torch.linalg.eigh(m.detach())
    null = vectors[:, values < 1e-9 * values[-1]]
    assert null.shape[1] >= 1
    mix = normal(torch.Generator().manual_seed(1), null.shape[1], null.shape[1])
    x = strength * null @ mix @ mix.T @ null.T
    (m * x).sum().backward()
    anchor = tuple(
        (w.detach() - w.grad / h) for w, h in zip(free, metric, strict=True) if w.grad is not None
    )
    structure = tuple(Structure(metric=h) for h in metric)
    problem = ProjectProblem(anchor, slopes, multiplier, bound=lip, structure=structure)
    n_in = weights[0].shape[1]
    return problem, float(x[:n_in, :n_in].trace())


@pytest.mark.parametrize("slope", [UNIT, GELU])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_planted_optimum_is_recovered(
    slope: tuple[float, float], twice: bool, weighted: bool
) -> None:
    weights, slopes, multiplier = network((4, 6, 5, 3), seed=3, slope=slope)
    if twice:
        weights = doubled(weights)
        slopes = tuple(Slopes(s.alpha.repeat(2), s.beta.repeat(2)) for s in slopes)
        multiplier = tuple(t.repeat(2) for t in multiplier)
    g = torch.Generator().manual_seed(5)
    metric = tuple(
        torch.exp(0.5 * normal(g, *w.shape)) if weighted else torch.ones_like(w) for w in weights
    )
    problem, mu = planted(weights, slopes, multiplier, metric, strength=0.3)
    assert problem.bound is not None
    assert farthest(solved(problem), weights) < 1e-4
    assert farthest(solved(problem, SolverConfig(tol=1e-12)), weights) < 3e-6
    soft = solved(penalised(problem, 2.0 * mu, rho=2.0), SolverConfig(tol=1e-12))
    assert soft.lip_sq == pytest.approx(problem.bound**2, rel=1e-4)
    assert farthest(soft, weights) < 1e-4


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("slope", [UNIT, GELU, SYMMETRIC])
@pytest.mark.parametrize("mu", [None, 1e-3, 0.3])
def test_the_objective_agrees_with_an_interior_point_solver(
    widths: tuple[int, ...], slope: tuple[float, float], mu: float | None
) -> None:
    problem = random_problem(widths, 1, slope)
    problem = problem if mu is None else penalised(problem, mu, rho=0.7)
    ours = solved(problem, SolverConfig(tol=1e-7))
    theirs = CvxpyBackend("clarabel").project(problem, SolverConfig(tol=1e-9))
    assert objective(problem, ours) == pytest.approx(objective(problem, theirs), rel=2e-6)


def test_a_single_affine_map_is_a_singular_value_clip() -> None:
    (matrix,), _, _ = network((7, 4))
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    claim = solved(ProjectProblem((matrix,), (), (), bound=0.6))
    assert farthest(claim, ((u * s.clamp(max=0.6)) @ vt,)) < 1e-12
    assert claim.iterations == 1
    soft = penalised(ProjectProblem((matrix,), (), (), bound=0.6), mu=0.4, rho=2.0)
    # mu = d/ds of rho/2 sum (sigma - sqrt(s))_+^2: bisection on sqrt(s).
    low, high = 0.0, float(s[0])
    for _ in range(100):
        lip = 0.5 * (low + high)
        push = soft.rho * float((s - lip).clamp(min=0.0).sum()) / (2.0 * lip)
        low, high = (lip, high) if push > 0.4 else (low, lip)
    claim = solved(soft, SolverConfig(tol=1e-12))
    assert claim.lip_sq == pytest.approx(lip**2, rel=1e-5)
    assert farthest(claim, ((u * s.clamp(max=lip)) @ vt,)) < 1e-5


def test_one_hidden_layer_in_a_uniform_metric_takes_one_clip() -> None:
    # With t = L both layers carry the same scale, and B has no zero tile.
    weights, slopes, _ = network((5, 6, 3))
    multiplier = (torch.full((6,), 0.8, dtype=torch.float64),)
    problem = ProjectProblem(weights, slopes, multiplier, bound=0.8)
    claim = solved(problem)
    assert claim.iterations == 1
    theirs = CvxpyBackend("clarabel").project(problem, SolverConfig(tol=1e-9))
    assert objective(problem, claim) == pytest.approx(objective(problem, theirs), rel=2e-6)


@pytest.mark.parametrize("mu", [1e-4, 1e-2, 1.0])
def test_penalised_optimality_links_the_bound_to_the_input_layer(mu: float) -> None:
    problem = penalised(random_problem((6, 8, 8, 3), 4), mu, rho=0.5)
    claim = solved(problem, SolverConfig(tol=1e-11))
    assert claim.weights is not None
    first, anchor = claim.weights[0], problem.anchor[0]
    pull = 0.5 * problem.rho * float(((anchor - first) * first).sum())
    assert mu * claim.lip_sq == pytest.approx(pull, rel=1e-3)
    hard = solved(replace(problem, mu=None, bound=claim.lip_sq**0.5), SolverConfig(tol=1e-11))
    assert farthest(hard, claim.weights) < 1e-4


def test_a_penalty_on_a_network_without_input_weights_drives_the_bound_to_zero() -> None:
    problem = random_problem((3, 4, 2))
    anchor = (torch.zeros_like(problem.anchor[0]), problem.anchor[1])
    problem = penalised(replace(problem, anchor=anchor), 1.0)
    claim = project(problem, SolverConfig(tol=1e-6))
    assert claim.status is Status.OPTIMAL
    assert 0.0 < claim.lip_sq < 1e-6
    assert objective(problem, claim) < 1e-6


@pytest.mark.parametrize("slope", [UNIT, GELU])
def test_a_feasible_anchor_comes_back_unchanged(slope: tuple[float, float]) -> None:
    problem = random_problem((4, 6, 6, 2), slope=slope, tight=1.001)
    claim = solved(problem)
    assert claim.weights is not None
    assert all(torch.equal(w, v) for w, v in zip(claim.weights, problem.anchor, strict=True))
    assert claim.iterations == 0


def test_the_projection_does_not_expand_distances() -> None:
    for seed in range(5):
        one = random_problem((5, 8, 7, 3), seed, tight=0.3)
        g = torch.Generator().manual_seed(seed)
        other = replace(one, anchor=tuple(v + 0.3 * normal(g, *v.shape) for v in one.anchor))
        a, b = solved(one), solved(other)
        assert a.weights is not None and b.weights is not None
        before = sum(
            float((x - y).square().sum()) for x, y in zip(one.anchor, other.anchor, strict=True)
        )
        after = sum(
            float((x - y).square().sum()) for x, y in zip(a.weights, b.weights, strict=True)
        )
        assert after <= before * (1.0 + 1e-4)


def test_permuted_neurons_and_rotated_inputs_give_the_same_answer() -> None:
    problem = random_problem((5, 7, 6, 3), 8)
    claim = solved(problem)
    g = torch.Generator().manual_seed(2)
    order = torch.randperm(7, generator=g)
    turn, _ = torch.linalg.qr(normal(g, 5, 5))
    v, w = problem.anchor, claim.weights
    assert w is not None
    moved = replace(
        problem,
        anchor=((v[0] @ turn)[order], v[1][:, order], v[2]),
        multiplier=(problem.multiplier[0][order], problem.multiplier[1]),
    )
    assert farthest(solved(moved), ((w[0] @ turn)[order], w[1][:, order], w[2])) < 1e-4


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_scaling_the_output_scales_the_answer(factor: float) -> None:
    # W_l -> c W_l, T -> c^2 T, L -> c L, with the last layer's distance weighted by 1 / c^2.
    problem = random_problem((4, 6, 5, 3), 9)
    claim = solved(problem)
    weighted = Structure(metric=torch.full_like(problem.anchor[-1], factor**-2))
    moved = ProjectProblem(
        (*problem.anchor[:-1], factor * problem.anchor[-1]),
        problem.slopes,
        tuple(factor**2 * t for t in problem.multiplier),
        bound=factor * (problem.bound or 0.0),
        structure=(Structure(), Structure(), weighted),
    )
    other = solved(moved)
    assert claim.weights is not None and other.weights is not None
    unscaled = replace(other, weights=(*other.weights[:-1], other.weights[-1] / factor))
    assert farthest(unscaled, claim.weights) < 1e-4


@given(
    widths=st.lists(st.integers(1, 8), min_size=2, max_size=6),
    scale=st.floats(-4.0, 4.0),
    spread=st.floats(0.0, 1.5),
    tight=st.floats(0.05, 1.2),
    seed=st.integers(0, 10_000),
    soft=st.booleans(),
)
def test_any_shape_and_scale_comes_back_feasible_and_no_worse_than_shrinking(
    widths: list[int], scale: float, spread: float, tight: float, seed: int, soft: bool
) -> None:
    weights, slopes, multiplier = network(tuple(widths), seed)
    factor = 10.0**scale
    g = torch.Generator().manual_seed(seed)
    # The gauge of the multiplier follows the weights, off by exp(spread * normal).
    powers = [factor ** (2 * (len(multiplier) - k)) for k in range(len(multiplier))]
    multiplier = tuple(
        p * t * torch.exp(spread * normal(g, len(t)))
        for p, t in zip(powers, multiplier, strict=True)
    )
    anchor = tuple(factor * w for w in weights)
    lip = implied_bound(anchor, slopes, multiplier)
    lip = lip if 0.0 < lip < float("inf") else factor ** len(weights)
    problem = ProjectProblem(anchor, slopes, multiplier, bound=tight * lip)
    size = 0.5 * sum(float(v.square().sum()) for v in anchor)
    if soft:
        problem = penalised(problem, size / lip**2)
    claim = project(problem, SolverConfig(tol=1e-3, max_iterations=3000))
    assert claim.status in (Status.OPTIMAL, Status.LIMIT)
    assert claim.weights is not None
    assert all(bool(torch.isfinite(w).all()) for w in claim.weights)
    assert ball_norm(problem, claim) <= 1.0 + 1e-12
    if claim.status is Status.OPTIMAL and not soft:
        start = replace(claim, weights=anchor)
        shrunk = tuple(v / max(1.0, ball_norm(problem, start)) for v in anchor)
        shrinking = objective(problem, replace(claim, weights=shrunk))
        assert objective(problem, claim) <= shrinking + 1e-3 * max(shrinking, 1e-3 * size)


@pytest.mark.parametrize("mu", [None, 0.01])
def test_a_warm_start_gives_the_same_answer_sooner(mu: float | None) -> None:
    problem = random_problem((6, 12, 12, 4), 5)
    problem = problem if mu is None else penalised(problem, mu)
    config = SolverConfig(tol=1e-8)
    cold = solved(problem, config)
    again = solved(problem, config, cold.warm)
    assert again.iterations <= max(3, cold.iterations // 4)
    assert objective(problem, again) == pytest.approx(objective(problem, cold), rel=1e-7)
    g = torch.Generator().manual_seed(0)
    near = replace(problem, anchor=tuple(v + 1e-3 * normal(g, *v.shape) for v in problem.anchor))
    near = near if near.bound is None else replace(near, bound=1.01 * near.bound)
    near = replace(near, multiplier=tuple(1.01 * t for t in near.multiplier))
    from_warm, from_cold = solved(near, config, cold.warm), solved(near, config)
    assert objective(near, from_warm) == pytest.approx(objective(near, from_cold), rel=1e-7)


def test_restart_data_of_another_shape_or_kind_are_ignored() -> None:
    problem = random_problem((3, 5, 2))
    other = solved(random_problem((4, 6, 2)))
    plain = solved(problem)
    for warm in (other.warm, "nonsense", None):
        assert farthest(solved(problem, TIGHT, warm), plain.weights or ()) == 0.0


@pytest.mark.parametrize("mu", [None, 0.01])
@pytest.mark.parametrize("slope", [UNIT, GELU])
@pytest.mark.parametrize("limits", [{"max_iterations": 2}, {"time_limit": 1e-9}])
def test_a_limit_still_gives_feasible_weights(
    mu: float | None, slope: tuple[float, float], limits: dict[str, float]
) -> None:
    problem = random_problem((5, 9, 9, 3), 6, slope)
    problem = problem if mu is None else penalised(problem, mu)
    claim = project(problem, SolverConfig(tol=1e-10, **limits))  # type: ignore[arg-type]
    assert claim.status is Status.LIMIT
    assert claim.iterations <= 2
    assert ball_norm(problem, claim) <= 1.0 + 1e-12
    assert claim.warm is not None


def test_an_impossible_accuracy_is_reported_as_inaccurate() -> None:
    claim = project(random_problem((3, 6, 6, 2)), SolverConfig(tol=1e-300))
    assert claim.status in (Status.INACCURATE, Status.OPTIMAL)
    assert claim.iterations < 2000
