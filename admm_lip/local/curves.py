"""What is known of an activation on an interval: values, slopes, curvature, supporting lines.

An activation ``phi`` is described, in its row of the table (``networks/activation_table.py``), by
the **knots** of its derivative, the points where ``phi'`` jumps or turns, and by the sign of
``phi''`` between them.  From these follow, on any interval [l, u] and rounded outwards,

* the range of ``phi'``, which is the range of the difference quotients of two points of [l, u];
* the narrower range of the difference quotients between a given z and the points of [l, u]
  (:func:`anchored_slopes`): where phi is convex, the quotient grows with either end, so the two
  ends of [l, u] decide;
* whether phi is convex or concave there, and so the lines above and below it.

Values and derivatives are evaluated in float64 with a bound on their error; for the functions of
the mathematical library (tanh, exp, erf) 32 units in the last place are assumed, as in
``admm_lip/radii.py``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..float64 import TINY, U
from ..networks.activation_row import Curve, Knot
from ..networks.activations import ACTIVATIONS, SlopeRange, promised_only
from ..networks.layer_spec import LayerSpec, SideBySide
from ..networks.scalar_math_torch import TORCH, scalar_runs

# Error of a derivative, in units of u (1 + |z|) times the steepest slope.
_DERIVATIVE = 64.0


class Range(NamedTuple):
    """Lower and upper ends, tensors of equal shape."""

    low: Tensor
    high: Tensor


class Lines(NamedTuple):
    """``low_slope t + low <= phi(t) <= high_slope t + high`` on the interval."""

    low_slope: Tensor
    low: Tensor
    high_slope: Tensor
    high: Tensor


class WithArrays(LayerSpec):
    """An activation whose options hold its arrays as tensors, one number for every neuron."""

    def __post_init__(self) -> None:
        """They were checked where the network was read."""


def parts_of(spec: LayerSpec | SideBySide, size: int) -> list[tuple[slice, LayerSpec]]:
    """The layer as runs of neurons with one scalar activation each; one run for most kinds.

    Raises:
        UnsupportedModule: for an activation that is known by its slopes alone.
    """
    runs = scalar_runs(spec, size)
    for _, one in runs:
        if not ACTIVATIONS[one.kind].known:
            raise promised_only(one.options)
    return runs


def curve_of(spec: LayerSpec) -> Curve:
    """What the table knows of an activation on intervals."""
    curve = ACTIVATIONS[spec.kind].curve
    assert curve is not None  # parts_of refused it
    return curve


def slopes_of(spec: LayerSpec) -> SlopeRange:
    """Least and greatest slope anywhere."""
    return ACTIVATIONS[spec.kind].slopes(spec.options)


def value_with_error(spec: LayerSpec, z: Tensor) -> tuple[Tensor, Tensor]:
    """``phi(z)`` at the given numbers, and a bound on the error of evaluating it."""
    row = ACTIVATIONS[spec.kind]
    value = row.value(TORCH, spec.options, z)
    return value, row.evaluation_error(spec.options, z, value) + TINY


def derivative_with_error(spec: LayerSpec, z: Tensor) -> tuple[Tensor, Tensor]:
    """``phi'(z)``, at a jump either side's, and a bound on the error of evaluating it."""
    value = curve_of(spec).derivative(TORCH, spec.options, z)
    if ACTIVATIONS[spec.kind].roundings is not None:
        return value, torch.zeros_like(value)
    alpha, beta = slopes_of(spec)
    steepest = max(1.0, abs(alpha), abs(beta))
    # Beyond 1e3 every derivative here is constant to far below u.
    return value, _DERIVATIVE * U * steepest * (1.0 + z.abs().clamp(max=1e3))


def slopes_on(spec: LayerSpec, interval: Range) -> Range:
    """Range of ``phi'`` on the interval, outwards: that of all difference quotients in it."""
    curve, given = curve_of(spec), interval
    interval = _in_one_period(curve, interval)
    at_low, low_error = derivative_with_error(spec, interval.low)
    at_high, high_error = derivative_with_error(spec, interval.high)
    low = torch.minimum(at_low - low_error, at_high - high_error)
    high = torch.maximum(at_low + low_error, at_high + high_error)
    for knot in curve.knots(spec.options):
        inside = _holds(interval, knot)
        low = torch.where(inside, low.clamp(max=knot.low), low)
        high = torch.where(inside, high.clamp(min=knot.high), high)
    alpha, beta = slopes_of(spec)
    # Ends that overflowed say nothing; the slopes on the whole line hold.
    known = torch.isfinite(given.low) & torch.isfinite(given.high)
    low = torch.where(known & (low > alpha), low.clamp(max=beta), alpha)
    high = torch.where(known & (high < beta), high.clamp(min=alpha), beta)
    return Range(low, high)


def curvature_on(spec: LayerSpec, interval: Range) -> Tensor:
    """1 where phi is convex on the interval, -1 where concave, 0 where neither; linear counts 1."""
    curve = curve_of(spec)
    interval = _in_one_period(curve, interval)
    knots, signs = curve.knots(spec.options), curve.signs(spec.options)
    up = torch.zeros_like(interval.low, dtype=torch.bool)
    down = torch.zeros_like(up)
    edges = [-math.inf, *(k.at for k in knots), math.inf]
    for sign, left, right in zip(signs, edges[:-1], edges[1:], strict=True):
        touched = (interval.high > left) & (interval.low < right)
        up |= touched & (sign > 0)
        down |= touched & (sign < 0)
    for knot in knots:
        inside = _holds(interval, knot)
        up |= inside & (knot.jump > 0)
        down |= inside & (knot.jump < 0)
        if knot.jump == 0:  # phi'' changes its sign within rounding of the knot
            near = inside & ((interval.low > _below(knot)) | (interval.high < _above(knot)))
            up, down = up | near, down | near
    return torch.where(~down, 1, torch.where(~up, -1, 0))


def anchored_slopes(spec: LayerSpec, anchor: Range, interval: Range) -> Range:
    """Range of ``(phi(t) - phi(z)) / (t - z)`` for z in ``anchor`` and t in ``interval``.

    ``anchor`` encloses one number and lies within ``interval``.  For a convex phi the quotient is
    increasing in t and in z; where ``phi'`` has a single peak it has no interior minimum.
    """
    steepest = slopes_on(spec, interval)
    curvature = curvature_on(spec, interval)
    left = _quotient(spec, interval.low, anchor.low)
    right = _quotient(spec, interval.high, anchor.high)
    peaked = curve_of(spec).peaked(spec.options)
    inner_left = _quotient(spec, interval.low, anchor.high)
    inner_right = _quotient(spec, interval.high, anchor.low)
    least = torch.minimum(
        torch.minimum(left.low, right.low), torch.minimum(inner_left.low, inner_right.low)
    )
    low = torch.where(
        curvature == 1, left.low, torch.where(curvature == -1, right.low, steepest.low)
    )
    low = torch.where((curvature == 0) & peaked, least, low)
    high = torch.where(
        curvature == 1, right.high, torch.where(curvature == -1, left.high, steepest.high)
    )
    # A quotient of two neighbouring numbers is noise; NaN and infinities fail the comparisons.
    low = torch.where(low > steepest.low, low, steepest.low)
    high = torch.where(high < steepest.high, high, steepest.high)
    sane = low <= high
    return Range(torch.where(sane, low, steepest.low), torch.where(sane, high, steepest.high))


def value_range(spec: LayerSpec, interval: Range, slopes: Range) -> Range:
    """Range of ``phi`` on the interval: its ends, or where it is not monotone where two lines meet.

    With slopes in [a, b], a < 0 < b, phi is above both ``phi(l) + a (t - l)`` and
    ``phi(u) + b (t - u)``, whose crossing is its least possible value; likewise from above.
    """
    (at_low, low_error), (at_high, high_error) = (value_with_error(spec, end) for end in interval)
    a, b = slopes.low.clamp(max=0.0), slopes.high.clamp(min=0.0)
    width = interval.high - interval.low
    spread = (b - a).clamp(min=1e-300)
    rise = at_high - at_low
    down = ((b * width - rise) / spread).minimum(width).clamp(min=0.0)
    up = ((rise - a * width) / spread).minimum(width).clamp(min=0.0)
    size = at_low.abs() + at_high.abs() + (b - a) * width
    error = low_error + high_error + 32.0 * U * size + TINY
    low = torch.minimum(torch.minimum(at_low, at_high), at_low + a * down) - error
    high = torch.maximum(torch.maximum(at_low, at_high), at_low + b * up) + error
    monotone = (slopes.low >= 0.0) | (slopes.high <= 0.0)
    ends_low = torch.minimum(at_low - low_error, at_high - high_error)
    ends_high = torch.maximum(at_low + low_error, at_high + high_error)
    return Range(torch.where(monotone, ends_low, low), torch.where(monotone, ends_high, high))


def lines_on(spec: LayerSpec, center: Tensor, interval: Range, slopes: Range) -> Lines:
    """A line below and a line above phi on the interval.

    Convex: the tangent at ``center`` and the chord; concave: the chord and the tangent; otherwise
    the two lines of the least slope through the ends, which hold for any phi of these slopes.  The
    intercepts are those of the rounded slopes, moved outwards.
    """
    curvature = curvature_on(spec, interval)
    convex, concave = curvature == 1, curvature == -1
    left, right = interval
    at_left, error_left = value_with_error(spec, left)
    at_right, error_right = value_with_error(spec, right)
    width = right - left
    chord = (at_right - at_left) / width.clamp(min=1e-300)
    chord = torch.where(slopes.low == slopes.high, slopes.low, chord)
    chord = chord.clamp(*slopes_of(spec))
    ends = at_left - chord * left, at_right - chord * right
    tangent, base, slack = tangent_at(spec, center, interval)
    a = slopes.low
    slack = slack + error_left + error_right + 8.0 * U * (at_left.abs() + at_right.abs())
    slack = slack + 8.0 * U * (chord.abs() + a.abs()) * (left.abs() + right.abs()) + TINY
    through = at_left - a * left, at_right - a * right
    low = torch.where(convex, base, torch.where(concave, torch.minimum(*ends), through[0]))
    high = torch.where(convex, torch.maximum(*ends), torch.where(concave, base, through[1]))
    return Lines(
        torch.where(convex, tangent, torch.where(concave, chord, a)),
        low - slack,
        torch.where(convex, chord, torch.where(concave, tangent, a)),
        high + slack,
    )


def tangent_at(spec: LayerSpec, center: Tensor, interval: Range) -> tuple[Tensor, Tensor, Tensor]:
    """Slope and intercept of the tangent at ``center``, and how far rounding may move it."""
    left, right = interval
    z = torch.minimum(torch.maximum(center, left), right)
    value, error = value_with_error(spec, z)
    slope, doubt = derivative_with_error(spec, z)
    slack = error + (doubt + 4.0 * U * slope.abs()) * (right - left)
    slack = slack + 8.0 * U * (value.abs() + slope.abs() * (left.abs() + right.abs()))
    return slope, value - slope * z, slack


def _quotient(spec: LayerSpec, t: Tensor, z: Tensor) -> Range:
    """``(phi(t) - phi(z)) / (t - z)``, outwards; not finite where the two coincide."""
    (at_t, error_t), (at_z, error_z) = value_with_error(spec, t), value_with_error(spec, z)
    gap = t - z
    quotient = (at_t - at_z) / gap
    error = (error_t + error_z) / gap.abs() + 8.0 * U * quotient.abs()
    return Range(quotient - error, quotient + error)


def _in_one_period(curve: Curve, interval: Range) -> Range:
    """The interval moved by whole periods to around 0, wider by what rounding may take.

    What is longer than a period, or too far out to be placed, becomes all of a period on both
    sides: that holds every knot.
    """
    if curve.period is None:
        return interval
    period, (left, right) = curve.period, interval
    turns = torch.round(0.5 * (left + right) / period)
    doubt = 8.0 * U * (left.abs() + right.abs())
    low, high = left - turns * period - doubt, right - turns * period + doubt
    placed = (high - low < period) & (doubt < 1.0)  # false for NaN as well
    return Range(torch.where(placed, low, -period), torch.where(placed, high, period))


def _holds(interval: Range, knot: Knot) -> Tensor:
    holds: Tensor = (interval.low <= _above(knot)) & (interval.high >= _below(knot))
    return holds


def _above(knot: Knot) -> Any:
    """The knot's place moved up by what rounding may have taken from it."""
    return knot.at + 8.0 * U * abs(knot.at)


def _below(knot: Knot) -> Any:
    return knot.at - 8.0 * U * abs(knot.at)
