"""What outputs stay between on boxes of inputs, whose sides differ from feature to feature.

A box is the ball of linf in units of its own: with half widths h the model's inputs move by
``d h``, ``|d| <= 1``.  Boxes bounded together take the widest of their sides, so boxes halved in
the same order lose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..certificates.radii import points_of
from ..data.arrays import as_numbers
from ..foreign.open import network_of
from ..networks.network import Network
from .curved_layers import CurvedNet, curved_layers
from .input_region import Region, chunks, unit_ball
from .layers import Layer
from .seen import Seen

# Entries of the largest tensor of boxes bounded together, and how many these are at most.
_ENTRIES, _BOXES = 2**23, 512
# Half widths below are taken for this; it loses less than any rounding.
_LEAST = 1e-30


def lower_bounds(layers: Sequence[Layer], low: Tensor, high: Tensor, rows: Tensor) -> Tensor:
    """Lower bounds of functionals of the outputs, proven through rounding, ``(batch, m)``.

    Args:
        layers: the network, as :func:`~admm_lip.local.curved_layers.curved_layers` reads it.
        low: lower ends of the boxes, float64 ``(batch, n_0)``, exact, and
        high: upper ends, none below its lower one.
        rows: ``(m, n_out)``, with entries 0 and +-1.
    """
    center = 0.5 * low + 0.5 * high
    infinity = torch.tensor(torch.inf, dtype=torch.float64)
    reach = torch.nextafter(torch.maximum(high - center, center - low), infinity)
    half = reach.amax(dim=0).clamp(min=_LEAST)
    # A scale whose true inverse is not below the half width.
    ball = unit_ball(layers[0], "linf", torch.nextafter(1.0 / half, -infinity))
    net, widest = CurvedNet(tuple(layers), ball), max(layer.operator.size_out for layer in layers)
    together = min(_BOXES, _ENTRIES // (widest * max(widest, len(half), len(rows))))
    found = []
    for part in chunks(torch.arange(len(center)), together):
        region = Region(ball, center[part], torch.ones(len(part), dtype=torch.float64))
        bound = Seen.on(net, region).margin(rows.expand(len(part), -1, -1))
        found.append(torch.where(bound.isnan(), -torch.inf, bound))
    return torch.cat(found)


def output_ranges(
    model: nn.Module | Network, low: Any, high: Any, *, input_shape: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """What every output provably stays between on boxes of inputs.

    Linear bounds of every neuron are taken back to the inputs (Zhang et al., NeurIPS 2018) and
    rounded outwards.

    Args:
        model: a chain of supported layers, or a :class:`~admm_lip.networks.network.Network`.
        low: lower ends, ``(batch, *input_shape)``, a tensor or any array, and
        high: upper ends, in the units of the model's input.
        input_shape: where it is not that of ``low``.

    Returns:
        Lower and upper bounds, float64 ``(batch, outputs)`` each.

    Raises:
        ValueError: naming ``low`` or ``high``.

    Example:
        >>> import torch
        >>> from admm_lip.local import output_ranges
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.Tanh(),
        ...                             torch.nn.Linear(1, 1, bias=False))
        >>> for p, v in zip(model.parameters(), ([[1.0, -1.0]], [[2.0]])):
        ...     p.data = torch.tensor(v)
        >>> low, high = output_ranges(model, torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.5]]))
        >>> [round(end, 3) for end in (*low[0].tolist(), *high[0].tolist())]   # 2 tanh of -.5 to 1
        [-0.924, 1.523]
    """
    low, high = as_numbers("low", low), as_numbers("high", high)
    shape = tuple(low.shape[1:]) if input_shape is None and low.ndim > 2 else input_shape
    network = network_of(model, shape)
    ends = [points_of(end, network.input_shape or ()).double() for end in (low, high)]
    if ends[0].shape != ends[1].shape:
        raise ValueError(
            f"high: expected the shape of low, {tuple(low.shape)}, got {tuple(high.shape)}"
        )
    if not bool((torch.isfinite(ends[0]) & torch.isfinite(ends[1]) & (ends[0] <= ends[1])).all()):
        raise ValueError("low, high: expected finite ends, none above its upper one")
    layers = curved_layers(network)
    eye = torch.eye(layers[-1].operator.size_out, dtype=torch.float64)
    rows = torch.cat([eye, -eye])
    found = [lower_bounds(layers, a[None], b[None], rows) for a, b in zip(*ends, strict=True)]
    bounds = torch.cat(found) if found else ends[0].new_zeros(0, len(rows))
    return bounds[:, : len(eye)], -bounds[:, len(eye) :]
