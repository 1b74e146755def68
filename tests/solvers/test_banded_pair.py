"""The primal-dual iteration that is linear in depth, against dense matrices and solver."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from oracles import positive_net, random_net
from torch import Tensor

from admm_lip.solvers.config import SolverConfig
from admm_lip.solvers.native.interior import interior_point
from admm_lip.solvers.native.large import without_schur
from admm_lip.solvers.native.large.banded_primal_dual import (
    banded_direction,
    bordered_band,
    first_pair,
    follow_banded,
    solve_system,
)
from admm_lip.solvers.native.large.markov import Markov, band_between, markov
from admm_lip.solvers.native.large.without_schur import paired
from admm_lip.solvers.native.lmi.block_cholesky import (
    Band,
    band_of,
    completion,
    factorize,
    factorize_cliques,
    inverse,
    inverse_band,
)
from admm_lip.solvers.native.lmi.checkpoints import Trouble
from admm_lip.solvers.native.lmi.closed_forms import theta_start
from admm_lip.solvers.native.lmi.lmi_operator import LmiOperator, schur_complement
from admm_lip.solvers.native.lmi.primal_dual_pair import Pair
from admm_lip.solvers.native.lmi.progress import Progress
from admm_lip.solvers.problem import CertifyProblem, Slopes
from admm_lip.solvers.reduction import reduce_certify

SIZES = (4, 6, 3, 7, 5)


def random_band(sizes: tuple[int, ...], seed: int, definite: bool) -> Band:
    """The band of a random symmetric matrix."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return band_of(root @ root.T + torch.eye(n) if definite else root + root.T, sizes)


def dense_of(band: Band) -> Tensor:
    """Zero outside the band."""
    sizes = [d.shape[0] for d in band.diagonal]
    at = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    blocks = [slice(a, b) for a, b in pairwise(at)]
    dense = torch.zeros(at[-1], at[-1], dtype=torch.float64)
    for block, d in zip(blocks, band.diagonal, strict=True):
        dense[block, block] = d
    for (here, after), b in zip(pairwise(blocks), band.lower, strict=True):
        dense[after, here], dense[here, after] = b, b.T
    return dense


def completed(band: Band) -> tuple[Markov, Tensor]:
    cliques = factorize_cliques(band)
    chain = markov(band, cliques)
    assert cliques is not None and chain is not None
    return chain, completion(band, cliques)


def operator(widths: tuple[int, ...], low: float = 0.0, positive: bool = False) -> LmiOperator:
    net = positive_net(widths, 3) if positive else random_net(widths, 3)
    weights = tuple(torch.as_tensor(w) for w in net.weights)
    ones = [torch.ones(n, dtype=torch.float64) for n in widths[1:-1]]
    problem = CertifyProblem(weights, tuple(Slopes(low * e, e) for e in ones))
    problem = reduce_certify(problem).problem
    return LmiOperator(problem, torch.zeros(sum(problem.widths[1:-1])).double())


def outset(op: LmiOperator) -> torch.Tensor:
    """Inside, from a closed form."""
    start = theta_start(op.problem, 1.1)
    assert start is not None
    return 2.0 * torch.cat([torch.tensor([start.lip_sq]).double(), *start.multiplier])


def started(op: LmiOperator) -> Pair:
    """The first pair there."""
    pair = first_pair(op, outset(op))
    assert isinstance(pair, Pair)
    return pair


def test_the_band_of_a_product_is_that_of_the_dense_matrices() -> None:
    (z, dense_z), (p, dense_p) = (completed(random_band(SIZES, s, True)) for s in (1, 2))
    middle = random_band(SIZES, 3, False)
    product = dense_z @ dense_of(middle) @ dense_p
    expected = band_of((product + product.T) / 2.0, SIZES)
    found = band_between(z, middle, p)
    torch.testing.assert_close(found.diagonal, expected.diagonal)
    torch.testing.assert_close(found.lower, expected.lower)


@pytest.mark.parametrize("low", [0.0, -0.3, 0.2])
def test_product_and_band_are_those_of_the_dense_schur_complement(low: float) -> None:
    op = operator((*SIZES, 2), low)
    sizes = tuple(op.sizes)
    (z, dense_z), (p, dense_p) = (completed(random_band(sizes, s, True)) for s in (1, 2))
    dense = schur_complement(op.forms(dense_z), op.forms(dense_p))
    dy = torch.linspace(-1.0, 2.0, dense.shape[0], dtype=torch.float64)
    found = op.adjoint(band_between(z, op.direction(dy), p))
    torch.testing.assert_close(found, dense @ dy, rtol=1e-9, atol=1e-9 * float(dense.abs().max()))
    near, layers = bordered_band(op, z, p), [1, *sizes[1:]]
    rows = [list(r.split(layers, dim=1)) for r in dense.split(layers)]
    torch.testing.assert_close(near.diagonal, [rows[k][k] for k in range(len(layers))])
    torch.testing.assert_close(near.lower, [rows[k + 1][k] for k in range(len(layers) - 1)])


def test_the_directions_solve_their_equations() -> None:
    op = operator((12,) * 9)
    pair = started(op)
    z, dense_z = completed(pair.z)
    p = markov(inverse_band(pair.factor))
    assert p is not None
    dense = schur_complement(op.forms(dense_z), op.forms(inverse(pair.factor)))
    found = solve_system(op, z, p, 1e-10)
    assert found is not None
    for solution, side in ((found.by_b, found.b), (found.by_g, found.g)):
        torch.testing.assert_close(solution, torch.linalg.solve(dense, side), rtol=1e-6, atol=1e-8)


def test_a_step_takes_back_what_is_infeasible() -> None:
    op = operator((12,) * 9)
    pair = started(op)
    way = banded_direction(op, pair)
    assert way is not None
    whole = op.adjoint(pair.z.plus(1.0, way.dz))
    before = op.adjoint(pair.z)
    target = torch.zeros_like(whole)
    target[0] = 1.0
    assert float((before - target).norm()) > 0.29
    assert float((whole - target).norm()) < 0.03


@pytest.mark.parametrize(
    ("widths", "low", "positive"),
    [((12,) * 9, 0.0, False), ((9, 14, 6, 11, 5), -0.2, False), ((10,) * 6, 0.0, True)],
)
def test_it_ends_where_the_dense_iteration_does(
    widths: tuple[int, ...], low: float, positive: bool
) -> None:
    op = operator(widths, low, positive)
    exact = interior_point.certify(op.problem, SolverConfig(tol=1e-7))
    run = Progress(SolverConfig())
    pair, lower = follow_banded(op, started(op), run, 1e-5)
    assert float(pair.y[0]) * (1.0 - 1e-5) <= lower <= exact.lip_sq * (1 + 1e-9)
    assert factorize(op.slack(pair.y)) is not None
    assert exact.lower_lip_sq <= float(pair.y[0]) <= exact.lip_sq * (1 + 2e-5)
    assert math.isfinite(float(pair.y.sum())) and 0 < run.iterations <= 40


@pytest.mark.parametrize("scale", [1.0, 1e8])
def test_from_single_precision_it_goes_on_to_a_gap_proven_in_double(scale: float) -> None:
    op = operator((12,) * 9)
    exact = interior_point.certify(op.problem, SolverConfig(tol=1e-8))
    y, run = outset(op), Progress(SolverConfig())
    y[0] *= scale  # far from the optimum, where single precision has few digits for it
    lower = paired(op, y, run, SolverConfig(tol=1e-7))
    assert lower is not None and run.best is not None
    assert float(run.best[0]) * (1.0 - 1e-7) <= lower <= exact.lip_sq * (1.0 + 1e-9)
    assert factorize(op.slack(run.best)) is not None


@pytest.mark.parametrize("name", ["ROUGH_GAP", "refined"])
def test_where_single_precision_leads_nowhere_double_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A gap that it never reaches, or a point that does not hold in double.
    other = {"ROUGH_GAP": 1e-12, "refined": lambda *_: Trouble.NO_FACTOR}
    monkeypatch.setattr(without_schur, name, other[name])
    op, run = operator((12,) * 9), Progress(SolverConfig())
    lower = paired(op, outset(op), run, SolverConfig(tol=1e-7))
    assert lower is not None and run.best is not None
    assert float(run.best[0]) * (1.0 - 1e-7) <= lower
    assert factorize(op.slack(run.best)) is not None


def test_limits_stop_it_at_a_feasible_point() -> None:
    op = operator((12,) * 9)
    run = Progress(SolverConfig(max_iterations=2))
    pair, lower = follow_banded(op, started(op), run, 1e-9)
    assert 0.0 < lower < float(pair.y[0])
    assert run.limited and run.iterations == 2
    assert factorize(op.slack(pair.y)) is not None
