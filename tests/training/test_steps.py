"""The start, the Lipschitz step and the multiplier steps on small networks."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch

from admm_lip.lipschitz import Lipschitz
from admm_lip.solvers import ProjectProblem, SolverConfig, solve_project, unit_slopes
from admm_lip.solvers.lmi import ball_tiles, implied_bound
from admm_lip.training.admm_state import AdmmState
from admm_lip.training.config import AdmmConfig, TrainConfig
from admm_lip.training.continued import asked_again
from admm_lip.training.lipschitz_step import lipschitz_step, next_lip_sq
from admm_lip.training.multiplier_step import (
    SMALLEST_SHARE,
    RoundView,
    by_lipsdp,
    by_sensitivity,
    fixed,
    resolve_multiplier_step,
    sensitivity,
)
from admm_lip.training.start import (
    CROSS_ENTROPY_SCALE,
    MULTIPLIER_SPREAD,
    default_rho,
    feasible,
    loss_scale,
    scale_of_steps,
    spread_limited,
    start,
)
from admm_lip.training.terms import Terms

TIGHT = SolverConfig("native", tol=1e-9, fallback=())


def weights(sizes: tuple[int, ...] = (3, 5, 4, 2), seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(m, n, generator=generator, dtype=torch.float64) for n, m in pairwise(sizes)
    )


def terms_of(asked: Lipschitz, **settings) -> Terms:
    config = AdmmConfig(solver=TIGHT, projection_tol=1e-9, **settings)
    return Terms(asked, unit_slopes(weights()), config)


def first_state(bound: float = 1.0, **settings) -> tuple[AdmmState, Terms]:
    terms = terms_of(Lipschitz(bound), **settings)
    return start(weights(), terms, torch.float64, CROSS_ENTROPY_SCALE).state, terms


def test_the_start_is_feasible_and_certified_at_the_bound() -> None:
    state, _ = first_state(bound=2.0)
    slopes = unit_slopes(state.consensus)
    ball = ball_tiles(slopes, state.multiplier, state.lip_sq, 3, 2)
    assert ball.norm(state.consensus) <= 1 + 1e-12
    assert implied_bound(state.consensus, slopes, state.multiplier) == pytest.approx(2.0, rel=1e-3)


def test_the_start_scales_every_layer_by_the_same_factor_and_biases_along() -> None:
    w = weights()
    begun = start(w, terms_of(Lipschitz(1.0)), torch.float64, CROSS_ENTROPY_SCALE)
    factors = [float((c / v).mean()) for c, v in zip(begun.state.consensus, w, strict=True)]
    assert factors == pytest.approx([factors[0]] * 3)
    assert begun.bias_factors == pytest.approx([factors[0] ** k for k in (1, 2, 3)], rel=1e-3)


def test_a_spread_multiplier_is_brought_in() -> None:
    t = torch.tensor([1e-12, 1.0, 2.0, 1e12], dtype=torch.float64)
    limited = spread_limited(t)
    assert float(limited.max() / limited.min()) <= MULTIPLIER_SPREAD**2
    assert torch.equal(limited[1:3], t[1:3])


def test_feasible_weights_are_left_alone_and_others_scaled_onto_the_ball() -> None:
    state, _ = first_state()
    slopes = unit_slopes(state.consensus)
    inside = feasible(state.consensus, slopes, state.multiplier, state.lip)
    assert all(map(torch.allclose, inside, state.consensus))
    outside = tuple(3.0 * w for w in state.consensus)
    ball = ball_tiles(slopes, state.multiplier, state.lip_sq, 3, 2)
    brought = feasible(outside, slopes, state.multiplier, state.lip)
    assert ball.norm(brought) == pytest.approx(1.0)


def test_the_lipschitz_step_returns_the_nearest_feasible_weights() -> None:
    state, terms = first_state()
    point = tuple(1.5 * w for w in state.consensus)
    solution = lipschitz_step(point, state, terms)
    assert solution.ball_norm <= 1 + 1e-9
    # Any other feasible point, here those on the segment to the consensus, is no nearer.
    for share in (0.1, 0.5, 1.0):
        other = [
            (1 - share) * a + share * b
            for a, b in zip(solution.weights, state.consensus, strict=True)
        ]
        far = sum(float((a - b).square().sum()) for a, b in zip(other, point, strict=True)) ** 0.5
        assert far >= solution.distance * (1 - 1e-6)


def test_newton_steps_on_the_bound_end_at_the_exact_penalised_projection() -> None:
    state, _ = first_state()
    terms = terms_of(Lipschitz(mu=0.3))
    point = tuple(2.0 * w for w in state.consensus)
    moving = state
    for _ in range(60):
        solution = lipschitz_step(point, moving, terms)
        moving = dataclasses.replace(moving, target_sq=next_lip_sq(point, solution, moving, terms))
    exact = solve_project(
        ProjectProblem(point, terms.slopes, state.multiplier, mu=0.3, rho=state.rho), TIGHT
    )
    assert moving.target_sq == pytest.approx(exact.lip_sq, rel=1e-4)


def distance_sq(state: AdmmState, point, log_change) -> float:
    """Half the squared projection distance when T is multiplied by ``exp(log_change)``."""
    moved = tuple(t * torch.exp(c) for t, c in zip(state.multiplier, log_change, strict=True))
    problem = ProjectProblem(point, unit_slopes(point), moved, bound=state.lip)
    return 0.5 * solve_project(problem, TIGHT).distance ** 2


def test_the_sensitivity_is_the_derivative_of_the_projection_distance() -> None:
    state, terms = first_state()
    point = tuple(1.5 * w for w in weights(seed=3))
    solution = lipschitz_step(point, state, terms)
    gradient = sensitivity(point, solution.weights)
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(g.shape, generator=generator, dtype=torch.float64) for g in gradient]
    h = 1e-4
    plus = distance_sq(state, point, [h * d for d in direction])
    minus = distance_sq(state, point, [-h * d for d in direction])
    expected = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    assert (plus - minus) / (2 * h) == pytest.approx(expected, rel=1e-3)


def view(terms: Terms, seed: int = 3) -> RoundView:
    return RoundView(tuple(1.5 * w for w in weights(seed=seed)), 1.0, terms)


def test_the_fixed_rule_keeps_the_multiplier() -> None:
    state, terms = first_state()
    assert fixed(state, view(terms)) is state


def test_the_sensitivity_rule_shortens_the_distance() -> None:
    state, terms = first_state(multiplier_rate=0.05)
    seen = view(terms)
    solution = lipschitz_step(seen.anchor, state, terms)
    state = dataclasses.replace(state, consensus=solution.weights)
    moved = by_sensitivity(state, seen)
    after = lipschitz_step(seen.anchor, moved, terms)
    assert after.distance < solution.distance


def test_the_lipsdp_rule_certifies_the_consensus_at_the_bound_and_runs_when_due() -> None:
    state, terms = first_state(multiplier_every=2)
    assert by_lipsdp(state, view(terms)) is state  # round 1 of 2
    smaller = tuple(0.9 * w for w in state.consensus)
    due = dataclasses.replace(state, iteration=1, consensus=smaller)
    moved = by_lipsdp(due, view(terms))
    slopes = unit_slopes(smaller)
    assert implied_bound(smaller, slopes, moved.multiplier) <= state.lip * (1 + 1e-6)
    ball = ball_tiles(slopes, moved.multiplier, state.lip_sq, 3, 2)
    assert ball.norm(smaller) <= 1 + 1e-6


def test_a_dying_neuron_keeps_a_multiplier_that_it_can_recover_from() -> None:
    """Its outgoing weights vanish: the optimal T goes to zero with them, ours does not."""
    state, terms = first_state(multiplier_every=1)
    dying = [w.clone() for w in state.consensus]
    dying[1][:, 0] = 1e-9
    due = dataclasses.replace(state, consensus=tuple(dying))
    moved = by_lipsdp(due, view(terms))
    others = moved.multiplier[0][1:]
    least, middle = float(moved.multiplier[0][0]), float(others.log().mean().exp())
    assert SMALLEST_SHARE / 10 <= least / middle <= 10 * SMALLEST_SHARE
    anchor = tuple(0.9 * w for w in state.consensus)
    next_one = lipschitz_step(anchor, moved, terms)
    assert next_one.iterations < 500
    assert float(next_one.weights[1][:, 0].norm()) > 1e-3


def test_auto_looks_at_the_activations_and_the_task() -> None:
    assert resolve_multiplier_step("auto", ("relu", "leaky_relu")) is fixed
    assert resolve_multiplier_step("auto", ("relu",), regression=True) is by_lipsdp
    assert resolve_multiplier_step("auto", ("tanh",), regression=True) is by_sensitivity
    assert resolve_multiplier_step("auto", ("relu", "tanh")) is by_sensitivity


def test_rho_of_a_regression_follows_the_scale_of_its_targets_and_of_the_bound() -> None:
    config, asked = TrainConfig(bound=1.0, loss="squared_error"), Lipschitz(1.0)
    plain, larger = (loss_scale(config, 1.0, variance) for variance in (1.0, 9.0))
    assert larger == pytest.approx(9.0 * plain)
    # Targets c y under bound c L: weights grow by c^(1/2) each, the loss by c^2.
    rho = default_rho(asked, 1.0, 2, plain)
    assert default_rho(asked, 3.0, 2, larger) == pytest.approx(3.0 * rho)
    assert loss_scale(config, 1.0, variance=0.0) > 0.0


def test_what_the_steps_of_a_round_pull_together_stays_for_classes() -> None:
    assert 16 * scale_of_steps(0.1, 16, False) == pytest.approx(4 * scale_of_steps(0.1, 4, False))
    assert scale_of_steps(0.1, 4, False) == scale_of_steps(0.1, 16, True) == 0.1


@pytest.mark.parametrize("bound", [0.3, 5.0])
def test_under_another_bound_the_state_is_certified_there(bound: float) -> None:
    state, terms = first_state()
    asked = dataclasses.replace(terms, asked=Lipschitz(bound))
    again = asked_again(state, asked, torch.float64, CROSS_ENTROPY_SCALE)
    moved, slopes = again.state, terms.slopes
    assert moved.lip == pytest.approx(bound)
    ball = ball_tiles(slopes, moved.multiplier, moved.lip_sq, 3, 2)
    assert ball.norm(moved.consensus) <= 1 + 1e-12
    proven = implied_bound(moved.consensus, slopes, moved.multiplier)
    assert proven <= bound * (1 + 1e-9)
    if bound > 1.0:
        assert moved.consensus is not state.consensus
        assert all(map(torch.equal, moved.consensus, state.consensus))
    else:  # scaled evenly, so that the bound is used up
        assert proven == pytest.approx(bound, rel=1e-3)
        share = bound / state.lip
        assert again.bias_factors == pytest.approx([share ** (k / 3) for k in (1, 2, 3)])
