"""Large networks on a torus: first derivatives alone, and what a time limit leaves."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from admm_lip import SolverConfig, certify, verify
from admm_lip.certificates.torus import search as searching
from admm_lip.certificates.torus.check import head_matrices
from admm_lip.certificates.torus.descent import Descent, power_mean
from admm_lip.certificates.torus.gradient import gradients
from admm_lip.certificates.torus.problem import Problem
from admm_lip.certificates.torus.read import torus_chain
from admm_lip.certificates.torus.search import search
from admm_lip.foreign.from_torch import read_module
from admm_lip.networks.network import Network
from admm_lip.solvers.deadline import Deadline

Array = np.ndarray[Any, Any]
SHAPE = (1, 6, 6)


@functools.cache
def model(head: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    front = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, 2, 1), nn.LeakyReLU(-0.5)]
    behind = [nn.Flatten(), nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 3)]
    return nn.Sequential(*front, *(behind if head else [])).double()


def network(head: bool) -> Network:
    return read_module(model(head), SHAPE)


def problem_of(head: bool) -> Problem:
    chain = torus_chain(network(head), 2)
    return Problem(chain, None if chain.head is None else head_matrices(chain.head))


@pytest.mark.parametrize("head", [False, True])
def test_first_derivatives_are_those_of_differences(head: bool) -> None:
    problem = problem_of(head)
    x = np.log(0.7 * np.concatenate(problem.start(alike=False)))

    def at(x: Array) -> tuple[float, float, Any, Any]:
        passing = problem.forward(problem.split(np.exp(x)))
        assert passing is not None
        mean = power_mean(problem, passing, 7.0)
        return mean.log, passing.log_det, passing, mean.weighing

    _, _, passing, weighing = at(x)
    found = gradients(problem, passing, weighing)
    for k in range(len(x)):
        step = np.zeros_like(x)
        step[k] = 1e-5
        more, less = at(x + step), at(x - step)
        assert (more[0] - less[0]) / 2e-5 == pytest.approx(-found.power[k], rel=1e-6, abs=1e-8)
        assert (more[1] - less[1]) / 2e-5 == pytest.approx(found.slack[k], rel=1e-6, abs=1e-6)


def test_first_derivatives_are_those_beside_second_ones() -> None:
    problem = problem_of(True)
    passing = problem.forward([0.7 * t for t in problem.start(alike=False)])
    assert passing is not None
    zero = [np.zeros_like(passing.ends[0])]
    slack = gradients(problem, passing, zero).slack
    assert np.allclose(slack, problem.derivatives(passing, 0.0).gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("head", [False, True])
def test_the_power_mean_is_no_less_than_the_largest_eigenvalue(head: bool) -> None:
    problem = problem_of(head)
    passing = problem.forward([0.5 * t for t in problem.start(alike=False)])
    assert passing is not None
    means = [power_mean(problem, passing, p).log for p in (6.0, 20.0, 200.0)]
    top = np.log(problem.squared(passing))
    assert means == sorted(means, reverse=True) and means[-1] >= top - 1e-12
    assert means[-1] == pytest.approx(top, abs=0.05)


@pytest.mark.parametrize("head", [False, True])
def test_descent_comes_near_the_best_multipliers(head: bool) -> None:
    problem = problem_of(head)
    best = search(problem.chain, None if not head else head_matrices_of(problem), Deadline(None))
    descent = Descent(problem, 1e-2)
    begun = descent.point.squared
    found = descent.solve(Deadline(None))
    assert best.lower <= found.squared <= 1.01 * best.squared < begun
    assert found.gap() <= 1e-2 and found.lower <= best.squared
    passing = problem.forward(found.multiplier)
    assert passing is not None
    assert problem.squared(passing) == pytest.approx(found.squared)


def head_matrices_of(problem: Problem) -> Any:
    assert problem.chain.head is not None
    return head_matrices(problem.chain.head)


def test_large_networks_end_with_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(True)
    plain = search(problem.chain, head_matrices_of(problem), Deadline(None))
    monkeypatch.setattr(searching, "_LARGE", 0)
    found = search(problem.chain, head_matrices_of(problem), Deadline(None))
    assert found.gap() <= 5e-2
    assert plain.lower <= found.squared and found.lower <= plain.squared
    near = search(problem.chain, head_matrices_of(problem), Deadline(None), near=plain.multiplier)
    assert near.gap() <= 5e-2


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_the_lower_bound_holds_wherever_descent_is(head: bool, steps: int) -> None:
    problem = problem_of(head)
    best = search(problem.chain, None if not head else head_matrices_of(problem), Deadline(None))
    descent = Descent(problem, 1e-3)
    for _ in range(steps):
        descent._step()
    descent._is_done()
    assert 0.0 < descent.found.lower <= best.squared


@pytest.mark.parametrize("seconds", [1e-6, 0.1, 0.5])
def test_a_time_limit_leaves_a_proven_bound(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "_LARGE", 0)
    limited = SolverConfig(time_limit=seconds)
    found = certify(model(), SHAPE, structure="torus", solver=limited)
    assert found.lower_lip <= found.lip <= found.norm_product * (1.0 + 1e-6)
    verify(found, model())
