"""What is frozen, pruned or masked stays to the bit, under every form of a constraint."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from admm_lip import (
    All,
    Constraint,
    Lipschitz,
    Monotone,
    TrainConfig,
    Units,
    certify,
    project,
    train,
    verify,
)
from admm_lip.networks.sorting_torch import MaxMin
from admm_lip.solvers import ProjectProblem, SolverConfig, Structure, solve_project, unit_slopes
from admm_lip.solvers.lmi import ball_tiles, implied_bound
from admm_lip.training.checkpoint import CheckpointError
from admm_lip.training.config import AdmmConfig
from admm_lip.training.multiplier_step import grown

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 0, -1, 0])
Y = (X[:, 0] > 2.0).long() + (X[:, 1] > 0.0).long()
SHORT = TrainConfig(epochs=10, batch_size=16)
LAYERS = (0, 2, 4)


def net(activation: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 12), activation(), nn.Linear(12, 8), activation(), nn.Linear(8, 3)
    )


def small(activation: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3))


def some(weight: Tensor, share: float = 0.15) -> Tensor:
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < share


Masks = dict[str, Tensor]


def frozen(model: nn.Sequential, *layers: int) -> Masks:
    for k in layers:
        model[k].requires_grad_(False)
    return {}


def sparse(model: nn.Sequential) -> Masks:
    masks = {f"{k}.weight": some(model[k].weight, 0.5) for k in LAYERS}
    for k in LAYERS:
        model[k].weight.data[masks[f"{k}.weight"]] = 0.0
    return masks


def pruned(model: nn.Sequential) -> Masks:
    for k in LAYERS:
        prune.l1_unstructured(model[k], "weight", amount=0.5)
    return {}


def entries(model: nn.Sequential) -> Masks:
    return {"0.weight": some(model[0].weight), "4.weight": some(model[4].weight)}


def values(model: nn.Module, masks: Masks) -> Masks:
    """What has to stay, by name."""
    held = {name: p.detach()[masks[name]] for name, p in model.named_parameters() if name in masks}
    held |= {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    for name, mask in model.named_buffers():
        if name.endswith("_mask"):
            held[name.removesuffix("_mask")] = torch.zeros(int((mask == 0).sum()))
            masks[name.removesuffix("_mask")] = mask == 0
    return copy.deepcopy(held)


def assert_kept(model: nn.Module, masks: Masks, held: Masks) -> None:
    state = model.state_dict()
    for name, value in held.items():
        found = state[name][masks[name]] if name in masks else state[name]
        assert torch.equal(found, value), name
    assert held


BOUND, PRICE = Lipschitz(1.5), Lipschitz(mu=1e-2)


@pytest.mark.parametrize(
    ("activation", "hold", "asked"),
    [
        (nn.ReLU, lambda m: frozen(m, 0), PRICE),
        (nn.ReLU, lambda m: frozen(m, 4), Lipschitz(0.2)),
        (nn.Tanh, lambda m: frozen(m, 0, 4), PRICE),
        (nn.ReLU, sparse, BOUND),
        (nn.Tanh, pruned, Lipschitz(0.3)),
        (nn.ReLU, entries, Lipschitz(0.8)),
        (MaxMin, lambda m: frozen(m, 2), PRICE),
        (MaxMin, pruned, BOUND),
        (MaxMin, sparse, PRICE),
        (MaxMin, entries, BOUND),
    ],
)
def test_what_is_held_stays_and_the_rest_is_trained_and_proven(
    activation: type[nn.Module], hold: Callable[[nn.Sequential], Masks], asked: Lipschitz
) -> None:
    model = net(activation)
    masks = hold(model)
    held, before = values(model, masks), copy.deepcopy(model.state_dict())
    result = train(model, (X, Y), SHORT, constraint=asked, held=masks, progress=False)
    assert_kept(result.model, masks, held)
    verify(result.certificate, result.model)
    assert asked.bound is None or result.certificate.lip <= asked.bound
    first, last = result.history[0], result.history[-1]
    assert last["loss"] < first["loss"]
    if asked.bound is None:
        assert abs(last["lip"] / first["lip"] - 1.0) > 0.02  # it moved by its price
    # The network that went in did not change, its hooks neither.
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert prune.is_pruned(model) == (hold is pruned) and not prune.is_pruned(result.model)


@pytest.mark.parametrize("activation", [nn.ReLU, MaxMin])
def test_masks_that_hold_nothing_change_nothing(activation: type[nn.Module]) -> None:
    masks = {f"{k}.weight": torch.zeros_like(net()[k].weight, dtype=torch.bool) for k in LAYERS}
    plain, masked = (
        train(net(activation), (X, Y), SHORT, constraint=BOUND, held=held, progress=False)
        for held in (None, masks)
    )
    for a, b in zip(plain.model.parameters(), masked.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert plain.certificate.to_json() == masked.certificate.to_json()


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("activation", "hold"),
    [(nn.ReLU, entries), (nn.ReLU, lambda m: frozen(m, 2)), (MaxMin, entries), (MaxMin, sparse)],
)
def test_a_loop_goes_on_from_state_dicts_to_the_identical_end(
    activation: type[nn.Module], hold: Callable[[nn.Sequential], Masks]
) -> None:
    def begin() -> tuple[nn.Module, Any, Constraint]:
        model = net(activation)
        constraint = Constraint(model, BOUND, held=hold(model))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        return model, optimizer, constraint.attach(optimizer)

    model, optimizer, constraint = begin()
    steps(model, optimizer, 21)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (model, optimizer, constraint)], file)
    steps(model, optimizer, 30)
    whole = constraint.finish()
    file.seek(0)
    again = begin()
    for part, kept in zip(again, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(kept)
    steps(again[0], again[1], 30)
    resumed = again[2].finish()
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.certificate.to_json() == resumed.certificate.to_json()
    with pytest.raises(CheckpointError, match="another set of entries held"):
        Constraint(net(activation), BOUND).load_state_dict(constraint.state_dict())


def test_a_run_folder_goes_on_to_the_identical_end(tmp_path: Path) -> None:
    def run(epochs: int, folder: Path, resume: bool) -> nn.Module:
        model = net(MaxMin)
        settings = TrainConfig(bound=1.0, epochs=epochs, batch_size=16, schedule="constant")
        return train(
            model, (X, Y), settings, held=entries(model), run_dir=folder, resume=resume,
            progress=False,
        ).model  # fmt: skip

    run(3, tmp_path / "a", False)
    resumed, whole = run(8, tmp_path / "a", True), run(8, tmp_path / "b", False)
    for a, b in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    ],
)
def test_no_optimizer_moves_what_is_held_even_between_rounds(
    restart: bool, make: Callable[[Any], Any]
) -> None:
    model = net()
    model[2].requires_grad_(False)
    masks = entries(model)
    held = values(model, masks)
    # What is frozen need not be given to the optimizer.
    optimizer = make(p for p in model.parameters() if p.requires_grad)
    constraint = Constraint(model, BOUND, AdmmConfig(restart=restart), held=masks)
    constraint.attach(optimizer)
    for _ in range(20):
        steps(model, optimizer, 1)
        assert_kept(model, masks, held)
        assert float(model[0].weight.grad[masks["0.weight"]].abs().max()) == 0.0
    finished, certificate = constraint.finish()
    assert_kept(finished, masks, held)
    verify(certificate, finished)


def test_an_optimizer_of_a_pruned_network_goes_on_with_it() -> None:
    model = net()
    masks = pruned(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    held = values(model, masks)
    constraint = Constraint(model, BOUND).attach(optimizer)
    steps(model, optimizer, 20)
    finished, certificate = constraint.finish()
    assert finished is model and not prune.is_pruned(model)
    assert_kept(finished, masks, held)
    verify(certificate, finished)


def test_a_start_shrinks_what_may_move_alone() -> None:
    for hold in (lambda m: frozen(m, 0), lambda m: {"2.weight": some(m[2].weight)}):
        model = small(nn.ReLU)
        for k in (0, 2):
            model[k].weight.data *= 6.0
        masks = hold(model)
        held = values(model, masks)
        constraint = Constraint(model, Lipschitz(5.0), held=masks)
        assert_kept(model, masks, held)
        assert 4.0 < certify(model).lip <= 5.0
        constraint.ask(Lipschitz(4.0))
        assert_kept(model, masks, held)
        assert certify(model).lip <= 4.0


def test_fresh_weights_are_drawn_around_what_is_held() -> None:
    model = net()
    model[4].requires_grad_(False)
    masks = {"0.weight": some(model[0].weight)}
    held, before = values(model, masks), copy.deepcopy(model[0].weight.detach())
    Constraint(model, Lipschitz(9.0), AdmmConfig(start="scratch"), held=masks)
    assert_kept(model, masks, held)
    assert not torch.isclose(model[0].weight, before)[~masks["0.weight"]].any()


def test_a_result_goes_on_with_a_layer_frozen() -> None:
    first = train(net(), (X, Y), SHORT, constraint=BOUND, progress=False)
    first.model[0].requires_grad_(False)
    held = values(first.model, {})
    again = train(first, (X, Y), SHORT, constraint=Lipschitz(1.0), progress=False)
    assert_kept(again.model, {}, held)
    assert again.certificate.lip <= 1.0
    verify(again.certificate, again.model)


def test_units_and_a_direction_leave_it_alone_too() -> None:
    units = Units(input_scale=(2.0, 0.5, 4.0, 1.0), output_scale=10.0)
    model = small(nn.ReLU)
    masks = {"0.weight": some(model[0].weight)}
    held = values(model, masks)
    asked = Lipschitz(4.0, units=units)
    result = train(model, (X, X[:, :3]), SHORT, constraint=asked, held=masks, progress=False)
    assert_kept(result.model, masks, held)
    assert result.certificate.lip <= 4.0
    verify(result.certificate, result.model)
    both = All(Lipschitz(4.0), Monotone(increasing=[0], output=0))
    found = train(model, (X, X[:, :3]), SHORT, constraint=both, held=masks, progress=False)
    assert_kept(found.model.core, masks, held)
    verify(found.certificate, found.model)


def images() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), MaxMin(), nn.Conv2d(4, 4, 3, stride=2), MaxMin(),
        nn.Flatten(), nn.Linear(36, 3),
    )  # fmt: skip


@pytest.mark.parametrize("asked", [BOUND, PRICE])
def test_a_network_of_convolutions_keeps_frozen_layers(asked: Lipschitz) -> None:
    model = images()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    held = values(model, {})
    x = torch.randn(32, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    y = (x.mean((1, 2, 3)) > 0).long()
    settings = TrainConfig(epochs=3, batch_size=8)
    result = train(model, (x, y), settings, constraint=asked, progress=False)
    assert_kept(result.model, {}, held)
    verify(result.certificate, result.model)
    nearest = project(model, 0.3, input_shape=(1, 7, 7))
    assert_kept(nearest.model, {}, held)
    assert 0.29 < nearest.certificate.lip <= 0.3
    masks = {"2.weight": some(model[2].weight)}
    with pytest.raises(ValueError, match="held: a kernel is projected frequency by frequency"):
        Constraint(model, asked, held=masks, input_shape=(1, 7, 7))


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


def everything(model: nn.Sequential) -> Masks:
    model.requires_grad_(False)
    return {}


@pytest.mark.parametrize(
    ("hold", "settings", "message"),
    [
        (everything, {}, "model: every weight is frozen or held"),
        (lambda m: {"1.weight": some(m[0].weight)}, {}, r"expected masks of weights .*'1.weight'"),
        (lambda m: {"0.bias": m[0].bias > 0}, {}, "a bias is frozen whole"),
        (lambda m: {"0.weight": some(m[2].weight)}, {}, r"mask of shape \(12, 4\) for 0.weight"),
        (lambda m: {"0.weight": m[0].weight.detach()}, {}, "boolean mask .* got torch.float32"),
        (entries, {"multiplier_step": "lipsdp"}, "expected one of auto, fixed, averaged where"),
        (entries, {"mu": 0.1, "lip_step": "exact"}, "lip_step: 'exact' scales the first layer"),
        (
            lambda m: {f"{k}.weight": some(m[k].weight) for k in LAYERS},
            {"mu": 0.1},
            "mu: a price moves L by scaling one layer",
        ),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(
    hold: Callable[[nn.Sequential], Any], settings: dict[str, Any], message: str
) -> None:
    model = net()
    asked = Lipschitz(mu=settings.pop("mu")) if "mu" in settings else BOUND
    with pytest.raises(ValueError, match=message):
        Constraint(model, asked, AdmmConfig(**settings), held=hold(model))


@pytest.mark.parametrize("activation", [nn.ReLU, MaxMin])
def test_what_exceeds_the_bound_by_itself_is_named_with_its_constant(
    activation: type[nn.Module],
) -> None:
    model = net(activation)
    masks = {f"{k}.weight": torch.zeros_like(model[k].weight, dtype=torch.bool) for k in LAYERS}
    for k in LAYERS:  # a path of 5 * 5 * 5, which no other weight can undo
        model[k].weight.data.abs_()
        model[k].weight.data[0, 0] = 5.0
        masks[f"{k}.weight"][0] = masks[f"{k}.weight"][:, 0] = True
    with pytest.raises(ValueError, match=r"held: what stays .* (constant|norm) (of )?\d"):
        Constraint(model, Lipschitz(1.0), held=masks)


def test_a_mask_in_a_network_that_sorts_pairs_has_what_it_cannot() -> None:
    model = net(MaxMin)
    with pytest.raises(ValueError, match="mu: a price moves the norms of all layers"):
        Constraint(model, PRICE, held={"0.weight": some(model[0].weight)})
    lip = certify(model).lip
    with pytest.raises(ValueError, match="in sums and differences of pairs"):
        project(model, 0.5 * lip, held={"0.weight": some(model[0].weight)})


def test_frozen_biases_stay_and_what_would_move_them_is_refused() -> None:
    model = net()
    model[0].bias.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    held = values(model, {})
    result = train(model, (X, Y), SHORT, constraint=Lipschitz(0.3), progress=False)
    assert_kept(result.model, {}, held)
    with pytest.raises(ValueError, match="mean: is kept in the first layer's bias, which is froz"):
        Constraint(model, BOUND, mean=X.mean(0))


def test_a_layer_that_is_frozen_on_the_way_is_noticed_at_the_next_round() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Constraint(model, BOUND, AdmmConfig(round_steps=2)).attach(optimizer)
    steps(model, optimizer, 1)
    model[2].requires_grad_(False)
    with pytest.raises(ValueError, match=r"2.weight was frozen after the constraint was made"):
        steps(model, optimizer, 1)
