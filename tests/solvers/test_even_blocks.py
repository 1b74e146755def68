"""Equal blocks side by side against the same formulas block by block, and the solves on them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from admm_lip.solvers.config import SolverConfig
from admm_lip.solvers.lmi import implied_bound
from admm_lip.solvers.native.interior import interior_point
from admm_lip.solvers.native.large.without_schur import certify_large
from admm_lip.solvers.native.lmi import block_cholesky as blocks
from admm_lip.solvers.native.lmi.block_cholesky import Band
from admm_lip.solvers.native.lmi.closed_forms import THETAS, theta_start, theta_starts
from admm_lip.solvers.native.lmi.dual_repair import repaired_value
from admm_lip.solvers.native.lmi.eliminated_operator import operator_of
from admm_lip.solvers.native.lmi.even_operator import EvenOperator
from admm_lip.solvers.native.lmi.lmi_operator import LmiOperator, schur_complement
from admm_lip.solvers.native.lmi.progress import Progress
from admm_lip.solvers.problem import CertifyProblem, Slopes
from admm_lip.solvers.reduction import reduce_certify
from admm_lip.solvers.solution import Status

FLOATS = st.sampled_from([torch.float64, torch.float32])
RANGES = st.sampled_from([(0.0, 1.0), (-0.2, 1.1), (0.3, 1.0)])


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def definite(seed: int, count: int, n: int, dtype: torch.dtype) -> tuple[Band, Band]:
    """A positive definite matrix's band with its blocks in two tensors, and in lists."""
    generator = torch.Generator().manual_seed(seed)
    root = normal(generator, count, 2 * n, 2 * n, dtype=dtype)
    cliques = root @ root.mT + torch.eye(2 * n, dtype=dtype)
    diagonal = torch.cat([cliques[:1, :n, :n], cliques[1:, :n, :n] + cliques[:-1, n:, n:]])
    lower = cliques[: count - 1, n:, :n].clone()
    return Band(diagonal, lower), Band(list(diagonal), list(lower))


def near(even: Any, listed: Any, dtype: torch.dtype) -> None:
    """The same but for rounding, whatever holds the blocks."""
    a, b = (torch.stack(list(x)) if isinstance(x, list | tuple) else x for x in (even, listed))
    assert a.shape == b.shape
    scale = 1.0 + float(b.abs().max())
    assert float((a - b).abs().max()) <= 1e4 * torch.finfo(dtype).eps * scale


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(1, 9), FLOATS)
def test_factors_inverses_and_completions_side_by_side(
    seed: int, count: int, n: int, dtype: torch.dtype
) -> None:
    even, listed = definite(seed, count, n, dtype)
    first, second = blocks.factorize(even), blocks.factorize(listed)
    assert first is not None and second is not None
    near(first.pivots, second.pivots, dtype)
    near(first.below, second.below, dtype)
    assert first.logdet == pytest.approx(second.logdet, rel=1e-4, abs=1e-3)
    dense = blocks.inverse(first)
    near(dense, blocks.inverse(second), dtype)
    near(dense, dense.T, dtype)
    for part, other in zip(blocks.inverse_band(first), blocks.inverse_band(second), strict=True):
        near(part, other, dtype)
    band = blocks.band_of(dense, [n] * count, even=True)
    near(band.diagonal, blocks.band_of(dense, [n] * count).diagonal, dtype)
    near(band.lower, blocks.band_of(dense, [n] * count).lower, dtype)

    one, two = blocks.factorize_cliques(even), blocks.factorize_cliques(listed)
    assert one is not None and two is not None
    near(one.rest, two.rest, dtype)
    full = blocks.completion(even, one)
    near(full, blocks.completion(listed, two), dtype)
    right = normal(torch.Generator().manual_seed(1), count * n, 5, dtype=dtype)
    near(blocks.completion_times(one, even.diagonal[0], right), full @ right, dtype)
    for part, other in zip(
        blocks.clique_matrices(even), blocks.clique_matrices(listed), strict=True
    ):
        near(part, other, dtype)
    assert even.inner(even) == pytest.approx(listed.inner(listed), rel=1e-4)
    near(even.plus(0.5, even).lower, listed.plus(0.5, listed).lower, dtype)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 7), st.integers(1, 6), RANGES)
def test_a_repaired_dual_point_is_worth_the_same_in_both_forms(
    seed: int, layers: int, n: int, slopes: tuple[float, float]
) -> None:
    problem = chain(seed, layers, n, (n, 2), *slopes)
    even, listed = definite(seed, layers + 1, n, torch.float64)
    found = repaired_value(problem, even)
    assert 0.0 < found == pytest.approx(repaired_value(problem, listed), rel=1e-8)
    even.diagonal[layers // 2, 0, 0] = -1.0
    assert repaired_value(problem, even) == 0.0


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 6))
def test_the_band_of_a_product_of_any_matrices(seed: int, count: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = (normal(generator, count * n, count * n) for _ in range(2))
    found = blocks.band_of_product(left, right, [n] * count, even=True)
    mean = (left @ right + right.T @ left.T) / 2.0
    near(found.diagonal, blocks.band_of(mean, [n] * count).diagonal, torch.float64)
    near(found.lower, blocks.band_of(mean, [n] * count).lower, torch.float64)


@pytest.mark.parametrize("place", [(0, 0, 0), (2, 1, 1), (3, 2, 2)])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_what_is_not_positive_definite_has_no_factor(
    place: tuple[int, int, int], value: float
) -> None:
    even, _ = definite(0, 4, 3, torch.float64)
    even.diagonal[place] = value
    assert blocks.factorize(even) is None
    assert blocks.factorize_cliques(even) is None


def chain(
    seed: int, layers: int, n: int, ends: tuple[int, int], low: float, high: float
) -> CertifyProblem:
    generator = torch.Generator().manual_seed(seed)
    widths = [ends[0], *[n] * layers, ends[1]]
    weights = tuple(normal(generator, b, a) / max(a, b) ** 0.5 for a, b in pairwise(widths))
    ends_of = (torch.full((n,), low).double(), torch.full((n,), high).double())
    return CertifyProblem(weights, (Slopes(*ends_of),) * layers)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 7), st.integers(2, 6), RANGES, st.booleans(), FLOATS)
def test_the_operator_side_by_side_is_the_operator(
    seed: int, layers: int, n: int, slopes: tuple[float, float], held: bool, dtype: torch.dtype
) -> None:
    given = chain(seed, layers, n, (n - 1, 3), *slopes)
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.zeros(layers * n, dtype=torch.float64)
    fixed[1] = 2.0 * held
    even = operator_of(given, fixed).rounded(dtype)
    assert isinstance(even, EvenOperator)
    plain = LmiOperator(even.problem, even.fixed)
    y = normal(generator, 1 + layers * n - held, dtype=dtype).abs()
    for kind in ("slack", "direction"):
        for part, other in zip(getattr(even, kind)(y), getattr(plain, kind)(y), strict=True):
            near(part, other, dtype)
    size = even.order
    p, z, right = (normal(generator, size, size, dtype=dtype) for _ in range(3))
    p, z = p + p.T, z + z.T
    near(even.adjoint(even.band_of(p)), plain.adjoint(plain.band_of(p)), dtype)
    near(even.adjoint(plain.band_of(p)), plain.adjoint(plain.band_of(p)), dtype)
    forms = [[op.forms(m) for m in (z, p)] for op in (even, plain)]
    for one, other in zip(forms[0][0][:-1], forms[1][0][:-1], strict=True):
        near(one, other, dtype)
    near(schur_complement(*forms[0]), schur_complement(*forms[1]), dtype)
    rows = [op.rows(right) for op in (even, plain)]
    near(even.times(y, right, rows[0]), plain.times(y, right, rows[1]), dtype)
    near(
        even.adjoint_of_product(right, rows[0], p),
        plain.adjoint_of_product(right, rows[1], p),
        dtype,
    )


def test_the_schur_complement_is_the_trace_of_its_definition() -> None:
    given = chain(3, 4, 3, (3, 2), -0.2, 1.1)
    op = LmiOperator(given, torch.zeros(12, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    z, p = (normal(generator, op.order, op.order) for _ in range(2))
    z, p = z + z.T, p + p.T
    found = schur_complement(op.forms(z), op.forms(p))
    at = blocks.block_slices(op.sizes)

    def matrix(k: int) -> Tensor:
        band, dense = op.direction(torch.eye(13, dtype=torch.float64)[k]), torch.zeros_like(p)
        for s, block in zip(at, band.diagonal, strict=True):
            dense[s, s] = block
        for a, b, block in zip(at, at[1:], band.lower, strict=False):
            dense[b, a], dense[a, b] = block, block.T
        return dense

    for i, j in ((0, 0), (0, 5), (3, 3), (2, 11), (12, 7)):
        trace = torch.trace(matrix(i) @ z @ matrix(j) @ p)
        assert float(found[i, j]) == pytest.approx(float(trace), rel=1e-10, abs=1e-10)


def alone(make: Callable[..., Any], problem: CertifyProblem, monkeypatch: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(interior_point, "operator_of", lambda p, fixed: LmiOperator(p, fixed))
        return make(problem)


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-0.2, 1.1)])
@pytest.mark.parametrize("layers, n, ends", [(6, 5, (2, 1)), (12, 8, (8, 3)), (24, 14, (14, 14))])
def test_both_forms_prove_the_same_optimum(
    layers: int,
    n: int,
    ends: tuple[int, int],
    slopes: tuple[float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = reduce_certify(chain(1, layers, n, ends, *slopes)).problem
    tol = 1e-6

    def solved(problem: CertifyProblem) -> Any:
        return interior_point.certify(problem, SolverConfig(tol=tol))

    even, listed = solved(problem), alone(solved, problem, monkeypatch)
    for one, other in ((even, listed), (listed, even)):
        assert one.status is Status.OPTIMAL
        measured = implied_bound(problem.weights, problem.slopes, one.multiplier)
        assert measured**2 == pytest.approx(one.lip_sq, rel=1e-9)
        assert one.lip_sq - one.lower_lip_sq <= tol * one.lip_sq
        assert one.lower_lip_sq <= other.lip_sq * (1 + 1e-9)


def test_without_the_large_matrix_both_forms_take_the_same_way() -> None:
    problem = reduce_certify(chain(2, 8, 6, (6, 4), 0.0, 1.0)).problem
    start = theta_start(problem, 1.2)
    assert start is not None
    config, found = SolverConfig(tol=1e-4), []
    for kind in (operator_of, LmiOperator):
        op = kind(problem, torch.zeros(sum(problem.widths[1:-1]), dtype=torch.float64))
        run = Progress(config)
        y = torch.cat([torch.tensor([start.lip_sq]).double(), *start.multiplier])
        run.keep(y)
        found.append(certify_large(op, start.multiplier, 2.0 * y, run, config))
    even, listed = found
    assert even.status is Status.OPTIMAL is listed.status
    assert even.lip_sq == pytest.approx(listed.lip_sq, rel=1e-4)
    assert even.lower_lip_sq <= listed.lip_sq


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-0.3, 1.2)])
def test_closed_forms_of_all_thetas_are_those_of_each(slopes: tuple[float, float]) -> None:
    problem = reduce_certify(chain(4, 5, 7, (3, 2), *slopes)).problem
    thetas = (*THETAS, 1.9)
    for found, theta in zip(theta_starts(problem, thetas), thetas, strict=True):
        other = theta_start(problem, theta)
        assert (found is None) == (other is None)
        if found is not None and other is not None:
            assert found.lip_sq == pytest.approx(other.lip_sq, rel=1e-9)
            assert found.theta == theta
            torch.testing.assert_close(found.multiplier, other.multiplier, rtol=1e-8, atol=0.0)


def test_a_theta_that_breaks_down_leaves_the_others() -> None:
    problem = reduce_certify(chain(4, 5, 7, (7, 2), 0.0, 1.0)).problem
    found = theta_starts(problem, (1.0, 2.5))
    assert found[0] is not None and found[1] is None
