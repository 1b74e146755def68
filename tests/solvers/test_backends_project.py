"""Every backend on planted and random projections, judged by optimality conditions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from judging import (
    Judge,
    arrays,
    certify_problem,
    distance,
    project_problem,
    size,
    slopes_of,
    tensors,
)
from oracles import (
    Net,
    mixed_net,
    naive_margin,
    planted_projection,
    projection_kkt,
    random_net,
)

from admm_lip.solvers import (
    ProjectProblem,
    ProjectSolution,
    Status,
    Structure,
    solve_certify,
    solve_project,
)


def check_feasible(solution: ProjectSolution, problem: ProjectProblem) -> None:
    """The naive LMI holds at the measured ``L^2``, and the measured numbers are what they say."""
    w, v = arrays(solution.weights), arrays(problem.anchor)
    ranges = [(s.alpha.numpy(), s.beta.numpy()) for s in problem.slopes]
    t = arrays(problem.multiplier)
    assert naive_margin(w, ranges, t, solution.lip_sq) >= -1e-13
    assert solution.ball_norm <= 1.0
    assert solution.distance == pytest.approx(distance(w, v), rel=1e-9, abs=1e-12)
    if problem.bound is not None:
        assert solution.lip_sq == problem.bound**2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("widths", [(3, 5, 4, 2), (2, 6, 3), (9, 4, 3, 5, 7)])
def test_planted_projection_onto_a_bound(judge: Judge, widths: tuple[int, ...], seed: int) -> None:
    plant = planted_projection(widths, seed)
    problem = ProjectProblem(
        tensors(plant.anchor),
        slopes_of(Net([], plant.ranges)),
        tensors(plant.multiplier),
        bound=plant.lip_sq**0.5,
    )
    solution = judge.project(problem)
    check_feasible(solution, problem)
    assert solution.status is Status.OPTIMAL
    error = distance(arrays(solution.weights), plant.nearest)
    assert error <= judge.tolerance.weights * size(plant.anchor)


@pytest.mark.parametrize("seed", range(3))
def test_planted_penalised_projection(judge: Judge, seed: int) -> None:
    plant = planted_projection((3, 5, 4, 2), seed)
    rho = 2.5
    problem = ProjectProblem(
        tensors(plant.anchor),
        slopes_of(Net([], plant.ranges)),
        tensors(plant.multiplier),
        mu=rho * plant.input_price,
        rho=rho,
    )
    solution = judge.project(problem)
    check_feasible(solution, problem)
    best = problem.mu * plant.lip_sq + 0.5 * rho * distance(plant.nearest, plant.anchor) ** 2
    assert solution.objective == pytest.approx(best, rel=1e-5)
    assert solution.lip_sq == pytest.approx(plant.lip_sq, rel=1e-3)
    error = distance(arrays(solution.weights), plant.nearest)
    assert error <= 10 * judge.tolerance.weights * size(plant.anchor)


def kkt_of(solution: ProjectSolution, problem: ProjectProblem, **how: Any) -> Any:
    ranges = [(s.alpha.numpy(), s.beta.numpy()) for s in problem.slopes]
    return projection_kkt(
        arrays(solution.weights),
        arrays(problem.anchor),
        ranges,
        arrays(problem.multiplier),
        solution.lip_sq,
        **how,
    )


@pytest.mark.parametrize("mixed", [False, True], ids=["slopes [0, 1]", "alpha < 0 per neuron"])
def test_projection_meets_its_optimality_conditions(judge: Judge, mixed: bool) -> None:
    net = mixed_net((3, 5, 4, 2), 40) if mixed else random_net((3, 5, 4, 2), 40)
    problem = project_problem(net, 40, bound=0.8)
    solution = judge.project(problem)
    check_feasible(solution, problem)
    kkt = kkt_of(solution, problem)
    assert kkt.stationarity <= judge.tolerance.kkt
    assert kkt.sign >= -judge.tolerance.kkt


@pytest.mark.parametrize("mixed", [False, True], ids=["slopes [0, 1]", "alpha < 0 per neuron"])
def test_penalised_projection_pays_the_right_price_for_its_bound(judge: Judge, mixed: bool) -> None:
    net = mixed_net((3, 5, 4, 2), 41) if mixed else random_net((3, 5, 4, 2), 41)
    problem = project_problem(net, 41, mu=0.7, rho=1.5)
    solution = judge.project(problem)
    check_feasible(solution, problem)
    kkt = kkt_of(solution, problem)
    assert kkt.stationarity <= judge.tolerance.kkt
    assert kkt.sign >= -judge.tolerance.kkt
    assert kkt.price == pytest.approx(0.7 / 1.5, rel=1e-2)
    # The same point is the projection onto the bound that was found.
    again = judge.project(replace(problem, mu=None, bound=solution.lip_sq**0.5))
    error = distance(arrays(again.weights), arrays(solution.weights))
    assert error <= 20 * judge.tolerance.weights * size(arrays(problem.anchor))


def metric_structure(net: Net) -> tuple[tuple[Structure, ...], dict[str, Any]]:
    rng = np.random.default_rng(0)
    metrics = [rng.uniform(0.2, 3.0, w.shape) for w in net.weights]
    structure = tuple(Structure(metric=m) for m in tensors(metrics))
    return structure, {"metric": np.concatenate([m.ravel() for m in metrics])}


def held_structure(net: Net) -> tuple[tuple[Structure, ...], dict[str, Any]]:
    rng = np.random.default_rng(1)
    masks = [rng.uniform(size=w.shape) < 0.15 for w in net.weights]
    structure = tuple(Structure(held=torch.as_tensor(m)) for m in masks)
    flat = np.concatenate([m.ravel() for m in masks])
    return structure, {"groups": np.where(flat, -1, np.arange(flat.size))}


def tied_structure(net: Net) -> tuple[tuple[Structure, ...], dict[str, Any]]:
    """Bands of equal entries as a convolution makes them, zero elsewhere; the last layer free."""
    structure, groups, first = [], [], 0
    for w in net.weights[:-1]:
        rows, cols = np.indices(w.shape)
        band = np.where(np.abs(rows - cols) <= 1, rows - cols + 1, -1)
        structure.append(Structure(ties=torch.as_tensor(band)))
        groups.append(np.where(band >= 0, band + first, -1).ravel())
        first += 3
    groups.append(first + np.arange(net.weights[-1].size))
    return (*structure, Structure()), {"groups": np.concatenate(groups)}


STRUCTURES = {"metric": metric_structure, "held": held_structure, "ties": tied_structure}


@pytest.mark.parametrize("kind", STRUCTURES)
@pytest.mark.parametrize("mixed", [False, True], ids=["slopes [0, 1]", "alpha < 0 per neuron"])
def test_structured_projection_meets_its_optimality_conditions(
    judge: Judge, kind: str, mixed: bool
) -> None:
    net = mixed_net((3, 5, 4, 2), 42) if mixed else random_net((3, 5, 4, 2), 42)
    structure, how = STRUCTURES[kind](net)
    problem = project_problem(net, 42, structure, bound=1.6)
    solution = judge.project(problem)
    check_feasible(solution, problem)
    weights, anchor = arrays(solution.weights), arrays(problem.anchor)
    for w, v, own in zip(weights, anchor, structure, strict=True):
        if own.held is not None:
            np.testing.assert_allclose(w[own.held], v[own.held], rtol=1e-6, atol=1e-8)
        if own.ties is not None:
            assert (w[own.ties < 0] == 0).all()
            for label in own.ties[own.ties >= 0].unique():
                assert np.ptp(w[own.ties == label]) <= 1e-12
    kkt = kkt_of(solution, problem, **how)
    assert kkt.stationarity <= judge.tolerance.kkt
    assert kkt.sign >= -judge.tolerance.kkt


def test_a_feasible_anchor_stays(judge: Judge) -> None:
    problem = project_problem(random_net((3, 5, 4, 2), 43), 43, bound=50.0)
    problem = replace(problem, anchor=tuple(0.1 * v for v in problem.anchor))
    solution = judge.project(problem)
    assert solution.distance <= judge.tolerance.weights * size(arrays(problem.anchor))


def test_projection_is_idempotent_and_not_expansive(judge: Judge) -> None:
    one = project_problem(random_net((3, 5, 4, 2), 44), 44, bound=0.8)
    rng = np.random.default_rng(1)
    shifted = tensors(w + 0.3 * rng.standard_normal(w.shape) for w in arrays(one.anchor))
    two = replace(one, anchor=shifted)
    first, second = judge.project(one), judge.project(two)
    slack = judge.tolerance.weights * size(arrays(one.anchor))
    apart = distance(arrays(first.weights), arrays(second.weights))
    assert apart <= distance(arrays(one.anchor), arrays(two.anchor)) + 2 * slack
    again = judge.project(replace(one, anchor=first.weights))
    assert again.distance <= slack


def test_projection_of_an_affine_map_clips_its_singular_values(judge: Judge) -> None:
    for shape in ((4, 3), (2, 6)):
        (weight,) = random_net(shape, 45).weights
        left, values, right = np.linalg.svd(weight, full_matrices=False)
        bound = float(values.mean())
        expected = (left * np.minimum(values, bound)) @ right
        solution = judge.project(ProjectProblem(tensors([weight]), (), (), bound=bound))
        error = np.linalg.norm(solution.weights[0].numpy() - expected)
        assert error <= judge.tolerance.weights * np.linalg.norm(weight)


def test_results_repeat_to_the_last_bit(judge: Judge) -> None:
    net = random_net((3, 5, 4, 2), 46)
    assert judge.certify(net).lip == judge.certify(net).lip
    problem = project_problem(net, 46, bound=0.8)
    once, twice = judge.project(problem), judge.project(problem)
    assert all(torch.equal(a, b) for a, b in zip(once.weights, twice.weights, strict=True))


def test_warm_starts_do_not_change_the_answer(judge: Judge) -> None:
    net = random_net((3, 5, 4, 2), 47)
    problem = project_problem(net, 47, bound=0.8)
    cold = judge.project(problem)
    near = replace(problem, anchor=tuple(1.01 * v for v in problem.anchor))
    warm = solve_project(near, judge.config(), warm=cold.warm)
    error = distance(arrays(warm.weights), arrays(judge.project(near).weights))
    assert error <= 2 * judge.tolerance.weights * size(arrays(near.anchor))
    known = judge.certify(net)
    again = solve_certify(certify_problem(net), judge.config(), warm=known.multiplier)
    assert again.lip == pytest.approx(known.lip, rel=10 * judge.tolerance.lip)
