"""Linear bounds of functionals of a network, substituted layer by layer back to the input.

A row a over the outputs of a hidden layer is bounded from below by a row over its pre-activations:
where ``a_i >= 0`` the line below the activation is used, where ``a_i < 0`` the one above (Zhang et
al., NeurIPS 2018).  At the first pre-activations the ball itself is used:
``a z_0(x) - r ||a W_0||``.

Coefficients are rounded; what is missing is an exact multiple of what they multiply, so

    |lost| <= sum_i |a_i| q_i,

with ``q`` a vector per layer and sample (rounding of the product with ``W``, of the product with
the slope, of the stored weights), which is subtracted as the rows pass.  A coefficient that
underflows loses up to ``TINY`` times what it multiplies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rounding import SLACK, TINY, U, gamma, lengths
from .affine import Affine
from .bounds import Bounds, Layer, affine_at
from .curves import Range
from .region import Region
from .tensors import Net


def backward_range(net: Net, region: Region, layers: Sequence[Layer], k: int) -> Range:
    """Range of ``z_k`` (``k >= 1``) from the lines of the layers before it."""
    weight = net.maps[k].weight.expand(len(region), -1, -1)
    bias = net.maps[k].bias.expand(len(region), -1)
    off = _stored(net.maps[k], layers[-1])
    low = lower_bounds(net, region, layers, weight, bias) - off
    high = lower_bounds(net, region, layers, -weight, -bias) - off
    return Range(low, -high)


def margin_bounds(net: Net, bounds: Bounds, rows: Tensor) -> Tensor:
    """Lower bounds of ``rows f`` on every sample's region.

    Args:
        net: the network.
        bounds: of all hidden layers.
        rows: ``(batch, m, n_out)``: functionals of the outputs, with entries 0 and +-1.

    Returns:
        ``(batch, m)``.
    """
    last = net.maps[-1]
    weight = rows @ last.weight
    layers = bounds.layers
    size = rows.abs()
    if not layers:
        return center_values(net, bounds, rows) - bounds.region.support(net, -rows)
    # Differences of two rows are rounded once per entry.
    lost = 2.0 * U * (size @ last.size) @ layers[-1].reach[:, :, None]
    off = lost[..., 0] + size.sum(-1) * _stored(last, layers[-1])[:, :1]
    constant = rows @ last.bias
    off = off + 4.0 * U * (size @ last.bias.abs())
    return lower_bounds(net, bounds.region, layers, weight, constant) - off * SLACK


def center_values(net: Net, bounds: Bounds, rows: Tensor, doubt: float = 1.0) -> Tensor:
    """Lower bounds of ``rows f`` at the samples themselves; shapes as in :func:`margin_bounds`.

    ``doubt`` is what the bound on the rounding is multiplied by.
    """
    z, error = affine_at(net.maps[-1], *bounds.last)
    value = _times(rows, z)
    off: Tensor = doubt * SLACK * _times(rows.abs(), error + 4.0 * U * z.abs()) + TINY
    return value - off


def _stored(affine: Affine, before: Layer) -> Tensor:
    """Per entry of ``W x + b``, what the errors of the stored weights may add; ``(batch, 1)``."""
    most: Tensor = affine.error * lengths(before.reach)[:, None] * SLACK
    return most + affine.bias_error


def lower_bounds(
    net: Net, region: Region, layers: Sequence[Layer], rows: Tensor, constant: Tensor
) -> Tensor:
    """Lower bounds of ``rows x_k + constant``, ``x_k`` the outputs of the last of ``layers``.

    Args:
        net: the network.
        region: the samples' regions.
        layers: the hidden layers up to it.
        rows: ``(batch, m, n_k)``.
        constant: ``(batch, m)``.
    """
    lost = torch.zeros_like(constant)
    for k in range(len(layers) - 1, -1, -1):
        layer, affine = layers[k], net.maps[k]
        up, down = rows.clamp(min=0.0), rows.clamp(max=0.0)
        lines = layer.lines
        terms = _times(up, lines.low) + _times(down, lines.high)
        lost = lost + gamma(2 * rows.shape[-1]) * _times(rows.abs(), layer.constant_error)
        rows = up * lines.low_slope[:, None] + down * lines.high_slope[:, None]
        constant = constant + terms
        lost = lost + TINY * layer.largest.sum(dim=1, keepdim=True)
        if k == 0:
            break
        size = affine.size @ layers[k - 1].reach[:, :, None]
        q = affine.gamma * (size[..., 0] + affine.bias.abs()) + 2.0 * U * layer.largest
        lost = lost + _times(rows.abs(), q + _stored(affine, layers[k - 1]))
        lost = lost + 4.0 * U * constant.abs() + TINY * layers[k - 1].reach.sum(1, keepdim=True)
        constant = constant + rows @ affine.bias
        rows = rows @ affine.weight
    return _on_region(net, region, layers[0], rows, constant, lost)


def _on_region(
    net: Net, region: Region, first: Layer, rows: Tensor, constant: Tensor, lost: Tensor
) -> Tensor:
    """The last step, from the first pre-activations to the ball."""
    middle = 0.5 * (first.center.low + first.center.high)
    off = torch.maximum(first.center.high - middle, middle - first.center.low)
    size = rows.abs()
    value = _times(rows, middle)
    doubt = off + gamma(rows.shape[-1]) * middle.abs() + 2.0 * U * first.largest
    lost = lost + _times(size, doubt) + 4.0 * U * (constant.abs() + value.abs())
    return constant + value - region.support(net, -rows) - SLACK * lost - TINY


def _times(rows: Tensor, vector: Tensor) -> Tensor:
    """``(batch, m, n) x (batch, n) -> (batch, m)``."""
    product: Tensor = (rows @ vector[:, :, None])[..., 0]
    return product
