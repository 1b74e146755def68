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
from admm_lip.solvers.native.large import wide_band as wide
from admm_lip.solvers.native.large import without_schur
from admm_lip.solvers.native.large.banded_primal_dual import (
    System,
    _second_order,
    banded_direction,
    follow_banded,
    system_of,
)
from admm_lip.solvers.native.large.conjugate_gradients import solve_completed
from admm_lip.solvers.native.large.markov import Markov, band_between, markov
from admm_lip.solvers.native.large.schur_band import bordered_band
from admm_lip.solvers.native.large.wide_band import wide_band
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
from admm_lip.solvers.native.lmi.costs import Costs
from admm_lip.solvers.native.lmi.lmi_operator import LmiOperator, schur_complement
from admm_lip.solvers.native.lmi.primal_dual_pair import Pair, first_pair
from admm_lip.solvers.native.lmi.progress import Progress
from admm_lip.solvers.problem import CertifyProblem, Slopes
from admm_lip.solvers.reduction import reduce_certify
from admm_lip.solvers.solution import CertifyClaim, Status

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


def test_the_preconditioner_inverts_the_completion() -> None:
    band = random_band(SIZES, 1, True)
    _, dense = completed(band)
    cliques = factorize_cliques(band)
    assert cliques is not None
    x = torch.linspace(-1.0, 2.0, dense.shape[0], dtype=torch.float64)
    torch.testing.assert_close(solve_completed(band, cliques, dense @ x), x)


def linearised(op: LmiOperator) -> tuple[Pair, Markov, Markov, Tensor]:
    """The first pair, its Z and P as chains, and the dense Schur complement."""
    pair = started(op)
    z, dense_z = completed(pair.z)
    p = markov(inverse_band(pair.factor))
    assert p is not None
    return pair, z, p, schur_complement(op.forms(dense_z), op.forms(inverse(pair.factor)))


@pytest.mark.parametrize("wide", [False, True])
def test_the_system_is_solved_for_one_side_after_another(wide: bool) -> None:
    op = operator((12,) * 14)
    _, z, p, dense = linearised(op)
    system = system_of(op, z, p, wide)
    assert isinstance(system, System)
    g = op.adjoint(p.band)
    b = torch.zeros_like(g)
    b[0] = 1.0
    one, alone = system.solve(b, 1e-10), system.solve(g, 1e-10)
    both = system.solve(b + g, 1e-10, one.searched)
    for solved, side in ((one, b), (alone, g), (both, b + g)):
        torch.testing.assert_close(solved.x, torch.linalg.solve(dense, side), rtol=1e-6, atol=1e-8)
    d, images, curvatures = one.searched
    torch.testing.assert_close(images, d @ dense)
    new = torch.cat([d, both.searched.directions])
    cross = new @ dense @ new.T
    torch.testing.assert_close(torch.diagonal(cross)[: len(d)], curvatures)
    scale = torch.diagonal(cross).rsqrt()
    assert float((scale[:, None] * cross * scale - torch.eye(len(new))).abs().max()) < 1e-3
    assert len(both.searched.curvatures) <= len(alone.searched.curvatures)


def test_what_was_searched_is_not_searched_again() -> None:
    op = operator((12,) * 14)
    _, z, p, _ = linearised(op)
    system = system_of(op, z, p, False)
    assert isinstance(system, System)
    side = op.adjoint(p.band)
    one = system.solve(side, 1e-6)
    again = system.solve(-3.0 * side, 1e-5, one.searched)
    assert len(again.searched.curvatures) == 0 < len(one.searched.curvatures)
    torch.testing.assert_close(again.x, -3.0 * one.x)


@pytest.mark.parametrize("low", [0.0, -0.3])
def test_the_wide_band_is_that_of_the_dense_schur_complement(low: float) -> None:
    op = operator((4, 6, 3, 7, 5, 4, 6, 5, 3, 5, 4, 6, 3, 2), low)
    _, z, p, dense = linearised(op)
    near = wide_band(op, z, p)
    sizes = [d.shape[0] for d in near.diagonal]
    assert len(sizes) == 3 and sum(sizes) == dense.shape[0]
    rows = [list(r.split(sizes, dim=1)) for r in dense.split(sizes)]
    torch.testing.assert_close(near.diagonal, [rows[k][k] for k in range(3)])
    torch.testing.assert_close(near.lower, [rows[k + 1][k] for k in range(2)])


def test_blocks_of_many_neurons_hold_fewer_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    op = operator((12,) * 14)
    _, z, p, dense = linearised(op)
    monkeypatch.setattr(wide, "_MOST_NEURONS", 12)
    near = wide_band(op, z, p)
    assert [d.shape[0] for d in near.diagonal] == [13] + [12] * 11
    torch.testing.assert_close(near.lower[3], dense[49:61, 37:49])


def test_a_wider_band_is_a_better_positive_preconditioner() -> None:
    op = operator((10,) * 17)
    pair, _ = follow_banded(op, started(op), Progress(SolverConfig()), 1e-2)
    z, p = markov(pair.z), markov(inverse_band(pair.factor))
    assert z is not None and p is not None
    products = []
    for wide_one in (False, True):
        system = system_of(op, z, p, wide_one)
        assert isinstance(system, System)
        size = len(pair.y)
        columns = [system.precondition(row) for row in torch.eye(size, dtype=torch.float64)]
        matrix = torch.stack(columns)
        scale = torch.diagonal(matrix).rsqrt()
        matrix = scale[:, None] * matrix * scale
        assert float((matrix - matrix.T).abs().max()) < 1e-9
        assert float(torch.linalg.eigvalsh(matrix)[0]) > 0.0
        products.append(len(system.solve(op.adjoint(p.band), 1e-3).searched.curvatures))
    assert products[1] <= products[0] / 2


@pytest.mark.parametrize("widths", [(9, 12, 4), (8,) * 7])
def test_the_second_order_is_how_the_completion_moves(widths: tuple[int, ...]) -> None:
    op = operator(widths)
    pair, z, p, dense = linearised(op)
    system = System(op, p, z, lambda r: r)
    dy = -torch.linalg.solve(dense, torch.eye(len(dense), dtype=torch.float64)[0])
    ds, change = op.direction(dy), system.between(dy)
    dz = pair.z.times(-1.0).plus(-1.0, change)
    found = _second_order(system, ds, change, dz, 1e-6)
    if len(widths) == 3:  # two blocks: the completion is the band
        moved = dense_of(dz)
    else:
        ahead, behind = (completed(pair.z.plus(a, dz))[1] for a in (1e-4, -1e-4))
        moved = (ahead - behind) / 2e-4
    product = moved @ dense_of(ds) @ inverse(pair.factor)
    expected = band_of((product + product.T) / 2.0, op.sizes)
    for blocks, others in zip(found, expected, strict=True):
        torch.testing.assert_close(blocks, others, rtol=1e-3, atol=1e-5)
    zero = _second_order(system, ds, change, dz, 0.0)
    assert all(bool((block == 0.0).all()) for part in zero for block in part)


@pytest.mark.parametrize("wide_one", [False, True])
def test_a_step_takes_back_what_is_infeasible(wide_one: bool) -> None:
    op = operator((12,) * 9)
    pair = started(op)
    found = banded_direction(op, pair, wide_one)
    assert isinstance(found, tuple)
    way, products = found
    assert products > 0
    whole = op.adjoint(pair.z.plus(1.0, way.dz))
    before = op.adjoint(pair.z)
    target = torch.zeros_like(whole)
    target[0] = 1.0
    assert float((before - target).norm()) > 0.29
    assert float((whole - target).norm()) < 0.03


def without_the_matrix(op: LmiOperator, monkeypatch: pytest.MonkeyPatch) -> CertifyClaim:
    """The claim of the iteration that a deep network gets."""
    monkeypatch.setattr(Costs, "dense_is_best", lambda *_, pairs: not pairs)
    return interior_point.certify(op.problem, SolverConfig(tol=1e-7))


@pytest.mark.parametrize("low", [0.0, -0.2])
def test_neither_permuted_nor_scaled_neurons_move_the_bound(
    low: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = operator((11,) * 12, low)
    claim = without_the_matrix(op, monkeypatch)
    assert claim.status is Status.OPTIMAL and " 0 centring" in claim.message
    generator = torch.Generator().manual_seed(0)
    weights, slopes = list(op.problem.weights), list(op.problem.slopes)
    for k, s in enumerate(slopes):
        order = torch.randperm(len(s.alpha), generator=generator)
        scale = torch.rand(len(order), generator=generator, dtype=torch.float64) + 0.5
        weights[k] = scale[:, None] * weights[k][order]
        weights[k + 1] = weights[k + 1][:, order] / scale
    other = without_the_matrix(
        LmiOperator(CertifyProblem(tuple(weights), tuple(slopes)), op.fixed), monkeypatch
    )
    assert other.status is Status.OPTIMAL
    assert other.lip_sq == pytest.approx(claim.lip_sq, rel=3e-7)
    assert other.lower_lip_sq <= claim.lip_sq and claim.lower_lip_sq <= other.lip_sq


def test_what_it_leaves_open_the_dense_form_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    op = operator((12,) * 9)
    monkeypatch.setattr(without_schur, "paired", lambda *_: 0.0)  # no lower bound, no step
    claim = without_the_matrix(op, monkeypatch)
    assert claim.status is Status.OPTIMAL
    assert claim.lip_sq * (1.0 - 1e-7) <= claim.lower_lip_sq <= claim.lip_sq


def test_where_there_is_no_pair_the_descent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    op = operator((12,) * 9)
    monkeypatch.setattr(without_schur, "first_pair", lambda *_: Trouble.NO_FACTOR)
    monkeypatch.setattr(Costs, "dense_is_best", lambda *_, **__: False)
    claim = interior_point.certify(op.problem, SolverConfig())
    assert claim.status is Status.INACCURATE and "60 first-order" in claim.message
    assert 0.0 < claim.lower_lip_sq < claim.lip_sq < float("inf")


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
