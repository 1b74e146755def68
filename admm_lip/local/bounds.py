"""Bounds of every pre-activation on a ball around each input, batched and rounded outwards.

Layer by layer, three enclosures of ``z_k = W_k x_k + b_k`` on ``||x' - x|| <= r`` are intersected:

* **intervals**: the ranges of the layer before, through ``|W_k|``;
* **norms**: ``|z_ki(x') - z_ki(x)| <= ||w_i D|| d_k`` with D marking the neurons before that can
  move, ``d_k`` the radius of the ball that ``x_k`` stays in: r times the running product of the
  layers' norms and the slopes seen so far;
* **lines**: linear bounds substituted back to the input (``linear.py``).

The first layer's range on the ball is exact: ``z_0i(x) +- r ||w_i||`` in the dual norm, with a box
cut to ``z_0i(x) +- max w_i d`` over the displacements d that ball and box admit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..networks.network import LayerSpec, SideBySide
from ..rounding import SLACK, TINY, U, lengths, unit_scale, upper_product
from .affine import Affine
from .curves import (
    Lines,
    Range,
    anchored_slopes,
    lines_on,
    parts_of,
    slopes_on,
    value_range,
    value_with_error,
)
from .region import Region
from .tensors import Net


@dataclass(frozen=True, eq=False)
class Layer:
    """What is known of one hidden layer on every sample's ball; tensors ``(batch, n)``.

    Attributes:
        center: encloses the pre-activations at the sample itself.
        interval: encloses them on the ball; ``center`` lies within.
        slopes: the activation's slopes between any two points of ``interval``.
        anchored: its slopes between ``center`` and a point of ``interval``.
        lines: below and above the activation on ``interval``.
        outputs: range of the activation.
        largest: ``max |z|`` on the interval.
        reach: ``max |x|`` of the activation's output.
        constant_error: rounding of the lines' intercepts in a sum, per unit of a coefficient.
    """

    center: Range
    interval: Range
    slopes: Range
    anchored: Range
    lines: Lines
    outputs: Range
    largest: Tensor
    reach: Tensor
    constant_error: Tensor


@dataclass(frozen=True, eq=False)
class Bounds:
    """All hidden layers, and the network's outputs at the samples themselves.

    Attributes:
        region: the balls.
        layers: one per hidden layer.
        last: ``x_l`` at the sample and a bound on its error.
    """

    region: Region
    layers: tuple[Layer, ...]
    last: tuple[Tensor, Tensor]


def preactivation_bounds(net: Net, region: Region) -> Bounds:
    """Enclose every pre-activation of every sample on its region.

    Args:
        net: the network.
        region: the samples, their radii, and the box of admissible inputs.

    Returns:
        Bounds for the real-valued network of the stored weights.
    """
    from .linear import backward_range  # the lines of the layers so far

    layers: list[Layer] = []
    value, error = region.points, torch.zeros_like(region.points)
    moved = region.radius * SLACK
    for k, spec in enumerate(net.activations):
        affine = net.maps[k]
        z, z_error = affine_at(affine, value, error)
        center = Range(z - z_error, z + z_error)
        if k == 0:
            interval = region.first_range(net, center)
        else:
            before = layers[-1]
            interval = _through(affine, before.outputs)
            interval = _intersected(_by_norm(affine, before, center, moved), interval)
            interval = _intersected(backward_range(net, region, layers, k), interval)
        interval = Range(
            torch.minimum(interval.low, center.low), torch.maximum(interval.high, center.high)
        )
        layers.append(_layer(spec, center, interval, z))
        rows, norm = (affine.rows, affine.norm) if k else (net.ball.rows, net.ball.reach)
        moved = _moved(rows, norm, layers[-1], moved)
        value, evaluated = _evaluated(spec, z)
        steepest = torch.maximum(layers[-1].slopes.low.abs(), layers[-1].slopes.high.abs())
        error = SLACK * (steepest * z_error + evaluated) + TINY
    return Bounds(region, tuple(layers), (value, error))


def affine_at(affine: Affine, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """``W x + b`` and a bound on its error, where ``x`` is within ``error`` of ``value``."""
    z = value @ affine.weight.T + affine.bias
    spread = value.abs() @ affine.size.T + affine.bias.abs()
    off = error @ affine.size.T + affine.gamma * spread + affine.bias_error
    if affine.error > 0.0:
        off = off + affine.error * (lengths(value) + lengths(error))[:, None]
    return z, SLACK * off + TINY


def _evaluated(spec: LayerSpec | SideBySide, z: Tensor) -> tuple[Tensor, Tensor]:
    parts = [value_with_error(one, z[:, run]) for run, one in parts_of(spec, z.shape[1])]
    return torch.cat([v for v, _ in parts], dim=1), torch.cat([e for _, e in parts], dim=1)


def _layer(spec: LayerSpec | SideBySide, center: Range, interval: Range, z: Tensor) -> Layer:
    parts = []
    for run, one in parts_of(spec, z.shape[1]):
        at, on = (Range(r.low[:, run], r.high[:, run]) for r in (center, interval))
        slopes = slopes_on(one, on)
        lines = lines_on(one, z[:, run], on, slopes)
        parts.append((slopes, anchored_slopes(one, at, on), lines, value_range(one, on, slopes)))
    slopes, anchored, lines, outputs = (
        type(same[0])(*(torch.cat(ends, dim=1) for ends in zip(*same, strict=True)))
        for same in zip(*parts, strict=True)
    )
    return Layer(
        center=center,
        interval=interval,
        slopes=slopes,
        anchored=anchored,
        lines=lines,
        outputs=outputs,
        largest=_largest(interval),
        reach=_largest(outputs),
        constant_error=torch.maximum(lines.low.abs(), lines.high.abs()),
    )


def _largest(interval: Range) -> Tensor:
    return torch.maximum(interval.low.abs(), interval.high.abs())


def _intersected(one: Range, other: Range) -> Range:
    """Both enclose the same numbers; NaN (from overflow) counts as no knowledge."""
    low = torch.where(one.low > other.low, one.low, other.low)
    high = torch.where(one.high < other.high, one.high, other.high)
    return Range(low, high)


def _through(affine: Affine, inputs: Range) -> Range:
    """Interval arithmetic: middle and radius."""
    middle = 0.5 * (inputs.low + inputs.high)
    radius = torch.maximum(inputs.high - middle, middle - inputs.low) * (1.0 + 4.0 * U)
    z, off = affine_at(affine, middle, radius)
    return Range(z - off, z + off)


def _by_norm(affine: Affine, before: Layer, center: Range, moved: Tensor) -> Range:
    """Rows without the columns of constant neurons, times the distance that ``x_k`` moves."""
    moving = (before.slopes.high - before.slopes.low + before.slopes.high.abs() > 0.0).double()
    scale = unit_scale(affine.rows)
    squares = (affine.size * scale[:, None]).square()
    rows = (moving @ squares.T + TINY).sqrt() * SLACK / scale + affine.error
    reach = upper_product(rows, moved[:, None])
    return Range(center.low - reach, center.high + reach)


def _moved(rows: Tensor, norm: float, layer: Layer, moved: Tensor) -> Tensor:
    """Distance that the layer's output moves: ``||D W|| <= `` a norm of the rows that are left."""
    steepest = torch.maximum(layer.slopes.low.abs(), layer.slopes.high.abs())
    by_norm = upper_product(steepest.amax(dim=1), norm)
    return upper_product(torch.minimum(by_norm, lengths(steepest * rows)), moved, SLACK)
