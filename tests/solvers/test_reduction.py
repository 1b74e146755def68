"""The reduction: exact in both directions, whatever the scales and the dead neurons."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import random_net
from torch import Tensor

from admm_lip.solvers.config import SolverConfig
from admm_lip.solvers.lmi import implied_bound
from admm_lip.solvers.native.interior import interior_point
from admm_lip.solvers.native.lmi.closed_forms import best_start
from admm_lip.solvers.problem import CertifyProblem, Slopes, unit_slopes
from admm_lip.solvers.proving import proving
from admm_lip.solvers.reduction import reduce_certify

SHAPES = st.lists(st.integers(1, 7), min_size=2, max_size=6)


def weights_of(widths: Sequence[int], seed: int = 0) -> list[Tensor]:
    return [torch.as_tensor(w) for w in random_net(widths, seed).weights]


def problem_of(weights: Sequence[Tensor], low: float = 0.0, high: float = 1.0) -> CertifyProblem:
    slopes = tuple(
        Slopes(torch.full_like(s.alpha, low), torch.full_like(s.beta, high))
        for s in unit_slopes(weights)
    )
    return CertifyProblem(tuple(weights), slopes)


def lifted_start(problem: CertifyProblem) -> tuple[float, float]:
    """The closed form's bound in the reduced problem, scaled up, and what the lift proves."""
    reduced = reduce_certify(problem)
    start = best_start(reduced.problem)
    assert start is not None
    inner = implied_bound(
        reduced.problem.weights, reduced.problem.slopes, doubled(start.multiplier)
    )
    lifted = reduced.lift(doubled(start.multiplier))
    assert [len(t) for t in lifted] == [w.shape[0] for w in problem.weights[:-1]]
    assert all(bool((t > 0).all()) for t in lifted)
    outer = implied_bound(problem.weights, problem.slopes, lifted)
    return math.exp(reduced.log_scale) * inner, outer


def doubled(multiplier: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Away from the boundary, where a rounding error could not be told from infeasibility."""
    return tuple(2.0 * t for t in multiplier)


@settings(max_examples=60)
@given(SHAPES, st.lists(st.integers(-8, 8), min_size=5, max_size=5), st.integers(0, 10**6))
def test_the_lift_proves_the_reduced_bound_at_any_scale(
    widths: list[int], exponents: list[int], seed: int
) -> None:
    weights = [10.0**e * w for e, w in zip(exponents, weights_of(widths, seed), strict=False)]
    reduced, proven = lifted_start(problem_of(weights))
    assert proven == pytest.approx(reduced, rel=1e-7)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 6), min_size=4, max_size=6), st.data())
def test_dropped_neurons_cost_nothing(widths: list[int], data: st.DataObject) -> None:
    weights = weights_of(widths, data.draw(st.integers(0, 10**6)))
    for k, w in enumerate(weights[:-1]):
        rows = data.draw(st.lists(st.booleans(), min_size=len(w), max_size=len(w)))
        columns = data.draw(st.lists(st.booleans(), min_size=len(w), max_size=len(w)))
        w[torch.tensor(rows)] = 0.0
        weights[k + 1][:, torch.tensor(columns)] = 0.0
    problem = problem_of(
        weights, *data.draw(st.sampled_from([(0.0, 1.0), (-0.2, 1.1), (0.3, 1.0)]))
    )
    reduced = reduce_certify(problem)
    if not reduced.problem.slopes:
        assert implied_bound(problem.weights, problem.slopes, reduced.lift(())) < 1e-30
        return
    for k, w in enumerate(reduced.problem.weights[:-1]):
        assert bool((w != 0).any(dim=1).all())
        assert bool((reduced.problem.weights[k + 1] != 0).any(dim=0).all())
    inner, proven = lifted_start(problem)
    assert proven == pytest.approx(inner, rel=1e-7)


def test_what_becomes_idle_or_constant_by_a_drop_is_dropped_too() -> None:
    weights = weights_of([3, 4, 4, 4, 2])
    weights[3][:, 0] = 0.0  # nobody listens to neuron 0 of layer 3 ...
    weights[2][1:, 1] = 0.0  # ... and neuron 1 of layer 2 spoke to it alone
    weights[0][2] = 0.0  # neuron 2 of layer 1 is constant ...
    weights[1][3, [0, 1, 3]] = 0.0  # ... and neuron 3 of layer 2 hears it alone
    reduced = reduce_certify(problem_of(weights))
    kept = [mask.tolist() for mask in reduced.kept]
    assert kept == [
        [True, True, False, True],
        [True, False, True, False],
        [False, True, True, True],
    ]


def test_a_neuron_of_slope_zero_is_dropped() -> None:
    weights = weights_of([3, 4, 2])
    alpha, beta = torch.zeros(4).double(), torch.ones(4).double()
    beta[1] = 0.0
    problem = CertifyProblem(tuple(weights), (Slopes(alpha, beta),))
    assert reduce_certify(problem).problem.widths[1] == 3
    inner, proven = lifted_start(problem)
    assert proven == pytest.approx(inner, rel=1e-7)


def test_wide_inputs_and_outputs_are_factored_out() -> None:
    reduced = reduce_certify(problem_of(weights_of([50, 4, 3, 60])))
    assert reduced.problem.widths == (3, 3, 4, 4)  # and read from the smaller end


def test_layers_come_out_equal_and_the_closed_form_near_one() -> None:
    weights = [1e5 * w for w in weights_of([6, 8, 8, 8, 3])]
    reduced = reduce_certify(problem_of(weights)).problem
    norms = [float(torch.linalg.matrix_norm(w, 2)) for w in reduced.weights]
    assert norms == pytest.approx([norms[0]] * 4)
    start = best_start(reduced)
    assert start is not None
    assert 0.5 < start.lip_sq <= 1.0 + 1e-9


@pytest.mark.parametrize("widths", [(5, 6, 7, 3), (3, 7, 6, 5)])
@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-0.13, 1.13), (0.2, 1.0), (-2.0, -1.0)])
def test_restrict_undoes_lift(widths: tuple[int, ...], slopes: tuple[float, float]) -> None:
    weights = weights_of(widths)
    weights[0][2] = 0.0
    reduced = reduce_certify(problem_of([1e4 * w for w in weights], *slopes))
    start = best_start(reduced.problem)
    assert start is not None
    inner = doubled(start.multiplier)
    again = reduced.restrict(reduced.lift(inner))
    bounds = [
        implied_bound(reduced.problem.weights, reduced.problem.slopes, t) for t in (inner, again)
    ]
    assert bounds[1] <= bounds[0] * (1 + 1e-8)
    ratios = torch.cat([a / b for a, b in zip(again, inner, strict=True)])
    assert torch.allclose(ratios, ratios[:1], rtol=1e-10)


def test_the_lift_of_an_inexact_multiplier_still_proves_nearly_its_bound() -> None:
    problem = problem_of(weights_of([12, 9, 8, 3]))
    reduced = reduce_certify(problem)
    assert reduced.upright is not None
    claim = interior_point.certify(reduced.problem, SolverConfig(tol=1e-8))
    assert claim.multiplier is not None
    inner = math.sqrt(claim.lip_sq) * math.exp(reduced.log_scale)
    proven = implied_bound(problem.weights, problem.slopes, reduced.lift(claim.multiplier))
    assert proven == pytest.approx(inner, rel=1e-7)
    rough = proving(problem, reduced.lift(tuple((1.0 - 1e-5) * t for t in claim.multiplier)))[1]
    assert rough == pytest.approx(inner, rel=1e-2)
    hopeless = reduced.lift(tuple(0.0 * t for t in claim.multiplier))
    assert proving(problem, hopeless)[1] == float("inf")


def test_the_bound_does_not_see_the_scale_of_a_neuron() -> None:
    weights = weights_of([5, 6, 7, 3])
    scales = [torch.logspace(-6, 6, 6).double(), torch.logspace(5, -5, 7).double()]
    scaled = [
        scales[0][:, None] * weights[0],
        scales[1][:, None] * weights[1] / scales[0],
        weights[2] / scales[1],
    ]
    plain, rough = lifted_start(problem_of(weights)), lifted_start(problem_of(scaled))
    assert rough == pytest.approx(plain, rel=1e-3)


def test_an_affine_map_is_only_scaled() -> None:
    reduced = reduce_certify(problem_of([1e9 * torch.eye(3).double()]))
    assert reduced.lift(()) == ()
    assert math.exp(reduced.log_scale) == pytest.approx(1e9)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_zero_layer_makes_the_network_constant(layer: int) -> None:
    weights = [1e3 * w for w in weights_of([6, 8, 8, 3])]
    weights[layer].zero_()
    problem = problem_of(weights, -0.1, 1.0)
    reduced = reduce_certify(problem)
    assert reduced.problem.slopes == ()
    assert implied_bound(problem.weights, problem.slopes, reduced.lift(())) < 1e-30


def test_forty_layers_of_scale_1e8_do_not_overflow() -> None:
    reduced = reduce_certify(problem_of([1e8 * w for w in weights_of([5] * 41)]))
    assert all(bool(torch.isfinite(w).all()) for w in reduced.problem.weights)
    assert math.isfinite(reduced.log_scale)
    lifted = reduced.lift(tuple(torch.ones(5).double() for _ in range(39)))
    assert all(bool((torch.isfinite(t) & (t > 0)).all()) for t in lifted)
