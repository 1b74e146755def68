"""Slopes, values and lines of every activation on intervals, against dense sampling."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from activation_cases import SCALAR, spec_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from admm_lip.local.activations import Curved
from admm_lip.local.curves import (
    Range,
    WithArrays,
    anchored_slopes,
    curvature_on,
    curve_of,
    lines_on,
    slopes_on,
    value_range,
    value_with_error,
)
from admm_lip.networks.activations import slope_range
from admm_lip.networks.network import LayerSpec
from admm_lip.networks.scalar_math_torch import TORCH
from admm_lip.rounding import U

SPECS = [spec_of(name) for name in SCALAR]
every_curve = pytest.mark.parametrize("spec", SPECS, ids=list(SCALAR))
KNOTS = sorted({k.at for s in SPECS for k in curve_of(s).knots(s.options)})


def intervals(seed: int = 0) -> Range:
    """Narrow and wide ones, near and far, and ends on the knots."""
    g = torch.Generator().manual_seed(seed)
    middle = 4.0 * torch.randn(300, generator=g, dtype=torch.float64)
    half = 10.0 ** (6.0 * torch.rand(300, generator=g, dtype=torch.float64) - 5.0)
    ends = torch.tensor(KNOTS, dtype=torch.float64)
    far = torch.tensor([1e2, 1e4, 1e9, 1e20, 1e150], dtype=torch.float64)
    low = torch.cat([middle - half, ends, ends - 1.0, far, -far * 1.5])
    high = torch.cat([middle + half, ends + 1.0, ends, far * 1.5, far])
    return Range(low, high)


def points_of(interval: Range) -> Tensor:
    """Evenly spaced points of each interval, ``(intervals, 401)``."""
    share = torch.linspace(0.0, 1.0, 401, dtype=torch.float64)
    t = interval.low[..., None] * (1.0 - share) + interval.high[..., None] * share
    return t.clamp(interval.low[..., None], interval.high[..., None])


def evaluated(spec: LayerSpec, t: Tensor) -> tuple[Tensor, Tensor]:
    return value_with_error(spec, t)


@every_curve
def test_slope_ranges_contain_sampled_difference_quotients(spec: LayerSpec) -> None:
    interval = intervals()
    slopes = slopes_on(spec, interval)
    t = points_of(interval)
    value, error = evaluated(spec, t)
    step = (t[:, 1:] - t[:, :-1]).clamp(min=1e-300)
    rise, noise = (
        value[:, 1:] - value[:, :-1],
        error[:, 1:] + error[:, :-1] + 1e-15 * t.abs()[:, 1:],
    )
    assert bool((rise >= slopes.low[:, None] * step - noise).all())
    assert bool((rise <= slopes.high[:, None] * step + noise).all())


@every_curve
def test_slope_ranges_are_no_wider_than_they_need_be(spec: LayerSpec) -> None:
    interval = intervals()
    wide = (interval.high - interval.low) > 1e-2
    t = points_of(interval)[wide]
    value, _ = evaluated(spec, t)
    quotients = (value[:, 1:] - value[:, :-1]) / (t[:, 1:] - t[:, :-1])
    slopes = slopes_on(spec, interval)
    bend = 0.02 * (interval.high - interval.low)[wide].clamp(min=0.01)
    inner = (interval.low[wide] != 0.0) & (interval.high[wide] != 0.0)
    jumps = any(
        k.jump for k in curve_of(spec).knots(spec.options)
    )  # an end on a kink counts as beyond it
    keep = inner if jumps else torch.ones_like(inner)
    assert bool((quotients.amin(1) - slopes.low[wide] <= bend + 0.02)[keep].float().mean() > 0.97)
    assert bool((slopes.high[wide] - quotients.amax(1) <= bend + 0.02)[keep].float().mean() > 0.97)


@every_curve
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.93, 1.0])
def test_anchored_slopes_contain_the_quotients_from_the_anchor(
    spec: LayerSpec, share: float
) -> None:
    interval = intervals(3)
    z = (interval.low + share * (interval.high - interval.low)).clamp(interval.low, interval.high)
    blur = 1e-12 * (1.0 + z.abs())
    anchor = Range((z - blur).maximum(interval.low), (z + blur).minimum(interval.high))
    slopes, all_slopes = anchored_slopes(spec, anchor, interval), slopes_on(spec, interval)
    assert bool((slopes.low >= all_slopes.low).all())
    assert bool((slopes.high <= all_slopes.high).all())
    assert bool((slopes.low <= slopes.high).all())
    t = points_of(interval)
    (value, error), (at_z, z_error) = evaluated(spec, t), evaluated(spec, z)
    step, rise = t - z[:, None], value - at_z[:, None]
    noise = error + z_error[:, None] + 1e-14 * (t.abs() + value.abs())
    bounds = torch.stack([slopes.low[:, None] * step, slopes.high[:, None] * step])
    assert bool((rise >= bounds.amin(0) - noise).all())
    assert bool((rise <= bounds.amax(0) + noise).all())


def test_anchored_slopes_of_relu_are_the_chords_to_the_ends() -> None:
    one = torch.ones(1, dtype=torch.float64)
    wide = Range(-3.0 * one, 5.0 * one)
    active = anchored_slopes(SPECS[0], Range(2.0 * one, 2.0 * one), wide)
    assert float(active.low) == pytest.approx(2.0 / 5.0)
    assert float(active.high) == 1.0
    idle = anchored_slopes(SPECS[0], Range(-1.0 * one, -1.0 * one), wide)
    assert float(idle.low) == 0.0
    assert float(idle.high) == pytest.approx(5.0 / 6.0)


@every_curve
def test_lines_and_ranges_enclose_the_values(spec: LayerSpec) -> None:
    interval = intervals(5)
    slopes = slopes_on(spec, interval)
    t = points_of(interval)
    value, _ = evaluated(spec, t)
    outputs = value_range(spec, interval, slopes)
    assert bool((value >= outputs.low[:, None]).all())
    assert bool((value <= outputs.high[:, None]).all())
    for share in (0.0, 0.4, 1.0):
        center = interval.low + share * (interval.high - interval.low)
        lines = lines_on(spec, center, interval, slopes)
        below = lines.low_slope[:, None] * t + lines.low[:, None]
        above = lines.high_slope[:, None] * t + lines.high[:, None]
        assert bool((below <= value).all())
        assert bool((value <= above).all())


@every_curve
def test_curvature_is_what_second_differences_show(spec: LayerSpec) -> None:
    interval = intervals(7)
    wide = (interval.high - interval.low) > 1e-2
    t = points_of(interval)
    value, error = evaluated(spec, t)
    bend = value[:, 2:] - 2.0 * value[:, 1:-1] + value[:, :-2]
    noise = 8.0 * error.amax(1) + 1e-13 * (1.0 + t.abs().amax(1))
    curvature = curvature_on(spec, interval)
    assert bool((bend.amin(1) >= -noise)[wide & (curvature == 1)].all())
    assert bool((bend.amax(1) <= noise)[wide & (curvature == -1)].all())


@every_curve
def test_knots_carry_the_extreme_slopes(spec: LayerSpec) -> None:
    """``phi'`` is monotone between knots, and nothing sampled exceeds the table."""
    t = torch.linspace(-12.0, 12.0, 200_001, dtype=torch.float64)
    slope = curve_of(spec).derivative(TORCH, spec.options, t)
    alpha, beta = slope_range(spec.kind, spec.options)
    assert alpha - 1e-13 <= float(slope.min()) <= float(slope.max()) <= beta + 1e-13
    edges = [-12.0, *(k.at for k in curve_of(spec).knots(spec.options)), 12.0]
    for left, right in itertools.pairwise(edges):
        if curve_of(spec).period is not None and (right < -6.0 or left > 6.0):
            continue  # knots stand within one period
        rise = slope[(t > left + 1e-6) & (t < right - 1e-6)].diff()
        assert float(rise.min()) >= -1e-14 or float(rise.max()) <= 1e-14


@every_curve
@settings(max_examples=40, deadline=None)
@given(middle=st.floats(-1e3, 1e3), width=st.floats(1e-9, 1e3), share=st.floats(0.0, 1.0))
def test_any_interval_is_enclosed(
    spec: LayerSpec, middle: float, width: float, share: float
) -> None:
    ends = torch.tensor([middle, middle + width], dtype=torch.float64)
    interval = Range(ends[:1], ends[1:])
    slopes = slopes_on(spec, interval)
    t = points_of(interval)[0]
    value, error = value_with_error(spec, t)
    outputs = value_range(spec, interval, slopes)
    assert bool(((value >= outputs.low) & (value <= outputs.high)).all())
    z = ends[:1] + share * width
    lines = lines_on(spec, z, interval, slopes)
    assert bool((lines.low_slope * t + lines.low <= value + error).all())
    assert bool((value - error <= lines.high_slope * t + lines.high).all())
    at_z, z_error = value_with_error(spec, z.clamp(*interval))
    anchored = anchored_slopes(spec, Range(z.clamp(*interval), z.clamp(*interval)), interval)
    step, rise = t - z.clamp(*interval), value - at_z
    noise = error + z_error + 1e-14 * (1.0 + t.abs())
    bounds = torch.stack([anchored.low * step, anchored.high * step])
    assert bool((rise >= bounds.amin(0) - noise).all())
    assert bool((rise <= bounds.amax(0) + noise).all())


@every_curve
def test_values_lie_between_the_lines_of_their_piece(spec: LayerSpec) -> None:
    """Pieces follow one another from end to end; on every one a line below holds, and one above."""
    interval = intervals(3)
    pieces = Curved(spec).bend(interval.low[None], Range(*(e[None] for e in interval))).pieces
    t = points_of(Range(pieces.first[:, 0], pieces.last[:, 0]))
    phi, error = value_with_error(spec, t)
    line = pieces.slope[:, 0, :, None] * t + pieces.intercept[:, 0, :, None]
    size = (pieces.slope[:, 0, :, None] * t).abs() + pieces.intercept[:, 0, :, None].abs()
    gap = phi - line
    noise = pieces.off[0][:, None] + error + 4.0 * U * (size + phi.abs())
    count = len(pieces.first) // (1 if pieces.off.any() or len(pieces.first) < 4 else 2)
    below, above = gap[:count], gap[-count:]
    assert bool((below >= -noise[:count]).all())
    assert bool((above <= noise[-count:]).all())
    assert torch.equal(pieces.first[0, 0], interval.low)
    assert torch.equal(pieces.last[count - 1, 0], interval.high)
    assert torch.equal(pieces.first[1:count], pieces.last[: count - 1])


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("clipped_relu", ([0.0] * 4, [0.5, 0.0, 2.0, 0.5])),
        ("pair_clip", ([-math.inf, -0.5, -2.0, -math.inf], [0.5, math.inf, math.inf, -1.0])),
    ],
)
def test_thresholds_of_every_neuron_are_those_of_a_clip(
    kind: str, ends: tuple[list[float], list[float]]
) -> None:
    low, high = (torch.tensor(end, dtype=torch.float64) for end in ends)
    options = {"threshold": high} if kind == "clipped_relu" else {"low": low, "high": high}
    g = torch.Generator().manual_seed(0)
    at = 2.0 * torch.randn(50, 4, generator=g, dtype=torch.float64)
    width = torch.rand(50, 4, generator=g, dtype=torch.float64)
    interval, z = Range(at - width, at + width), at + width * torch.linspace(-0.9, 0.9, 50)[:, None]
    found = Curved(WithArrays(kind, "a", options)).on(z, Range(z, z), interval)
    bend = Curved(WithArrays(kind, "a", options)).bend(z, interval)
    for k in range(4):
        limits = {"min_val": max(ends[0][k], -99.0), "max_val": min(ends[1][k], 99.0)}
        if not limits["min_val"] < limits["max_val"]:  # constant 0
            assert not found.outputs.high[:, k].clamp(min=1e-200).gt(1e-200).any()
            continue
        one = Curved(LayerSpec("hardtanh", "a", limits))
        part = Range(*(end[:, k : k + 1] for end in interval))
        own = one.on(z[:, k : k + 1], Range(z[:, k : k + 1], z[:, k : k + 1]), part)
        for mine, theirs in zip(found.outputs, own.outputs, strict=True):
            assert torch.equal(mine[:, k], theirs[:, 0])
        assert found.curve is not None
        assert own.curve is not None
        for mine, theirs in zip(found.curve.lines, own.curve.lines, strict=True):
            assert torch.equal(mine[:, k], theirs[:, 0])
        expected = one.bend(z[:, k : k + 1], part)
        assert torch.equal(bend.bending[:, k], expected.bending[:, 0])
        torch.testing.assert_close(bend.slope[:, k], expected.slope[:, 0])
