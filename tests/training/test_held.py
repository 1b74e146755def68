"""What is frozen, pruned or masked stays to the bit, under every form of a constraint."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from held_nets import (
    BOUND,
    LAYERS,
    PRICE,
    SHORT,
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
    sparse,
    steps,
    values,
)
from torch import nn
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
from admm_lip.training.checkpoint import CheckpointError
from admm_lip.training.config import AdmmConfig


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
