"""What a constraint can be put on: the network, its weights, and the optimizer that moves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..lipschitz import Lipschitz
from ..networks.chain import linear_layers
from ..units import Units


def trained_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that move, by name, in order.

    Raises:
        UnsupportedModule: by name, for a network that is no chain of them.
        ValueError: for a frozen parameter: every projection moves all weights, and the start
            scales all biases.
    """
    layers = linear_layers(model)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise ValueError(
                f"model: {name} is frozen (requires_grad=False), but the bound moves every layer; "
                "thaw it by model.requires_grad_(True), or train it by another method"
            )
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(layer)]: layer for layer in layers}


def check_asked(asked: Lipschitz) -> None:
    """Raise unless training can keep it."""
    if not isinstance(asked, Lipschitz):
        raise TypeError(
            f"asked: expected a Lipschitz, got {type(asked).__name__}; give Lipschitz(bound=1.0)"
        )
    if asked.norm != "l2":
        raise ValueError(
            f"norm: training keeps an l2 constant, got {asked.norm!r}; train under l2, and certify "
            f"the result in {asked.norm}"
        )


def units_once(asked: Lipschitz, units: Units | None) -> Units | None:
    """The units of what is asked, or those given beside it.

    Raises:
        ValueError: where both are given.
    """
    if units is not None and asked.units is not None:
        raise ValueError("units: expected once, got them in Lipschitz(units=...) and beside it")
    return units or asked.units


def check_master(dtype: torch.dtype) -> None:
    """Raise for weights too coarse to be trained."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"model: expected weights in float32 or float64, got {dtype}, which does not resolve "
            "an optimizer's steps; call model.float() and compute under torch.autocast"
        )


def group_of(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]
) -> dict[str, Any]:
    """The parameter group of the first weight.

    Raises:
        ValueError: naming a weight that is in none.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in weights.items():
        if id(parameter) not in groups:
            raise ValueError(
                f"optimizer: does not move {name}.weight of the constrained model; make it from "
                "model.parameters(), after the model has all its layers"
            )
    first: dict[str, Any] = groups[id(next(iter(weights.values())))]
    return first
