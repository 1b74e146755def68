"""A batch taken forward through the layers: values, intervals, what can move, and how far.

Layer by layer, enclosures of ``z_k = W_k x_k + b_k`` on the ball are intersected:

* **intervals**: the ranges of the layer before, through ``|W_k|``;
* **norms**: ``|z_ki(x') - z_ki(x)| <= ||w_i C|| d_k`` with C marking the outputs before that can
  move and ``d_k`` the radius of the ball that ``x_k`` stays in,

      d_0 = r,    d_{k+1} = d_k ||R_k W_k C_k||      (or a cheaper bound of this norm)

  with ``R_k`` the steepest slopes of the activations on the interval, 0 for constant units;
* **lines**: linear bounds substituted back to the input (``backward_lines.py``).

What a norm is (an estimate to train with, a proven bound) is for the caller, and so is whether
everything is rounded outwards, so that the intervals enclose the values of the real-valued network
of the stored weights (``gamma_n`` as in ``rounding.py``; matrix products and convolutions must sum
their products the conventional way).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..float64 import U
from ..rounding import SLACK, lengths, upper_product
from .activations import Response, largest
from .curves import Range
from .layers import Layer


class Norm(NamedTuple):
    """A layer's factor in the bound, and in the radius of the balls; ``(batch,)`` or ``(1,)``."""

    factor: Tensor
    growth: Tensor


# From the layer's number and its rows' and columns' scales (``Response``) to its norm.
NormOf = Callable[[int, Tensor | None, Tensor | None], Norm]


@dataclass(frozen=True, eq=False)
class LayerBounds:
    """What is known of one hidden layer on every sample's ball; tensors ``(batch, n)``.

    Attributes:
        center: encloses the pre-activations at the sample itself.
        interval: encloses them on the ball; ``center`` lies within.
        response: what the activations make of the interval.
        acts: whether there are any.
    """

    center: Range
    interval: Range
    response: Response
    acts: bool = True

    @property
    def largest(self) -> Tensor:
        """``max |z|`` on the interval."""
        return largest(self.interval)

    @property
    def reach(self) -> Tensor:
        """``max |x|`` of the activations' output."""
        return largest(self.response.outputs)

    def select(self, rows: Tensor) -> LayerBounds:
        """That of some of the samples, without lines."""
        found, (own, into) = self.response, (self.response.rows, self.response.columns)
        response = Response(
            _selected(found.outputs, rows),
            None if own is None else own[rows],
            None if into is None else into[rows],
        )
        center, interval = _selected(self.center, rows), _selected(self.interval, rows)
        return LayerBounds(center, interval, response, self.acts)


def _selected(values: Range, rows: Tensor) -> Range:
    return Range(values.low[rows], values.high[rows])


# From the layers so far and the number of the next one to a range of its pre-activations.
Lines = Callable[[Sequence[LayerBounds], int], Range]


@dataclass(frozen=True, eq=False)
class Ball:
    """Where the samples' perturbations are.

    Attributes:
        radius: ``(batch,)``.
        box: of the inputs on the balls, ``None`` where nothing but the radius is known of them.
        first: from the first pre-activations at the samples to their range, or ``None``.
    """

    radius: Tensor
    box: Range | None = None
    first: Callable[[Range], Range] | None = None


@dataclass(frozen=True)
class Arithmetic:
    """How values and intervals are computed.

    Attributes:
        intervals: whether to make any; without them every unit can move.
        rounding: whether to round outwards, for a proof (float64 only).
        differentiable: whether gradients flow through the intervals.
        sparsity: whether to measure the sparsity loss.
    """

    intervals: bool = True
    rounding: bool = False
    differentiable: bool = False
    sparsity: bool = False


@dataclass(eq=False)
class Forward:
    """What is known of a batch at the inputs of its last layer.

    Attributes:
        value: these inputs at the samples, ``(batch, n)``.
        error: bound on their error; with rounding.
        inputs: box of the network's inputs, where there is one.
        moved: ``(batch,)`` or ``(1,)``: how far they move, as the intervals have it.
        layers: one per hidden layer, where there are intervals.
        factors: the norms of the hidden layers, each ``(batch,)`` or ``(1,)``.
        sparsity: of each hidden layer.
    """

    value: Tensor
    error: Tensor | None
    moved: Tensor
    inputs: Range | None = None
    layers: list[LayerBounds] = field(default_factory=list)
    factors: list[Tensor] = field(default_factory=list)
    sparsity: list[Tensor] = field(default_factory=list)

    @property
    def box(self) -> Range | None:
        """Range of the last layer's inputs on the balls."""
        if not self.factors:
            return self.inputs
        return self.layers[-1].response.outputs if self.layers else None

    @property
    def columns(self) -> Tensor | None:
        """Which of the last layer's inputs can move; ``None`` for all."""
        return self.layers[-1].response.columns if self.layers else None

    @property
    def lip(self) -> Tensor:
        """Product of the norms before the last layer, ``(batch,)`` or ``(1,)``."""
        product = self.moved.new_ones(1)
        for factor in self.factors:
            product = product * factor
        return product

    @property
    def center(self) -> Range:
        """Encloses :attr:`value`."""
        error = self.error
        return Range(self.value, self.value) if error is None else around(self.value, error)

    @property
    def varying(self) -> Tensor:
        """Share of hidden units that can move, ``(batch,)``; 0 where there are no intervals."""
        units = [layer.response for layer in self.layers if layer.acts]
        total = sum(r.outputs.low.shape[1] for r in units)
        moving = self.value.new_zeros(len(self.value))
        for r in units:
            moving += r.outputs.low.shape[1] if r.columns is None else r.columns.sum(dim=1)
        return moving / max(total, 1)


def forward(
    layers: Sequence[Layer],
    x: Tensor,
    ball: Ball,
    norm_of: NormOf,
    arithmetic: Arithmetic,
    lines: Lines | None = None,
) -> Forward:
    """Take a batch up to the inputs of the last layer.

    Args:
        layers: the network.
        x: inputs ``(batch, *)``.
        ball: around them.
        norm_of: see :data:`NormOf`; it is asked layer by layer, in order.
        arithmetic: see :class:`Arithmetic`.
        lines: asked for every layer but the first.
    """
    error = torch.zeros_like(x).flatten(1) if arithmetic.rounding else None
    state = Forward(x.flatten(1), error, ball.radius, ball.box)
    for k, layer in enumerate(layers[:-1]):
        _step(k, layer, state, ball, norm_of, arithmetic, lines)
    return state


def _step(
    k: int,
    layer: Layer,
    state: Forward,
    ball: Ball,
    norm_of: NormOf,
    arithmetic: Arithmetic,
    lines: Lines | None,
) -> None:
    """One layer: ``state`` moves on to the inputs of the next one."""
    assert layer.activation is not None
    z, error = _affine(layer, state.value, state.error)
    columns = state.columns
    response: Response | None = None
    if arithmetic.intervals:
        with torch.set_grad_enabled(torch.is_grad_enabled() and arithmetic.differentiable):
            center = Range(z, z) if error is None else around(z, error)
            interval = _interval(k, layer, center, state, ball, arithmetic)
            if lines is not None and k > 0:
                interval = intersected(lines(state.layers, k), interval)
            if arithmetic.rounding:
                interval = _joined(interval, center)
            if arithmetic.sparsity:
                state.sparsity.append(layer.activation.sparsity(interval))
            response = layer.activation.on(z, center, interval)
        state.layers.append(LayerBounds(center, interval, response, layer.activation.acts))
    norm = norm_of(k, None if response is None else response.rows, columns)
    state.factors.append(norm.factor)
    product = upper_product if arithmetic.rounding else torch.mul
    state.moved = product(state.moved, norm.growth)
    if error is None:
        state.value = layer.activation.apply(z)
    else:
        response = response or layer.activation.on(z, around(z, error), around(z, error))
        state.value, state.error = layer.activation.evaluate(z, error, response)


def _affine(layer: Layer, value: Tensor, error: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return (layer.affine(value), None) if error is None else layer.affine_with_error(value, error)


def _interval(
    k: int, layer: Layer, center: Range, state: Forward, ball: Ball, arithmetic: Arithmetic
) -> Range:
    """By norms and by the intervals of the layer before."""
    if k == 0 and ball.first is not None:
        return ball.first(center)
    if arithmetic.rounding:
        reach = upper_product(layer.row_lengths(state.columns), state.moved[:, None])
    else:
        rows = layer.operator.row_norms().to(center.low).expand(layer.operator.shape_out)
        reach = state.moved[:, None] * rows.flatten()
    interval = Range(center.low - reach, center.high + reach)
    before = state.box
    if before is None:  # without a box the first layer's intervals are never the better ones
        return interval
    return intersected(through(layer, before, rounding=arithmetic.rounding), interval)


def through(layer: Layer, inputs: Range, *, rounding: bool) -> Range:
    """Interval arithmetic with middle and radius."""
    middle = 0.5 * (inputs.low + inputs.high)
    if not rounding:
        z, reach = layer.affine(middle), layer.absolute(inputs.high - middle)
        return Range(z - reach, z + reach)
    radius = torch.maximum(inputs.high - middle, middle - inputs.low) * (1.0 + 4.0 * U)
    return around(*layer.affine_with_error(middle, radius))


def around(value: Tensor, error: Tensor) -> Range:
    """``value +- error``; the error has room for the rounding of the ends."""
    return Range(value - error, value + error)


def intersected(one: Range, other: Range) -> Range:
    """Both enclose the same numbers; NaN (from overflow) in ``one`` counts as no knowledge."""
    low = torch.where(one.low > other.low, one.low, other.low)
    return Range(low, torch.where(one.high < other.high, one.high, other.high))


def _joined(interval: Range, center: Range) -> Range:
    """The interval with the sample's own values in it."""
    return Range(torch.minimum(interval.low, center.low), torch.maximum(interval.high, center.high))


def input_box(
    x: Tensor, radius: Tensor, ends: tuple[float, float] | None, *, rounding: bool
) -> Range | None:
    """``x +- radius`` cut to the admissible values; ``None`` where there are none such.

    Args:
        x: inputs ``(batch, *)``.
        radius: ``(batch,)``.
        ends: least and greatest admissible value of every input feature.
        rounding: whether to round outwards.
    """
    if ends is None:
        return None
    flat = x.detach().flatten(1)
    low, high = flat - radius[:, None], flat + radius[:, None]
    if rounding:
        down, up = low.new_tensor(-torch.inf), high.new_tensor(torch.inf)
        low, high = torch.nextafter(low, down), torch.nextafter(high, up)
    return Range(low.clamp(min=ends[0]), high.clamp(max=ends[1]))


def by_rows(layers: Sequence[Layer], first: tuple[Tensor, float] | None = None) -> NormOf:
    """Proven norms at no cost: ``||R W||`` by the layer's own norm, or by the rows left.

    Args:
        layers: the network, in float64.
        first: the rows' norms and the norm of the first layer, where inputs are measured
            otherwise.
    """

    def norm(k: int, rows: Tensor | None, columns: Tensor | None) -> Norm:
        own, whole = (layers[k].rows, layers[k].norm) if k or first is None else first
        if rows is None:
            found = torch.tensor([whole], dtype=torch.float64)
        else:
            by_norm = upper_product(rows.amax(dim=1), whole)
            found = torch.minimum(by_norm, lengths(rows * own)) * SLACK
        return Norm(found, found)

    return norm


def by_masked_norms(layers: Sequence[Layer]) -> NormOf:
    """Proven norms of what can move, sample by sample."""

    def norm(k: int, rows: Tensor | None, columns: Tensor | None) -> Norm:
        layer = layers[k]
        if rows is None and columns is None:
            found = torch.tensor([layer.norm], dtype=torch.float64)
        else:
            found = scaled_norm(layer, rows, columns)
        return Norm(found, found)

    return norm


def scaled_norm(layer: Layer, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """Proven bounds of ``||R W C||`` for the exact matrix, ``(batch,)``."""
    error = torch.tensor([layer.error], dtype=torch.float64)
    for part in (rows, columns):
        if part is not None:
            error = upper_product(error, part.amax(dim=1))
    return (layer.norms.scaled(rows, columns) + error) * SLACK
