"""What a constraint can be put on: the network, its weights, and the optimizer that moves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..lipschitz import All, Lipschitz
from ..networks.chain import linear_layers, read_network
from ..networks.layers import Shape
from ..networks.module_state import evaluating
from ..networks.sorting import HALF_ABS
from ..solvers.devices import has_float64
from ..units import Units
from .config import RESIDUAL_GAIN, TrainConfig
from .kernel_layers import has_kernels, kernel_layers
from .layer_norms import training_constraint
from .terms import Activations


@dataclass(frozen=True, eq=False)
class Constrained:
    """What a bound moves, and how it is kept.

    Attributes:
        layers: that move, by name, in order.
        slopes: what is asked of them (:class:`~.terms.Terms`).
        kinds: of the activations, for the choice of the multiplier step.
    """

    layers: dict[str, nn.Module]
    slopes: Activations
    kinds: tuple[str, ...]


def constrained(
    model: nn.Module,
    input_shape: Shape | None = None,
    balls: str = "auto",
    residual_gain: float = RESIDUAL_GAIN,
) -> Constrained:
    """How a network is kept under a bound: with convolutions by one ball per layer or module.

    Args:
        model: to be trained.
        input_shape: of one input without the batch; needed in front of convolutions only.
        balls: of convolutions and what stands beside them.
        residual_gain: of all residual blocks together.

    Raises:
        UnsupportedModule, ValueError: as :func:`trained_layers` and :func:`kernel_layers` do.
    """
    with evaluating(model):  # as it is shipped
        if has_kernels(model):
            moved, norms = kernel_layers(model, input_shape, balls, residual_gain)
            return Constrained(moved, norms, (HALF_ABS,))
        if balls != "auto":
            raise ValueError(
                f"balls: {balls!r} is for networks of convolutions or skips; this one has "
                "none, so leave it at 'auto'"
            )
        layers, chain = trained_layers(model), read_network(model).chain()
    slopes = training_constraint(chain, next(iter(layers.values())).weight.device)
    return Constrained(dict(layers), slopes, tuple(spec.kind for spec in chain.activations))


def trained_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers of a chain of ``nn.Linear`` that move, by name, in order.

    Raises:
        UnsupportedModule: by name, for a network that is no chain of them.
    """
    layers = linear_layers(model)
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


def asked_of(
    config: TrainConfig | Lipschitz | All, constraint: Lipschitz | All | None, units: Units | None
) -> tuple[TrainConfig, Lipschitz | All | None]:
    """The settings, and what is asked, which is given in one of three places.

    Raises:
        ValueError: where it is given twice, or cannot be kept.
    """
    if isinstance(config, Lipschitz | All):
        if constraint is not None:
            raise ValueError("constraint: expected once, got one in the place of config as well")
        constraint, config = config, TrainConfig()
    if constraint is None:
        return config, config.asked(units)
    if config.asked() is not None:
        raise ValueError(
            "constraint: goes with settings without bound and mu, got "
            f"bound={config.bound!r} and mu={config.mu!r}"
        )
    own = constraint.lipschitz if isinstance(constraint, All) else constraint
    check_asked(own)
    own = replace(own, units=units_once(own, units))
    config = replace(config, bound=own.bound, mu=own.mu)
    return config, All(own, constraint.monotone) if isinstance(constraint, All) else own


def check_weight(
    name: str, layer: nn.Module, parameter: nn.Parameter, consensus: Tensor, *, whole: bool
) -> None:
    """Raise unless a layer still has the weight that a constraint was made of.

    Args:
        name: of the layer.
        layer: whose weight it is.
        parameter: that the constraint moves.
        consensus: of the constraint's state.
        whole: whether all of it stays.
    """
    if layer.weight is not parameter:
        raise ValueError(
            f"constraint: {name}.weight was replaced after the constraint was made; change it in "
            "place (.data.copy_), or make a new constraint and optimizer"
        )
    if not parameter.requires_grad and not whole:
        raise ValueError(
            f"constraint: {name}.weight was frozen after the constraint was made; make a new one, "
            "which holds it"
        )
    if parameter.device != consensus.device:
        raise ValueError(
            f"constraint: {name}.weight is on {parameter.device}, the constraint on "
            f"{consensus.device}; move the model before making the constraint"
        )


def check_master(weight: Tensor) -> None:
    """Raise for weights too coarse to be trained, or on a device too coarse to be projected on."""
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"model: expected weights in float32 or float64, got {weight.dtype}, which does not "
            "resolve an optimizer's steps; call model.float() and compute under torch.autocast"
        )
    if not has_float64(weight.device):
        raise ValueError(
            f"model: is on {weight.device}, which has no float64, in which a bound is kept; train "
            'on another device, by model.to("cpu")'
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
