"""The certificate is the least proven bound of all candidates, whatever their multipliers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from test_functionals import stacked
from torch import nn

from admm_lip import SolverConfig, certify, verify
from admm_lip.certificates import chain_bound, least_proven
from admm_lip.certificates.certifier import names_of
from admm_lip.certificates.chain_bound import Task
from admm_lip.certificates.claim_matrices import Matrices
from admm_lip.certificates.least_proven import (
    _INSIDE,
    Candidate,
    Claim,
    Search,
    _gathered,
    free_ranges,
    tempered,
)
from admm_lip.certificates.norm_product import spectral_norm
from admm_lip.networks.chain import read_network
from admm_lip.networks.network import Chain
from admm_lip.solvers import solve_certify
from admm_lip.solvers.closed_form import closed_form
from admm_lip.solvers.deadline import Deadline
from admm_lip.solvers.lmi import implied_bound
from admm_lip.solvers.native.lmi import costs


def small_lenet(steps: int = 0) -> nn.Sequential:
    """Two convolutions with pools and three dense layers on 8 x 8 pictures, trained a little."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4)),
    )
    x = torch.randn(64, 1, 8, 8)
    y = x.flatten(1)[:, :4].argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def claim_of(chain: Chain) -> Claim:
    matrices = Matrices.of(chain)
    norms = [spectral_norm(w) for w in matrices.weights]
    return Task(matrices, matrices, norms, names_of(chain, matrices)).claim(Deadline(None))


def solved(claim: Claim) -> Candidate:
    found = solve_certify(claim.problem)
    return Candidate("lipsdp", tuple(t.numpy() for t in found.multiplier), found.lip)


def proven(claim: Claim, *candidates: Candidate) -> float:
    search = Search(claim)
    search.offer(candidates)
    assert search.best is not None, search.reason
    return search.best.lip


def drifted(candidate: Candidate, mute: int) -> Candidate:
    """The same, with the multiplier of one neuron of the first layer next to nothing."""
    first = candidate.multiplier[0].copy()
    first[mute] = 1e-28
    return replace(candidate, multiplier=(first, *candidate.multiplier[1:]))


def with_mute_neuron(steps: int = 0) -> tuple[Chain, int]:
    """A chain that holds rounding errors of merged layers, and in it a neuron hardly heard."""
    chain = read_network(small_lenet(steps), (1, 8, 8)).chain()
    weights = list(chain.weights)
    weights[1] = weights[1].copy()
    weights[1][:, 5] *= 1e-20
    assert chain.errors[1] > 0.0
    return replace(chain, weights=tuple(weights)), 5


def test_a_neuron_that_hardly_matters_does_not_cost_the_others_their_bound() -> None:
    chain, mute = with_mute_neuron()
    claim = claim_of(chain)
    optimal = solved(claim)
    far = drifted(optimal, mute)
    # The premise: the margin of the drifted multiplier is what the proof cannot afford.
    assert claim.margin(far) > 1e-3 > 1e-8 > claim.margin(tempered(claim, far)[0])
    assert claim.implied(far.multiplier) == pytest.approx(optimal.lip, rel=1e-6)
    assert proven(claim, far) <= claim.scales.lip(optimal.lip) * (1.0 + 1e-6)


def test_a_multiplier_within_its_scale_is_left_as_it_is() -> None:
    claim = claim_of(read_network(small_lenet(20), (1, 8, 8)).chain())
    optimal = solved(claim)
    assert tempered(claim, optimal)[0] is optimal
    assert proven(claim, optimal) <= claim.scales.lip(optimal.lip) * (1.0 + 1e-6)


def test_tempering_that_loosens_the_bound_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    chain, mute = with_mute_neuron()
    claim = claim_of(chain)
    far = drifted(solved(claim), mute)
    wrong = [(0.0 * t, 1e3 * _INSIDE + 0.0 * t) for t in far.multiplier]
    monkeypatch.setattr(least_proven, "free_ranges", lambda *_: wrong)
    monkeypatch.setattr(least_proven, "_DECADES", (-3,))
    assert tempered(claim, far)[0] is far


def test_no_multiplier_leaves_its_own_range_to_be_like_the_others() -> None:
    # A neuron scaled by c needs its multiplier over c^2: far from the median, and rightly so.
    first, second, last = oracles.random_net((5, 8, 7, 3), 0).weights
    c = np.ones(8)
    c[0], c[1] = 1e9, 1e-9
    moved = stacked(c[:, None] * first, second / c, last)
    claim = claim_of(read_network(moved).chain())
    optimal = solved(claim)
    gathered = _gathered(optimal, free_ranges(claim.problem, optimal), 1e2)
    assert claim.implied(gathered.multiplier) == pytest.approx(optimal.lip, rel=1e-6, abs=0.0)


@pytest.mark.parametrize("steps", [0, 30])
def test_a_small_lenet_on_the_large_path_is_below_every_other_bound(
    monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(costs, "DENSE_LIMIT", 50)
    monkeypatch.setattr(costs, "PAIR_WORK", 0.0)  # as for layers of thousands of neurons
    model, bounds = small_lenet(steps), []
    claim = claim_of(read_network(model, (1, 8, 8)).chain())
    found = closed_form(claim.problem)
    assert found is not None
    closed = Candidate("closed_form", tuple(t.numpy() for t in found[0]), found[1])
    for most in (1, 20, 80):
        certificate = certify(model, (1, 8, 8), solver=SolverConfig(max_iterations=most))
        verify(certificate, model)
        bounds.append(certificate.lip)
        implied = solve_certify(claim.problem, SolverConfig(max_iterations=most)).lip
        assert certificate.lip <= claim.scales.lip(implied) * (1.0 + 1e-6)
        assert certificate.lip <= certificate.norm_product * (1.0 + 1e-6)
    assert bounds[0] <= proven(claim, closed) * (1.0 + 1e-6)
    assert all(b <= a * (1.0 + 1e-9) for a, b in itertools.pairwise(bounds))


def test_the_closed_form_is_tried_where_the_solver_s_answer_is_lost_in_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = stacked(*oracles.random_net((5, 8, 7, 3), 0).weights)
    own = certify(model)

    def lossy(problem: object, *rest: object) -> object:
        solution = solve_certify(problem, *rest)  # type: ignore[arg-type]
        far = tuple(0.5 * t for t in solution.multiplier)
        assert implied_bound(problem.weights, problem.slopes, far) == float("inf")  # type: ignore[attr-defined]
        return replace(solution, multiplier=far)

    monkeypatch.setattr(chain_bound, "solve_certify", lossy)
    certificate = certify(model)
    assert certificate.method == "closed_form"
    assert own.lip < certificate.lip < certificate.norm_product
    verify(certificate, model)


def test_candidates_that_cannot_better_what_is_proven_are_not_tried() -> None:
    claim = claim_of(read_network(stacked(*oracles.random_net((5, 8, 7, 3), 0).weights)).chain())
    good = solved(claim)
    tried: list[str] = []
    search = Search(replace_unproven(claim, tried))
    search.offer([replace(good, method="worse", lip=2.0 * good.lip), good])
    assert set(tried) == {"lipsdp"}


def replace_unproven(claim: Claim, tried: list[str]) -> Claim:
    class Watched(Claim):
        def unproven(self, own: Candidate) -> str | None:
            tried.append(own.method)
            return super().unproven(own)

    return Watched(claim.matrices, claim.scales, claim.problem, claim.names, claim.deadline)
