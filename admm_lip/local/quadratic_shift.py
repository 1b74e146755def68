"""Quadratic bounds of margins of a network in training: the start of ``quadratic_pass.py``.

Without rounding, and with norms from power iterations: of ``D = m S^2 + t U^2``, U marking the
units that bend, the first norm is the one that the pass forward has estimated, and that of U W is
at most it, and at most the length of the rows that bend.  Slopes and intervals are held; gradients
flow through the weights, the values at the samples, the norms and the thresholds of clipped units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UnsupportedModule
from ..networks.layer_spec import LayerSpec
from .activations import MONOTONE, Curved, Monotone
from .curve_pieces import Bend
from .forward_bounds import Forward, LayerBounds
from .layers import Layer
from .linear_operator import as_they_are
from .parabolas import Point, Quadratic, least_values

# Share of a row's gain on the ball that t is; between those of the pass.
_SHARE = 0.15
_TINY = 1e-30


def quadratic_shift(
    layers: Sequence[Layer], found: Forward, rows: Tensor, gap: Tensor, eps: float
) -> Tensor:
    """How far functionals ``rows x + const`` of the last layer's inputs may fall on the ball.

    Args:
        layers: the network.
        found: what the pass forward knows, with intervals.
        rows: ``(batch, m, n)``.
        gap: the functionals at the samples, ``rows x``, ``(batch, m)``.
        eps: radius, l2.

    Returns:
        ``(batch, m)``; an upper bound as far as the norms are.

    Raises:
        UnsupportedModule: by name, for activations that sort.
    """
    batch = len(rows)
    moved = [rows.new_full((batch,), eps)]
    for factor in found.factors:
        moved.append(moved[-1] * factor.detach())
    lower, m = torch.zeros_like(gap), torch.zeros_like(gap)[..., None]
    for k in range(len(found.layers) - 1, -1, -1):
        layer, here = layers[k], found.layers[k]
        activation, bend = _bend(layer, here)
        low, high = here.interval
        reach = torch.minimum(moved[k + 1], (0.5 * (high - low)).norm(dim=1))[:, None]
        t = _SHARE * rows.norm(dim=-1) / (reach + _TINY)
        z = here.center.low
        g, d = rows * bend.slope[:, None], m * bend.slopes.high.square()[:, None]
        d = d + t[..., None] * bend.bending[:, None]
        given, point = Quadratic(rows, m, g, d), Point(z, activation.apply(z))
        gain, _ = least_values(bend.pieces, here.interval, here.reach, point, given)
        lower = lower + gain.sum(-1)
        bias, operator = layer.operator.bias, layer.operator
        whole = found.factors[k].square().expand(batch)
        squares = operator.row_norms().square().expand(operator.shape_out).flatten()
        bent = torch.minimum(whole, (bend.bending * squares).sum(dim=1))
        m = m * whole[:, None, None] + (t * bent[:, None])[..., None]
        if k and bias is not None:
            lower = lower + g @ bias.expand(operator.shape_out).flatten()
        rows = operator.transposed(g.reshape(-1, *operator.shape_out), as_they_are)
        rows = rows.reshape(*g.shape[:-1], -1)
        if not k:
            lower = lower + (g @ z[..., None])[..., 0]
    fall: Tensor = gap - lower + eps * _lengths(rows) + 0.5 * eps**2 * m[..., 0]
    return fall


def _bend(layer: Layer, here: LayerBounds) -> tuple[Curved, Bend]:
    """A layer's activations as scalar ones, and how they bend on the ball."""
    assert isinstance(layer.activation, Monotone)
    specs = [LayerSpec("leaky_relu", layer.name, {"negative_slope": 1.0})]  # the identity
    for kind, module in layer.activation.parts:
        scalar = MONOTONE[kind].scalar
        if scalar is None:
            raise UnsupportedModule(
                f"{layer.name} ({kind} behind it): the surrogate 'quadratic' handles ReLU and "
                "ClippedReLU; use 'bcp' or 'gloro'"
            )
        specs += scalar(module)
    if len(specs) > 2:
        raise UnsupportedModule(
            f"{layer.name}: the surrogate 'quadratic' handles one activation behind a layer, got "
            f"{len(specs) - 1}; leave all but one out, or use 'bcp' or 'gloro'"
        )
    activation = Curved(specs[-1])
    bend = activation.bend(here.center.low.detach(), here.interval)
    return activation, bend._replace(slope=bend.slope.detach())


def _lengths(rows: Tensor) -> Tensor:
    """``||a||``, differentiable at 0."""
    squares = rows.square().sum(dim=-1)
    return torch.where(squares > 0.0, torch.where(squares > 0.0, squares, 1.0).sqrt(), 0.0)
