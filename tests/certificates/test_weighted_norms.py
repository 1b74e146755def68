"""Inputs measured in linf or in raw units: against enumeration, a dense solver, scaled networks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import cvxpy
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_functionals import stacked
from torch import nn

from admm_lip import SolverConfig, certify, verify
from admm_lip.certificates import chain_bound
from admm_lip.certificates.claim_matrices import Matrices, distance_of, measured
from admm_lip.networks.network import Chain, LayerSpec, Network, Slopes
from admm_lip.solvers.errors import SolveFailed
from admm_lip.units import Units

TIGHT = SolverConfig(tol=1e-8)
Array = np.ndarray[Any, Any]


def masked_linf(weights: Sequence[Array]) -> float:
    """Largest ``||W_l D ... D W_0 s||_2`` over 0/1 diagonals D and sign vectors s."""
    sizes = [len(w) for w in weights[:-1]]
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=weights[0].shape[1]))).T
    best = 0.0
    for bits in itertools.product((0.0, 1.0), repeat=sum(sizes)):
        masks = np.split(np.array(bits), np.cumsum(sizes)[:-1])
        product = weights[0]
        for mask, w in zip(masks, weights[1:], strict=True):
            product = w @ (mask[:, None] * product)
        best = max(best, float(np.linalg.norm(product @ signs, axis=0).max()))
    return best


def dense_linf(weights: Sequence[Array]) -> float:
    """The inequality with ``diag(tau)`` in place of ``L^2 I``, sum tau minimised, by Clarabel."""
    tau = cvxpy.Variable(weights[0].shape[1])
    t = [cvxpy.Variable(len(w)) for w in weights[:-1]]
    sizes = [weights[0].shape[1], *(len(w) for w in weights)]
    rows: list[list[Any]] = [[np.zeros((a, b)) for b in sizes] for a in sizes]
    rows[0][0] = cvxpy.diag(tau)
    for k, w in enumerate(weights[:-1]):
        below = -cvxpy.diag(t[k]) @ w
        rows[k + 1][k + 1] = 2.0 * cvxpy.diag(t[k])
        rows[k + 1][k], rows[k][k + 1] = below, below.T
    rows[-1][-1] = np.eye(sizes[-1])
    rows[-1][-2], rows[-2][-1] = -weights[-1], -weights[-1].T
    m = cvxpy.bmat(rows)
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(tau)), [(m + m.T) / 2.0 >> 0])
    problem.solve(solver=cvxpy.CLARABEL)
    return float(np.sqrt(problem.value))


@pytest.mark.parametrize(("widths", "seed"), [((3, 4, 2), 0), ((4, 3, 3, 2), 1), ((2, 5, 1), 2)])
def test_linf_lies_above_enumeration(widths: tuple[int, ...], seed: int) -> None:
    net = oracles.random_net(widths, seed)
    model = stacked(*net.weights)
    certificate = certify(model, norm="linf", solver=TIGHT)
    exact = masked_linf(net.weights)
    assert exact * (1.0 - 1e-9) <= certificate.lip <= 1.25 * exact
    assert certificate.sampled_lower <= exact * (1.0 + 1e-9)
    assert certificate.lip <= certificate.norm_product * (1.0 + 1e-6)
    verify(certificate, model)


@pytest.mark.parametrize(("widths", "seed"), [((5, 8, 6, 3), 0), ((9, 4, 2), 1), ((2, 7, 5, 1), 2)])
def test_linf_is_the_optimum_of_a_dense_solver(widths: tuple[int, ...], seed: int) -> None:
    net = oracles.random_net(widths, seed)
    certificate = certify(stacked(*net.weights), norm="linf", solver=TIGHT)
    assert certificate.lip == pytest.approx(dense_linf(net.weights), rel=1e-6)
    assert certificate.lower_lip == pytest.approx(certificate.lip, rel=1e-6)
    # the proof: tau = 2 t_0 with sum tau at most L^2
    assert 2.0 * sum(certificate.multiplier[0]) <= certificate.lip**2


def test_norms_of_the_input_are_ordered() -> None:
    net = oracles.random_net((6, 7, 3), 4)
    model = stacked(*net.weights)
    two, most = certify(model).lip, certify(model, norm="linf").lip
    assert two <= most <= np.sqrt(6.0) * two * (1.0 + 1e-6)
    one_input = stacked([[2.0], [1.0]], [[1.0, -1.0]])
    assert certify(one_input, norm="linf", solver=TIGHT).lip == pytest.approx(
        certify(one_input, solver=TIGHT).lip, rel=1e-6
    )


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), norm=st.sampled_from(["l2", "linf"]), log=st.integers(-4, 4))
def test_a_scale_is_that_of_the_scaled_network(seed: int, norm: str, log: int) -> None:
    rng = np.random.default_rng(seed)
    net = oracles.random_net((4, 6, 3), seed)
    scale = 10.0 ** (log + rng.uniform(-1.0, 1.0, 4))
    model = stacked(*net.weights)
    explicit = stacked(net.weights[0] / scale, net.weights[1])
    raw = certify(model, norm=norm, input_scale=scale, solver=TIGHT)
    same = certify(explicit, norm=norm, solver=TIGHT)
    assert raw.lip == pytest.approx(same.lip, rel=1e-6)
    assert same.units is None
    assert raw.sampled_lower <= raw.lip
    assert raw.input_scale == tuple(scale.tolist())
    verify(raw, model)


def test_a_scaling_layer_in_front_is_in_units_of_the_models_input() -> None:
    net = oracles.random_net((4, 6, 3), 0)
    scale = np.array([0.1, 2.0, 30.0, 0.5])
    layered = nn.Sequential(nn.Linear(4, 4).double(), *stacked(*net.weights))
    layered[0].weight.data = torch.diag(torch.from_numpy(1.0 / scale))
    inside = certify(layered, solver=TIGHT)
    raw = certify(stacked(*net.weights), input_scale=scale, solver=TIGHT)
    assert inside.lip == pytest.approx(raw.lip, rel=1e-7)
    assert inside.units is None
    verify(inside, layered)


def test_a_scale_takes_tensors_images_and_one_number() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    plain = certify(model, (1, 3, 3))
    halved = certify(model, (1, 3, 3), input_scale=torch.full((1, 3, 3), 2.0))
    assert halved.lip == pytest.approx(0.5 * plain.lip, rel=1e-6)
    assert certify(model, (1, 3, 3), input_scale=2).lip == pytest.approx(halved.lip, rel=1e-9)
    verify(halved, model)


def test_a_constant_network_is_constant_in_every_norm() -> None:
    model = stacked([[0.0, 0.0], [0.0, 0.0]], [[1.0, 2.0]])
    for norm in ("l2", "linf"):
        certificate = certify(model, norm=norm, input_scale=0.3)
        assert (certificate.lip, certificate.method) == (0.0, "constant")
        verify(certificate, model)


def test_inputs_that_nobody_reads_cost_nothing() -> None:
    model = stacked([[1.0, 0.0, -2.0], [0.5, 0.0, 1.0]], [[1.0, 1.0]])
    fewer = stacked([[1.0, -2.0], [0.5, 1.0]], [[1.0, 1.0]])
    whole = certify(model, norm="linf", solver=TIGHT)
    assert whole.lip == pytest.approx(certify(fewer, norm="linf", solver=TIGHT).lip, rel=1e-6)
    verify(whole, model)


def test_the_scaled_matrix_is_bounded_through_rounding() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3)) * 10.0 ** rng.integers(-200, 200, (4, 3))
    chain = Chain((weight,), (np.zeros(4),), (), (0.0,), (0.0,), (("w",),), ())
    from fractions import Fraction

    for scale in ([0.3, 7.0, 1e-9], [1e30, 1e-30, 3.0], [2.0, 0.25, 1.0]):
        found = measured(chain, "l2", Units(input_scale=scale))
        square = sum(
            (Fraction(float(found.weights[0][i, j])) - Fraction(float(w)) / Fraction(scale[j])) ** 2
            for (i, j), w in np.ndenumerate(weight)
        )
        assert square <= Fraction(found.errors[0]) ** 2
    assert found.errors == (0.0,)


def test_the_layer_in_front_states_the_inequality_with_a_diagonal_input_block() -> None:
    weight = np.array([[1.0, -2.0], [3.0, 0.5]])
    spec = LayerSpec("relu", "act", {})
    chain = Chain(
        (weight, np.eye(2)),
        (np.zeros(2),) * 2,
        (Slopes(np.zeros(2), np.ones(2)),),
        (0.0, 0.0),
        (0.0, 0.0),
        (("a",), ("b",)),
        (spec,),
    )
    longer = measured(chain, "linf", None)
    assert isinstance(longer, Matrices)
    assert longer.widths == (1, 2, 2, 2)
    tau, t, lip_sq = np.array([3.0, 5.0]), np.array([1.0, 2.0]), 9.0
    ranges = [(s.alpha, s.beta) for s in longer.slopes]
    big = oracles.naive_lmi(longer.weights, ranges, [tau / 2.0, t], lip_sq)
    small = oracles.naive_lmi(chain.weights, ranges[1:], [t], 0.0)
    small[:2, :2] = np.diag(tau)
    assert big[0, 0] == lip_sq - tau.sum()
    assert not big[0, 1:].any()
    assert np.allclose(big[1:, 1:], small)


def test_a_network_says_how_its_inputs_are_measured() -> None:
    rng = np.random.default_rng(0)
    arrays = {"std.weight": np.diag([0.5, 2.0, 1.0]), "out.weight": rng.standard_normal((2, 3))}
    layers = (LayerSpec("linear", "std", {}), LayerSpec("linear", "out", {}))
    scaled = Network(layers, arrays)
    plain = Network(layers, {**arrays, "std.weight": rng.standard_normal((3, 3))})
    own = "linf, in the units of the model's input"
    assert distance_of(plain, "linf", raw=False) == own
    assert distance_of(scaled, "linf", raw=False) == f"{own}, which its layer 'std' then scales"
    assert distance_of(scaled, "l2", raw=True).startswith("l2, in raw units: the model takes raw /")


def test_a_failing_solver_leaves_what_closed_forms_prove(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise SolveFailed("solver 'auto': no backend came to a usable answer")

    monkeypatch.setattr(chain_bound, "solve_certify", fail)
    model = stacked(*oracles.random_net((3, 4, 2), 0).weights)
    certificate = certify(model)
    assert (certificate.method, certificate.solver) == ("closed_form", "")
    assert certificate.sampled_lower <= certificate.lip <= certificate.norm_product * (1.0 + 1e-6)
    verify(certificate, model)
    with pytest.raises(SolveFailed, match="no backend came to a usable answer"):
        certify(model, solver=SolverConfig("native", fallback=()))
