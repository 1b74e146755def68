"""Multipliers per channel by the interior point method: against cvxpy, and their lower bound."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip import certify, verify
from admm_lip.certificates.torus.check import head_matrices
from admm_lip.certificates.torus.covariance import adjoint
from admm_lip.certificates.torus.lower_bound import Signals, best_sum, lower_bound
from admm_lip.certificates.torus.path import Path, Point, slopes_at
from admm_lip.certificates.torus.problem import Problem
from admm_lip.certificates.torus.read import torus_chain
from admm_lip.certificates.torus.search import search
from admm_lip.certificates.torus.steps import TorusChain
from admm_lip.foreign.from_torch import read_module
from admm_lip.networks.network import Network
from admm_lip.solvers.deadline import Deadline

Array = np.ndarray[Any, Any]


def circular(*sizes: Any, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(*sizes, padding=1, padding_mode="circular", **options)


@functools.cache
def network_of(head: bool, seed: int = 0, padded: str = "circular") -> Network:
    torch.manual_seed(seed)
    options = {"padding": 1, "padding_mode": padded}
    layers = [nn.Conv2d(1, 3, 3, **options), nn.ReLU(), nn.Conv2d(3, 2, 4, stride=2, **options)]
    behind = [nn.Tanh(), nn.Flatten(), nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 2)]
    tail = behind if head else [nn.ReLU()]
    return read_module(nn.Sequential(*layers, *tail).double(), (1, 4, 4))


def problem_of(network: Network, switch: int) -> tuple[TorusChain, Problem]:
    chain = torus_chain(network, switch)
    return chain, Problem(chain, None if chain.head is None else head_matrices(chain.head))


def optimum(network: Network, channels: list[int]) -> float:
    """``L^2`` of LipSDP with one multiplier for every channel of the given layers, by cvxpy."""
    cp = pytest.importorskip("cvxpy")
    chain = network.chain()
    widths = [w.shape[1] for w in chain.weights]
    starts = np.cumsum([0, *widths])
    rho, total = cp.Variable(), int(starts[-1])
    place = [np.eye(total)[a:b] for a, b in itertools.pairwise(starts)]
    lmi = rho * place[0].T @ place[0]
    for k, slopes in enumerate(chain.slopes):
        count = channels[k] if k < len(channels) else widths[k + 1]
        t = cp.Variable(count, nonneg=True)
        spread = np.kron(np.eye(count), np.ones((widths[k + 1] // count, 1)))
        z, v = chain.weights[k] @ place[k], place[k + 1]
        a, b = slopes.alpha[:, None], slopes.beta[:, None]
        pair = (v - a * z).T @ cp.diag(spread @ t) @ (v - b * z)
        lmi = lmi + pair + pair.T
    y = chain.weights[-1] @ place[-1]
    lmi = lmi - y.T @ y
    problem = cp.Problem(cp.Minimize(rho), [(lmi + lmi.T) / 2 >> 0])
    problem.solve(solver="CLARABEL")
    return float(problem.value)


@pytest.mark.parametrize("head", [False, True])
def test_circular_networks_get_lipsdp_with_tied_multipliers(head: bool) -> None:
    network = network_of(head)
    chain, _ = problem_of(network, 2)
    assert chain.grid == (4, 4)
    expected = optimum(network, [3, 2])
    found = search(chain, None if chain.head is None else head_matrices(chain.head), Deadline(None))
    assert found.lower <= expected * (1.0 + 1e-6)
    assert expected * (1.0 - 1e-6) <= found.squared <= expected * (1.0 + 1.2e-4)
    assert found.gap() <= 1e-4


def values_at(problem: Problem, x: Array) -> float:
    passing = problem.forward(problem.split(x[:-1]))
    assert passing is not None
    return problem.log_det(passing, float(x[-1]))


def plain_slopes(problem: Problem, x: Array) -> tuple[Array, Array]:
    passing = problem.forward(problem.split(x[:-1]))
    assert passing is not None
    found = problem.derivatives(passing, float(x[-1]))
    return np.append(found.gradient, -found.power), found.hessian


@pytest.mark.parametrize(("head", "switch"), [(False, 1), (False, 2), (True, 1), (True, 2)])
def test_derivatives_are_those_of_differences(head: bool, switch: int) -> None:
    _, problem = problem_of(network_of(head, 1, "zeros"), switch)
    t = [0.7 * own for own in problem.start(alike=False)]
    passing = problem.forward(t)
    assert passing is not None
    x = np.append(np.concatenate(t), 0.5 / problem.squared(passing))
    gradient, hessian = plain_slopes(problem, x)
    for k in range(len(x)):
        step = np.zeros_like(x)
        step[k] = 1e-5 * x[k]
        rise = (values_at(problem, x + step) - values_at(problem, x - step)) / 2e-5
        assert rise == pytest.approx(gradient[k], rel=1e-6, abs=1e-6 * np.abs(gradient).max())
        turn = plain_slopes(problem, x + step)[0] / (x + step)
        turn -= plain_slopes(problem, x - step)[0] / (x - step)
        assert np.allclose(
            -turn * x / 2e-5, hessian[k], rtol=1e-5, atol=1e-6 * np.abs(hessian).max()
        )


@pytest.mark.parametrize("head", [False, True])
def test_weighted_derivatives_are_those_of_differences(head: bool) -> None:
    """Of ``log det (rho I - P) + eta log det A``, by the multipliers and by rho."""
    _, problem = problem_of(network_of(head, 1, "zeros"), 2)
    path = Path(problem, 1e-4)
    at = path.point
    slopes = slopes_at(problem, at, path.eta)
    for k in range(len(slopes.gradient)):
        step = np.zeros_like(slopes.gradient)
        step[k] = 1e-5
        more, less = path._moved(step), path._moved(-step)
        assert more is not None and less is not None
        rise = (more.log_det - less.log_det) / 2e-5
        assert rise == pytest.approx(slopes.gradient[k], rel=1e-6, abs=1e-5)
        turn = (
            slopes_at(problem, more, path.eta).gradient / (1.0 + step)
            - slopes_at(problem, less, path.eta).gradient / (1.0 - step)
        ) / 2e-5
        size = np.abs(slopes.hessian).max()
        assert np.allclose(-turn, slopes.hessian[k], rtol=1e-5, atol=1e-6 * size)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(1.05, 20.0), head=st.booleans())
def test_no_multipliers_go_below_the_lower_bound_of_any_point(
    seed: int, share: float, head: bool
) -> None:
    """Whatever the point of the dual bound, and whatever the multipliers; nor below any sum's."""
    _, problem = problem_of(network_of(head, seed % 5, "zeros"), 2)
    rng = np.random.default_rng(seed)
    loudest = np.concatenate(problem.loudest())
    best, found = math.inf, list[Signals]()
    for _ in range(4):
        t = [rng.uniform(0.8, 1.0, len(own)) * own for own in problem.start(alike=False)]
        passing = problem.forward(t)
        assert passing is not None
        squared = problem.squared(passing)
        slopes = slopes_at(problem, Point(t, share * squared, passing, 0.0), rng.uniform(1e-4, 1.0))
        missing = slopes.gradient[:-1] / np.concatenate(t)
        found.append(Signals(missing, slopes.power, slopes.inputs))
        best = min(best, squared)
    lower, summed = max(lower_bound(one, loudest) for one in found), best_sum(found, loudest)
    assert 0.0 < lower <= summed * (1.0 + 1e-6) and summed <= best


def test_the_loudest_signals_are_those_of_the_linear_network_of_steepest_slopes() -> None:
    """What a neuron can be at most, of unit signals at the input, by the unrolled matrices."""
    network = network_of(head=True)
    _, problem = problem_of(network, 2)
    chain = network.chain()
    matrix, found = np.eye(16), problem.loudest()
    for k, own in enumerate(found):
        matrix = chain.weights[k] @ matrix
        rows = np.linalg.norm(matrix, axis=1) ** 2
        # Those of a channel share one, and one frequency is as loud as a pixel is, or louder.
        assert (own >= rows.reshape(len(own), -1).max(axis=1) * (1.0 - 1e-9)).all()
        slopes = chain.slopes[k]
        steeper = np.where(-slopes.alpha > slopes.beta, slopes.alpha, slopes.beta)
        matrix = steeper[:, None] * matrix
    assert np.allclose(found[-1], rows)


@pytest.mark.parametrize("decades", [1.0, 4.0, 8.0])
def test_the_best_sum_of_signals_of_any_scale_is_no_less_than_the_best_one(decades: float) -> None:
    random = np.random.default_rng(int(decades))
    loudest = 10.0 ** random.uniform(0.0, decades, 40)
    found = [
        Signals(
            random.standard_normal(40) * 10.0 ** random.uniform(-decades, 2.0 * decades),
            float(10.0 ** random.uniform(0.0, 2.0 * decades)),
            float(10.0 ** random.uniform(-1.0, 1.0)),
        )
        for _ in range(30)
    ]
    alone = max(lower_bound(one, loudest) for one in found)
    assert best_sum(found, loudest) >= (1.0 - 1e-6) * alone


def test_the_lower_bound_is_that_of_signals() -> None:
    """The gradient's figures against F itself, made whole for one frequency of a circular layer."""
    torch.manual_seed(0)
    layers = nn.Sequential(circular(2, 3, 3), nn.ReLU()).double()
    _, problem = problem_of(read_module(layers, (2, 3, 3)), 1)
    problem = problem.only(np.array([1]))
    (part,) = problem.parts
    linear = part.stages[0].linear
    assert linear is not None
    w, t = linear.w[0, 0], [0.6 * own for own in problem.start(alike=True)]
    passing = problem.forward(t)
    assert passing is not None
    s = 0.5 / problem.squared(passing)
    f = np.zeros((5, 5), dtype=complex)
    f[:2, :2], f[2:, 2:] = np.eye(2), 2.0 * np.diag(t[0]) - s * np.eye(3)
    f[2:, :2] = -t[0][:, None] * w
    f[:2, 2:] = adjoint(f[2:, :2])
    z = np.linalg.inv(f)
    v_z = z[2:, :2] @ adjoint(w)
    found, weight = problem.derivatives(passing, s), part.weights[0]
    expected = 2.0 * weight * t[0] * (np.diag(z[2:, 2:]) - np.diag(v_z)).real
    assert np.allclose(found.gradient, expected)
    assert found.power == pytest.approx(weight * s * np.trace(z[2:, 2:]).real)
    inputs = problem.dimension - found.gradient.sum() + found.power
    assert inputs == pytest.approx(weight * np.trace(z[:2, :2]).real)
    assert problem.log_det(passing, s) == pytest.approx(weight * np.linalg.slogdet(f)[1])


def test_a_small_network_is_near_the_bound_neuron_by_neuron() -> None:
    """The first row of the records: per channel within 1.22, from the second layer on 1.02."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 4, 2, 1), nn.ReLU())
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 10))
    found = certify(model, (1, 16, 16), structure="torus")
    verify(found, model)
    assert found.lower_lip <= found.lip <= found.lower_lip * (1.0 + 1e-4)
    assert found.switch == 1
    auto = certify(model, (1, 16, 16))
    assert auto.switch == 0
    assert auto.lower_lip <= found.lip <= 1.1 * auto.lip


def test_frequencies_that_fail_join_those_that_are_solved() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3, 1, 1), nn.ReLU(), nn.Conv2d(3, 3, 3, 1, 1), nn.ReLU()]
    network = read_module(nn.Sequential(*layers).double(), (1, 20, 20))
    chain, whole = problem_of(network, 2)
    found = search(chain, None, Deadline(None))
    assert found.gap() <= 1e-4
    passing = whole.forward(found.multiplier)
    assert passing is not None
    assert whole.squared(passing) == pytest.approx(found.squared)
    assert len(whole.failing(found.multiplier, found.squared, 5)) == 0
    assert len(whole.failing(found.multiplier, 0.9 * found.squared, 5)) == 5
    loose = [3.0 * own for own in found.multiplier]
    assert whole.forward(loose) is None
    assert len(whole.failing(loose, found.squared, 5)) == 5
