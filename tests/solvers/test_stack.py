"""Small networks solved side by side: the same optima as one by one, and nothing that spreads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from admm_lip.solvers import (
    CertifyProblem,
    CertifySolution,
    Slopes,
    SolverConfig,
    Status,
    solve_certify,
    solve_certify_all,
    unit_slopes,
)
from admm_lip.solvers.lmi import implied_bound, implied_bounds
from admm_lip.solvers.native.lmi.closed_forms import theta_start
from admm_lip.solvers.native.stack import interior
from admm_lip.solvers.native.stack import solve as stacked
from admm_lip.solvers.native.stack.batched import cholesky, inverse, solve
from admm_lip.solvers.native.stack.interior import LENGTHS, follow, longest
from admm_lip.solvers.side_by_side import stackable

CONFIG = SolverConfig("native", fallback=())
# Under a limit a problem is solved by the form for every size.
ALONE = SolverConfig("native", fallback=(), max_iterations=1000)


def network(
    *sizes: int, seed: int = 0, ends: tuple[float, float] = (0.0, 1.0), scale: float = 1.0
) -> CertifyProblem:
    """Normal weights; slopes of each neuron anywhere within ``ends``, half as wide at least."""
    generator = torch.Generator().manual_seed(seed)
    low, high = ends
    weights = tuple(
        scale * torch.randn(m, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
        for n, m in pairwise(sizes)
    )
    quarter = (high - low) / 4.0
    shares = [torch.rand(2, n, generator=generator).double() * quarter for n in sizes[1:-1]]
    slopes = tuple(Slopes(low + s[0], high - s[1]) for s in shares)
    return CertifyProblem(weights, slopes if ends != (0.0, 1.0) else unit_slopes(weights))


def agree(found: CertifySolution | None, other: CertifySolution, tol: float) -> None:
    """Both prove their gap, and neither's lower bound is above the other's bound."""
    assert found is not None and found.status is Status.OPTIMAL
    assert found.gap <= tol and found.lip == pytest.approx(other.lip, rel=tol)
    assert found.lower_lip <= other.lip and other.lower_lip <= found.lip


@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.01, 1.0), (-0.2, 1.1), (0.3, 0.9)])
@pytest.mark.parametrize("sizes", [(2, 12, 1), (9, 5, 7, 4), (3, 4, 4, 4, 4, 20)])
def test_side_by_side_as_in_the_form_for_every_size(
    sizes: tuple[int, ...], ends: tuple[float, float]
) -> None:
    problems = [network(*sizes, seed=seed, ends=ends) for seed in range(2)]
    for problem, found in zip(problems, solve_certify_all(problems, CONFIG), strict=True):
        agree(found, solve_certify(problem, ALONE), 1e-6)
        assert found is not None
        assert implied_bound(problem.weights, problem.slopes, found.multiplier) == pytest.approx(
            found.lip, rel=1e-12
        )


def test_order_is_kept_and_company_changes_nothing() -> None:
    problems = [network(*sizes, seed=k) for k, sizes in enumerate([(2, 6, 1), (3, 4, 4, 2)] * 3)]
    for problem, found in zip(problems, solve_certify_all(problems, CONFIG), strict=True):
        assert found is not None
        assert [t.shape for t in found.multiplier] == [s.alpha.shape for s in problem.slopes]
        alone = solve_certify(problem, CONFIG)
        assert found.lip == pytest.approx(alone.lip, rel=1e-9)


def unsuited() -> list[CertifyProblem]:
    """Neurons that are linear, deaf or unheard, a constant network, and one too large."""
    plain = network(3, 5, 2)
    (first, last), (s,) = plain.weights, plain.slopes
    linear = CertifyProblem(plain.weights, (Slopes(s.alpha.clone().fill_(1.0), s.beta),))
    deaf = CertifyProblem((first * torch.tensor([[0.0], *[[1.0]] * 4]), last), plain.slopes)
    unheard = CertifyProblem((first, last * torch.tensor([[0.0, *[1.0] * 4]])), plain.slopes)
    constant = CertifyProblem((0.0 * first, last), plain.slopes)
    large = network(4, stacked.LARGEST_ORDER, 4)
    return [linear, deaf, unheard, constant, large]


@pytest.mark.parametrize("k", range(5))
def test_what_does_not_suit_is_left_and_disturbs_nobody(k: int) -> None:
    plain, odd = network(3, 5, 2, seed=1), unsuited()[k]
    first, none, last = solve_certify_all([plain, odd, plain], CONFIG)
    assert none is None and first is not None and last is not None
    # Their places differ, and with them the order in which a processor sums.
    assert first.lip == pytest.approx(last.lip, rel=1e-12)
    assert first.lip == pytest.approx(solve_certify(plain, ALONE).lip, rel=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        SolverConfig(time_limit=60.0),
        SolverConfig(max_iterations=9),
        SolverConfig("scs"),
        SolverConfig(device="cuda"),
    ],
)
def test_limits_and_other_solvers_are_heard(config: SolverConfig) -> None:
    assert solve_certify_all([network(2, 3, 1)], config) == [None]


def test_weights_that_are_not_on_the_cpu_are_for_the_other_form() -> None:
    here: Any = SimpleNamespace(**vars(network(2, 3, 1)), widths=(2, 3, 1))
    assert stackable(here, SolverConfig())
    here.weights = tuple(w.to("meta") for w in here.weights)
    assert not stackable(here, SolverConfig())


def test_a_chain_whose_steps_fail_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = stacked.starts

    def one_outside(chains: stacked.Chains) -> torch.Tensor:
        y = real(chains)
        y[1] *= 1e-3
        return y

    monkeypatch.setattr(stacked, "starts", one_outside)
    found = solve_certify_all([network(2, 6, 1, seed=seed) for seed in range(3)], CONFIG)
    assert [solution is None for solution in found] == [False, True, False]


@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_first_steps_in_half_precision_change_no_answer(
    tol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = [network(6, 8, 8, 3, seed=seed, ends=(-0.1, 1.0)) for seed in range(2)]
    config = SolverConfig("native", fallback=(), tol=tol)
    usual = solve_certify_all(problems, config)
    monkeypatch.setattr(interior, "_WORTH_ROUGH", 0)
    for found, other in zip(solve_certify_all(problems, config), usual, strict=True):
        assert other is not None
        agree(found, other, tol)


def test_what_fails_in_half_precision_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interior, "_WORTH_ROUGH", 0)
    real, problem = interior.cholesky, network(3, 6, 2)

    def never_in_half(matrices: np.ndarray) -> Any:
        factors, definite = real(matrices)
        return factors, definite & (matrices.dtype == np.float64)

    monkeypatch.setattr(interior, "cholesky", never_in_half)
    agree(solve_certify_all([problem], CONFIG)[0], solve_certify(problem, ALONE), 1e-6)


def test_what_rounding_moved_out_is_moved_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of three chains by another factor, the last one not at all: it is begun again."""
    monkeypatch.setattr(interior, "_WORTH_ROUGH", 0)
    problems = [network(3, 6, 2, seed=seed) for seed in range(3)]
    real, needed = interior._begun, (1.0, 1.0 + 1e-6, 3.0)
    asked: list[float] = []

    def outside(stack: Any, y: Any, place: Any, z: Any = None) -> Any:
        found = real(stack, y, place, z)
        if z is None:
            return found
        room = interior.ROOM[len(asked)]
        asked.append(room)
        return found.pick(np.array([needed[k] <= room for k in found.place]))

    monkeypatch.setattr(interior, "_begun", outside)
    for found, problem in zip(solve_certify_all(problems, CONFIG), problems, strict=True):
        agree(found, solve_certify(problem, ALONE), 1e-6)
    assert tuple(asked) == interior.ROOM


@pytest.mark.parametrize("scale", [1e-40, 1e40])
def test_scales_far_from_one(scale: float) -> None:
    usual, far = (solve_certify(network(3, 6, 6, 2, scale=s), CONFIG) for s in (1.0, scale))
    assert far.lip / scale**3 == pytest.approx(usual.lip, rel=1e-6)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=3, max_size=5), st.integers(0, 10**6))
def test_random_sizes_prove_their_gap(sizes: Sequence[int], seed: int) -> None:
    problem = network(*sizes, seed=seed)
    (found,) = solve_certify_all([problem], CONFIG)
    if found is not None:
        agree(found, solve_certify(problem, ALONE), 1e-6)


def test_formulas_with_a_leading_dimension_are_those_without() -> None:
    problems = [network(4, 5, 3, 2, seed=seed, ends=(-0.1, 1.0)) for seed in range(3)]
    chains = stacked.Chains.of(problems)
    starts = [theta_start(problem, 1.2) for problem in problems]
    _, rho = stacked._closed(chains, 1.2)
    assert rho.tolist() == pytest.approx([start.lip_sq for start in starts if start], rel=1e-12)
    multipliers = [start.multiplier for start in starts if start]
    multipliers[1] = tuple(-t for t in multipliers[1])  # proves nothing
    side_by_side = [torch.stack(layer) for layer in zip(*multipliers, strict=True)]
    expected = [
        implied_bound(p.weights, p.slopes, t) for p, t in zip(problems, multipliers, strict=True)
    ]
    assert math.isinf(expected[1])
    assert implied_bounds(*chains, side_by_side).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [1, 4])
def test_longest_steps_end_inside_and_the_next_length_does_not(count: int) -> None:
    generator = np.random.default_rng(0)
    draws = generator.standard_normal((count, 5, 5))
    matrices, changes = draws @ draws.mT + np.eye(5), generator.standard_normal((count, 5, 5))
    changes += changes.mT
    lengths = longest(matrices, changes)[:, 0, 0]
    assert (longest(matrices, changes, whole=True)[:, 0, 0] == lengths).all()
    for matrix, change, length in zip(matrices, changes, lengths, strict=True):
        assert np.linalg.eigvalsh(matrix + length * change)[0] > 0.0
        if length < 1.0:
            further = LENGTHS[np.searchsorted(LENGTHS, length) + 1]
            assert np.linalg.eigvalsh(matrix + further * change)[0] <= 0.0
    few = longest(matrices, changes, LENGTHS[::3])[:, 0, 0]  # 0, 0.13, ..., 1
    assert (few == [max(a for a in LENGTHS[::3] if a <= length) for length in lengths]).all()


def test_every_chain_starts_from_the_best_of_its_own_closed_forms() -> None:
    chains = stacked.reduce(
        stacked.Chains.of([network(5, 5, 4, 3, seed=k, scale=10.0**k) for k in range(3)])
    ).chains
    for k, found in enumerate(stacked.starts(chains)):
        one = chains.pick(torch.tensor([k]))
        slopes = tuple(Slopes(s.alpha[0], s.beta[0]) for s in one.slopes)
        problem = CertifyProblem(tuple(w[0] for w in one.weights), slopes)
        each = [theta_start(problem, theta) for theta in (1.0, 1.2, 1.3)]
        best = min((s for s in each if s is not None), key=lambda s: s.lip_sq)
        torch.testing.assert_close(found[1:], torch.cat(best.multiplier), rtol=1e-8, atol=0.0)
        assert float(found[0]) == pytest.approx(best.lip_sq, rel=1e-9)


@pytest.mark.parametrize("count", [1, 3])
def test_factors_inverses_and_solutions(count: int) -> None:
    draws = np.random.default_rng(1).standard_normal((count, 4, 4))
    matrices = draws @ draws.mT + np.eye(4)
    factors, definite = cholesky(matrices)
    assert definite.all()
    np.testing.assert_allclose(factors @ factors.mT, matrices, atol=1e-12)
    np.testing.assert_allclose(
        inverse(factors) @ matrices, np.eye(4)[None].repeat(count, 0), atol=1e-10
    )
    np.testing.assert_allclose(matrices @ solve(factors, draws), draws, atol=1e-10)
    broken = matrices.copy()
    broken[0, 2, 2] = np.nan
    assert cholesky(broken)[1].tolist() == [False] + [True] * (count - 1)


def test_where_no_start_is_feasible_every_chain_is_left() -> None:
    stack = stacked._stack(stacked.Chains.of([network(3, 5, 2, seed=k) for k in range(2)]))
    nowhere = np.zeros((2, 1 + sum(stack.sizes[1:])))
    assert not follow(stack, nowhere, 1e-6, stacked.repaired).solved.any()


@pytest.mark.parametrize("sizes", [(9, 16, 16, 1), (40, 30, 20, 4)])
def test_a_multiplier_of_a_network_nearby_saves_steps_and_changes_no_answer(
    sizes: tuple[int, ...],
) -> None:
    before, noise = network(*sizes, seed=1), network(*sizes, seed=2)
    known = solve_certify(before, CONFIG).multiplier
    pairs = zip(before.weights, noise.weights, strict=True)
    near = replace(before, weights=tuple(w + 0.003 * e for w, e in pairs))
    cold, warm = solve_certify(near, CONFIG), solve_certify(near, CONFIG, known)
    assert warm.message == cold.message and warm.iterations < cold.iterations
    assert warm.lip == pytest.approx(cold.lip, rel=1e-6)
    for value in (float("nan"), float("inf"), 0.0, 1e-300, 1e300):
        useless = tuple(torch.full_like(t, value) for t in known)
        assert solve_certify(near, CONFIG, useless).lip == cold.lip
