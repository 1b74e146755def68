"""Training in centred coordinates: the first layer as ``W_0 (x - mean) + b'``.

With ``b' = b + W_0 mean`` this is ``W_0 x + b``, so neither the functions within reach nor their
Lipschitz constants change.  What changes is the path of the optimizer and of the projection: with
inputs that are far from centred (pixels) every move of ``W_0`` shifts all neurons at once, and a
projection shifts them without asking the bias.  Centred, neither does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .batches import Batches


@dataclass(frozen=True, eq=False)
class Centring:
    """A first layer that subtracts ``mean`` from what it is given, until :meth:`undo`."""

    layer: nn.Linear
    mean: Tensor
    handle: RemovableHandle

    def undo(self) -> None:
        """Fold the mean back into the bias, ``b = b' - W_0 mean``: a plain layer again."""
        self.handle.remove()
        _shift(self.layer, self.mean, -1.0)


def centre(layer: nn.Module, mean: Tensor) -> Centring:
    """Let ``layer`` subtract ``mean``, shape ``(in_features,)``, and keep its function by the bias.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> before = layer(torch.ones(1, 2))
        >>> centred = centre(layer, torch.tensor([3.0, 5.0]))
        >>> torch.allclose(layer(torch.ones(1, 2)), before, atol=1e-5)
        True
        >>> centred.undo()
    """
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            f"mean: goes with a first layer that is an nn.Linear, got a {type(layer).__name__}, "
            "whose bias is one number per channel; centre the inputs themselves"
        )
    if layer.bias is not None and not layer.bias.requires_grad:
        raise ValueError("mean: is kept in the first layer's bias, which is frozen; leave it out")
    if layer.bias is None or mean.shape != (layer.in_features,):
        raise ValueError(
            f"mean: expected shape ({layer.in_features},) and a first layer with a bias, got "
            f"{tuple(mean.shape)} and bias={layer.bias is not None}"
        )
    offset = mean.to(layer.weight)

    def subtract(module: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
        shifted: Tensor = inputs[0] - offset
        return shifted

    _shift(layer, mean, 1.0)
    return Centring(layer, mean, layer.register_forward_pre_hook(subtract))


def mean_input(batches: Batches, first: Tensor, features: int) -> Tensor | None:
    """The mean sample, flattened: of all inputs in memory, or of the ``first`` batch of a loader.

    ``None`` where a sample does not have ``features`` numbers, or only one.  Any vector would do,
    so it need not be exact; it must be the same whenever a run is continued.
    """
    inputs: Tensor = getattr(batches, "inputs", first)
    if inputs.ndim < 2 or not inputs.is_floating_point():
        return None
    rows = inputs.flatten(1)
    if rows.shape[1] != features:
        return None
    return rows.mean(0, dtype=torch.promote_types(rows.dtype, torch.float32))


def _shift(layer: nn.Linear, mean: Tensor, sign: float) -> None:
    """``b += sign W_0 mean``, added up in float64."""
    weight = layer.weight.detach().to(torch.float64)
    move = weight @ mean.to(weight)
    with torch.no_grad():
        layer.bias.copy_(layer.bias.to(torch.float64) + sign * move)
