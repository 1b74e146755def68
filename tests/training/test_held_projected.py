"""What is held stays in projections, and its multipliers leave room for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from held_nets import (
    Masks,
    X,
    Y,
    assert_kept,
    entries,
    frozen,
    net,
    pruned,
    small,
    some,
    steps,
    values,
)
from torch import Tensor, nn

from admm_lip import Constraint, Lipschitz, certify, project, verify
from admm_lip.networks.sorting_torch import MaxMin
from admm_lip.solvers import ProjectProblem, SolverConfig, Structure, solve_project, unit_slopes
from admm_lip.solvers.lmi import ball_tiles, implied_bound
from admm_lip.training.config import AdmmConfig
from admm_lip.training.multiplier_step import grown


@pytest.mark.parametrize(
    ("activation", "hold", "make"),
    [
        (nn.ReLU, lambda m: {"0.weight": some(m[0].weight)}, small),
        pytest.param(MaxMin, lambda m: frozen(m, 0), small, marks=pytest.mark.slow),
        pytest.param(nn.ReLU, entries, net, marks=pytest.mark.slow),
        pytest.param(nn.ReLU, pruned, net, marks=pytest.mark.slow),
        pytest.param(nn.Tanh, lambda m: frozen(m, 4), net, marks=pytest.mark.slow),
        pytest.param(MaxMin, lambda m: frozen(m, 2), net, marks=pytest.mark.slow),
    ],
)
def test_a_projection_moves_the_rest_to_the_bound(
    activation: type[nn.Module],
    hold: Callable[[nn.Sequential], Masks],
    make: Callable[[type[nn.Module]], nn.Sequential],
) -> None:
    model = make(activation)
    masks = hold(model)
    held = values(model, masks)
    lip = project(model, 1e3, held=masks).certificate.lip
    found = project(model, 0.6 * lip, held=masks)
    assert_kept(found.model, masks, held)
    verify(found.certificate, found.model)
    assert 0.59 * lip < found.certificate.lip <= 0.6 * lip


def test_a_fine_tuning_starts_from_the_projection_and_holds_it() -> None:
    model = small(nn.ReLU)
    masks = {"0.weight": some(model[0].weight)}
    held, lip = values(model, masks), certify(model).lip
    taught = project(model, 0.6 * lip, held=masks, finetune=(X, Y), epochs=1, progress=False)
    assert_kept(taught.model, masks, held)
    assert taught.certificate.lip <= 0.6 * lip


def test_a_frozen_layer_is_projected_as_by_an_interior_point_solver() -> None:
    """One hidden layer, its T fixed by the same certificate: the same distance."""
    torch.manual_seed(0)
    weights = tuple(torch.randn(s).double() for s in ((6, 4), (3, 6)))
    held = torch.ones(6, 4, dtype=torch.bool)
    structure = (Structure(held=held), Structure())
    multiplier = (torch.full((6,), 0.5).double(),)
    problem = ProjectProblem(
        weights, unit_slopes(weights), multiplier, bound=6.0, structure=structure
    )
    found = {
        name: solve_project(problem, SolverConfig(name, tol=1e-8, fallback=()))
        for name in ("native", "clarabel")
    }
    for solution in found.values():
        assert torch.equal(solution.weights[0], weights[0])
    assert found["native"].distance == pytest.approx(found["clarabel"].distance, rel=1e-5)


def test_every_multiplier_of_a_run_leaves_room_for_what_is_held() -> None:
    model = small(nn.ReLU)
    model[2].requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    config = AdmmConfig(round_steps=2, multiplier_every=1)
    constraint = Constraint(model, Lipschitz(1.0), config).attach(optimizer)
    begun = constraint.state.multiplier
    for _ in range(5):
        steps(model, optimizer, 2)
        state = constraint.state
        ball = ball_tiles(constraint.terms.slopes, state.multiplier, state.target_sq, 4, 3)
        assert ball.norm(state.consensus) <= 1.0 + 1e-9
    assert not torch.allclose(begun[0], state.multiplier[0], rtol=0.1)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_scaled_layer_takes_the_multipliers_before_it_along(layer: int) -> None:
    weights = [m.weight.detach().double() for m in net() if isinstance(m, nn.Linear)]
    slopes = unit_slopes(weights)
    multiplier = tuple(t.double() for t in certify_multiplier(net()))
    before = implied_bound(weights, slopes, multiplier)
    weights[layer] = 3.0 * weights[layer]
    after = implied_bound(weights, slopes, grown(multiplier, 9.0, layer))
    assert after == pytest.approx(3.0 * before, rel=1e-9)


def certify_multiplier(model: nn.Module) -> list[Tensor]:
    return [torch.tensor(t) for t in certify(model).multiplier]
