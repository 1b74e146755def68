"""What is known of an activation on an interval: values, slopes, curvature, supporting lines.

Every activation ``phi`` of the package is described by the **knots** of its derivative, the points
where ``phi'`` jumps or turns, and by the sign of ``phi''`` between them.  From these follow, on any
interval [l, u] and rounded outwards,

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UnsupportedModule
from ..networks.activations import Options, slope_range
from ..networks.layer_spec import CARRIED, LayerSpec, SideBySide, runs_of
from ..networks.sorting import HALF_ABS
from ..rounding import TINY, U

# Error of a derivative, in units of u (1 + |z|) times the steepest slope.
_DERIVATIVE = 64.0


class Knot(NamedTuple):
    """Where ``phi'`` jumps or turns: the place, the range of ``phi'`` there, the jump's sign."""

    at: float
    low: float
    high: float
    jump: int


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


@dataclass(frozen=True)
class Curve:
    """One row of the table.

    Attributes:
        value: ``phi``.
        derivative: ``phi'``, at a jump either side's.
        knots: from the options, in ascending order.
        signs: from the options, the sign of ``phi''`` left of, between and right of the knots.
        exact: whether ``phi`` and ``phi'`` are evaluated with at most one rounding.
        peaked: from the options, whether ``phi'`` rises to a single peak and falls from it.
    """

    value: Callable[[Options, Tensor], Tensor]
    derivative: Callable[[Options, Tensor], Tensor]
    knots: Callable[[Options], tuple[Knot, ...]]
    signs: Callable[[Options], tuple[int, ...]]
    exact: bool = False
    peaked: Callable[[Options], bool] = lambda options: False


def _sign(value: float) -> int:
    return (value > 0.0) - (value < 0.0)


def _overshooting(kind: str, at: float) -> Callable[[Options], tuple[Knot, ...]]:
    """Knots of GELU and SiLU: ``phi'`` turns at ``-at`` (least) and ``at`` (greatest)."""

    def knots(options: Options) -> tuple[Knot, ...]:
        least, greatest = slope_range(kind, options)
        where = _GELU_TURNS[str(options["approximate"])] if kind == "gelu" else at
        return Knot(-where, least, least, 0), Knot(where, greatest, greatest, 0)

    return knots


# Roots of phi'' > 0: sqrt 2; x s'(x) tanh s(x) = (1 + 6 c x^2) / (1 + 3 c x^2) for the tanh form.
_GELU_TURNS = {"none": math.sqrt(2.0), "tanh": 1.4185040087908284}
# x tanh(x / 2) = 2
_SILU_TURN = 2.3993572805154677


def _gelu_derivative(options: Options, z: Tensor) -> Tensor:
    if options["approximate"] == "none":
        density = torch.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
        return 0.5 * torch.erfc(-z / math.sqrt(2.0)) + z * density
    z = z.clamp(-20.0, 20.0)  # beyond, phi' is 0 or 1 to the last place
    k, c = math.sqrt(2.0 / math.pi), 0.044715
    t = torch.tanh(k * (z + c * z**3))
    return 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * k * (1.0 + 3.0 * c * z * z)


def _silu_derivative(options: Options, z: Tensor) -> Tensor:
    g = torch.sigmoid(z)
    return g * (1.0 + z * torch.sigmoid(-z))


def _softplus(options: Options, z: Tensor) -> Tensor:
    beta = float(options["beta"])
    scaled = beta * z
    return torch.logaddexp(scaled, torch.zeros_like(scaled)) / beta


def _elu_knots(options: Options) -> tuple[Knot, ...]:
    a = float(options["alpha"])
    return (Knot(0.0, min(a, 1.0), max(a, 1.0), _sign(1.0 - a)),)


def _leaky_knots(options: Options) -> tuple[Knot, ...]:
    s = float(options["negative_slope"])
    return (Knot(0.0, min(s, 1.0), max(s, 1.0), _sign(1.0 - s)),)


CURVES: Mapping[str, Curve] = {
    "relu": Curve(
        lambda o, z: z.clamp(min=0.0),
        lambda o, z: (z > 0.0).double(),
        lambda o: (Knot(0.0, 0.0, 1.0, 1),),
        lambda o: (0, 0),
        exact=True,
    ),
    "leaky_relu": Curve(
        lambda o, z: torch.where(z > 0.0, z, o["negative_slope"] * z),
        lambda o, z: torch.where(z > 0.0, 1.0, o["negative_slope"] * torch.ones_like(z)),
        _leaky_knots,
        lambda o: (0, 0),
        exact=True,
    ),
    "hardtanh": Curve(
        lambda o, z: z.clamp(o["min_val"], o["max_val"]),
        lambda o, z: ((z > o["min_val"]) & (z < o["max_val"])).double(),
        lambda o: (Knot(o["min_val"], 0.0, 1.0, 1), Knot(o["max_val"], 0.0, 1.0, -1)),
        lambda o: (0, 0, 0),
        exact=True,
        peaked=lambda o: True,
    ),
    "elu": Curve(
        lambda o, z: torch.where(z > 0.0, z, o["alpha"] * torch.expm1(z.clamp(max=0.0))),
        lambda o, z: torch.where(z > 0.0, 1.0, o["alpha"] * torch.exp(z.clamp(max=0.0))),
        _elu_knots,
        lambda o: (_sign(o["alpha"]), 0),
        peaked=lambda o: bool(o["alpha"] >= 0.0),
    ),
    "tanh": Curve(
        lambda o, z: torch.tanh(z),
        lambda o, z: 1.0 - torch.tanh(z).square(),
        lambda o: (Knot(0.0, 1.0, 1.0, 0),),
        lambda o: (1, -1),
        peaked=lambda o: True,
    ),
    "sigmoid": Curve(
        lambda o, z: torch.sigmoid(z),
        lambda o, z: torch.sigmoid(z) * torch.sigmoid(-z),
        lambda o: (Knot(0.0, 0.25, 0.25, 0),),
        lambda o: (1, -1),
        peaked=lambda o: True,
    ),
    "softplus": Curve(
        _softplus,
        lambda o, z: torch.sigmoid(o["beta"] * z),
        lambda o: (),
        lambda o: (_sign(o["beta"]),),
    ),
    "gelu": Curve(
        lambda o, z: torch.nn.functional.gelu(z, approximate=o["approximate"]),
        _gelu_derivative,
        _overshooting("gelu", 0.0),
        lambda o: (-1, 1, -1),
    ),
    "silu": Curve(
        lambda o, z: torch.nn.functional.silu(z),
        _silu_derivative,
        _overshooting("silu", _SILU_TURN),
        lambda o: (-1, 1, -1),
    ),
}


def parts_of(spec: LayerSpec | SideBySide, size: int) -> list[tuple[slice, LayerSpec]]:
    """The layer as runs of neurons with one scalar activation each; one run for most kinds."""
    return [
        (slice(run.start + part.start, run.start + part.stop), scalar)
        for run, one in runs_of(spec, size)
        for part, scalar in _scalar_parts(one, run.stop - run.start)
    ]


def _scalar_parts(spec: LayerSpec, size: int) -> list[tuple[slice, LayerSpec]]:
    """Sorted pairs are an identity and an absolute value: LeakyReLU of slope 1 and of slope -1.

    What is carried past other activations is an identity.
    """
    if spec.kind in CURVES:
        return [(slice(0, size), spec)]
    if spec.kind not in (HALF_ABS, CARRIED):
        hint = "use admm_lip.local_training.certify_samples"
        raise UnsupportedModule(f"{spec.name}: no local bounds here for {spec.kind}; {hint}")
    same = size if spec.kind == CARRIED else size // 2
    return [
        (slice(low, high), LayerSpec("leaky_relu", spec.name, {"negative_slope": slope}))
        for low, high, slope in ((0, same, 1.0), (same, size, -1.0))
        if low < high
    ]


def value_with_error(spec: LayerSpec, z: Tensor) -> tuple[Tensor, Tensor]:
    """``phi(z)`` at the given numbers, and a bound on the error of evaluating it."""
    curve = CURVES[spec.kind]
    value = curve.value(spec.options, z)
    if curve.exact:
        return value, 2.0 * U * value.abs() + TINY
    error = 32.0 * U * (1.0 + z.abs() + value.abs())
    if spec.kind == "softplus":  # log(1 + e^0) / beta carries 1 / beta
        error = error * max(1.0, 1.0 / abs(spec.options["beta"]))
    if spec.kind == "elu":
        error = error * max(1.0, abs(spec.options["alpha"]))
    return value, error


def derivative_with_error(spec: LayerSpec, z: Tensor) -> tuple[Tensor, Tensor]:
    """``phi'(z)``, at a jump either side's, and a bound on the error of evaluating it."""
    curve = CURVES[spec.kind]
    value = curve.derivative(spec.options, z)
    if curve.exact:
        return value, torch.zeros_like(value)
    alpha, beta = slope_range(spec.kind, spec.options)
    steepest = max(1.0, abs(alpha), abs(beta))
    # Beyond 1e3 every derivative here is constant to far below u.
    return value, _DERIVATIVE * U * steepest * (1.0 + z.abs().clamp(max=1e3))


def slopes_on(spec: LayerSpec, interval: Range) -> Range:
    """Range of ``phi'`` on the interval, outwards: that of all difference quotients in it."""
    curve = CURVES[spec.kind]
    at_low, low_error = derivative_with_error(spec, interval.low)
    at_high, high_error = derivative_with_error(spec, interval.high)
    low = torch.minimum(at_low - low_error, at_high - high_error)
    high = torch.maximum(at_low + low_error, at_high + high_error)
    for knot in curve.knots(spec.options):
        inside = _holds(interval, knot)
        low = torch.where(inside, low.clamp(max=knot.low), low)
        high = torch.where(inside, high.clamp(min=knot.high), high)
    alpha, beta = slope_range(spec.kind, spec.options)
    # Ends that overflowed say nothing; the slopes on the whole line hold.
    known = torch.isfinite(interval.low) & torch.isfinite(interval.high)
    low = torch.where(known & (low > alpha), low.clamp(max=beta), alpha)
    high = torch.where(known & (high < beta), high.clamp(min=alpha), beta)
    return Range(low, high)


def curvature_on(spec: LayerSpec, interval: Range) -> Tensor:
    """1 where phi is convex on the interval, -1 where concave, 0 where neither; linear counts 1."""
    curve = CURVES[spec.kind]
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
    peaked = CURVES[spec.kind].peaked(spec.options)
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
    chord = chord.clamp(*slope_range(spec.kind, spec.options))
    ends = at_left - chord * left, at_right - chord * right
    tangent, base, slack = _tangent(spec, center, interval)
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


def _tangent(spec: LayerSpec, center: Tensor, interval: Range) -> tuple[Tensor, Tensor, Tensor]:
    """Slope and intercept of the tangent at ``center``, and what rounding may take from it."""
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


def _holds(interval: Range, knot: Knot) -> Tensor:
    return (interval.low <= _above(knot)) & (interval.high >= _below(knot))


def _above(knot: Knot) -> float:
    """The knot's place moved up by the rounding of a computed one; a jump's place is exact."""
    return knot.at if knot.jump else knot.at + 8.0 * U * abs(knot.at)


def _below(knot: Knot) -> float:
    return knot.at if knot.jump else knot.at - 8.0 * U * abs(knot.at)
