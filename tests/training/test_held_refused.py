"""What cannot be held is refused by name."""

from __future__ import annotations

from collections.abc import Callable
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
    net,
    some,
    steps,
    values,
)
from torch import nn

from admm_lip import Constraint, Lipschitz, certify, project, train
from admm_lip.networks.sorting_torch import MaxMin
from admm_lip.training.config import AdmmConfig


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
