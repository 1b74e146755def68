"""A chain of layers as stages: an affine layer, then what acts on its output.

Stages are read from an ordinary module and refer to its layers; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NetworkError, UnsupportedModule
from ..networks import trace
from ..networks.chain import reader_of
from .operators import OPERATORS, Operator, Shape


@dataclass(frozen=True)
class Activation:
    """One row of the table of activations.

    Attributes:
        constant: from the layer and the ends of its input to which of its outputs cannot move
            while the input stays between them; ``None`` where none can be told.
        per_neuron: whether output i depends on input i alone.
        apply: from the layer and its input to its output.
    """

    constant: Callable[[Any, Tensor, Tensor], Tensor] | None = None
    per_neuron: bool = True
    apply: Callable[[Any, Tensor], Tensor] = lambda layer, z: layer(z)


def _relu_clip_constant(layer: Any, low: Tensor, high: Tensor) -> Tensor:
    beyond: Tensor = low >= layer.threshold.view(low.shape[1:])
    return beyond | (high <= 0.0)


def _pair_clip_constant(layer: Any, low: Tensor, high: Tensor) -> Tensor:
    floor, cap = (end.view(low.shape[1:]) for end in layer.ends())
    above: Tensor = low >= cap
    below: Tensor = high <= floor
    return above | below


# All are non-decreasing in every input, so that the ends of the output are the images of the ends.
ACTIVATIONS: Mapping[str, Activation] = {
    # Not the layer itself, which may work in place.
    "relu": Activation(lambda _, low, high: high <= 0.0, apply=lambda _, z: z.relu()),
    "clipped_relu": Activation(_relu_clip_constant),
    "max_min": Activation(per_neuron=False),
    "group_sort2": Activation(per_neuron=False),
    "pair_clip": Activation(_pair_clip_constant),
    "flatten": Activation(apply=lambda _, z: z.flatten(1)),
}


@dataclass(frozen=True, eq=False)
class Stage:
    """One affine layer and the activations on its output.

    Attributes:
        name: of the affine layer.
        operator: its linear part.
        activations: the layers behind it with their kinds, in order; mostly one.
    """

    name: str
    operator: Operator
    activations: list[tuple[str, nn.Module]] = field(default_factory=list)

    def affine(self, x: Tensor) -> Tensor:
        """``W x + b`` of ``(batch, *)``, whatever the shape of the samples."""
        shaped = x.reshape(len(x), *self.operator.shape_in)
        learning = torch.is_grad_enabled()
        z = self.operator.trained(shaped) if learning else self.operator.forward(shaped)
        bias = self.operator.bias
        return z if bias is None else z + bias

    def activate(self, z: Tensor) -> Tensor:
        """The activations, applied to ``(batch, *shape_out)``."""
        for kind, layer in self.activations:
            z = ACTIVATIONS[kind].apply(layer, z)
        return z


def read_stages(model: nn.Module, input_shape: Shape) -> tuple[Stage, ...]:
    """Read a chain of ``Linear``, ``Conv2d``, ``AvgPool2d``, ``Flatten`` and clipped activations.

    Args:
        model: the chain; its last layer is affine.
        input_shape: shape of one input, without the batch.

    Raises:
        UnsupportedModule: by qualified name, for any other layer or structure.
        NetworkError: for shapes that do not chain.
    """
    stages: list[Stage] = []
    shape = tuple(input_shape)
    for name, layer, _ in trace.path_of(model):
        kind = reader_of(name, layer).kind
        if kind in OPERATORS:
            stages.append(Stage(name, OPERATORS[kind](name, layer, shape)))
            shape = stages[-1].operator.shape_out
        elif kind == "flatten":
            shape = (torch.Size(shape).numel(),)
            if stages:
                stages[-1].activations.append((kind, layer))
        elif kind in ACTIVATIONS:
            _add(stages, name, kind, layer)
        elif kind != "identity" or _is_random(layer):
            raise UnsupportedModule(
                f"{name} ({type(layer).__name__}): local bounds handle Linear, Conv2d, AvgPool2d, "
                "Flatten, ReLU, ClippedReLU, MaxMin, GroupSort2 and ClippedMaxMin; replace it"
            )
    ends = [kind for kind, _ in stages[-1].activations] if stages else ["nothing"]
    if any(kind != "flatten" for kind in ends) or len(shape) != 1:
        raise UnsupportedModule(
            "model: expected a chain that ends in a Linear layer of one output per class; leave a "
            "final activation to the loss"
        )
    return tuple(stages)


def _add(stages: list[Stage], name: str, kind: str, layer: nn.Module) -> None:
    if not stages:
        raise UnsupportedModule(
            f"{name} ({type(layer).__name__}): an activation comes first; expected a Linear or "
            "Conv2d layer before it"
        )
    shape = stages[-1].operator.shape_out
    stages[-1].activations.append((kind, layer))
    try:
        with torch.no_grad():
            held = chain(layer.parameters(), stages[-1].operator.layer.parameters())
            like = next(held, torch.zeros(()))
            stages[-1].activate(like.new_zeros((1, *shape)))
    except ValueError as error:
        raise NetworkError(f"{name}: {error}") from None


def _is_random(layer: nn.Module) -> bool:
    return bool(layer.training and getattr(layer, "p", 0.0) > 0.0)
