"""Slopes, values and lines of every activation on intervals, against dense sampling."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from admm_lip.local.curves import (
    CURVES,
    Range,
    anchored_slopes,
    curvature_on,
    lines_on,
    slopes_on,
    value_range,
    value_with_error,
)
from admm_lip.networks.activations import slope_range
from admm_lip.networks.network import LayerSpec

SPECS = [
    LayerSpec("relu", "a", {}),
    *(LayerSpec("leaky_relu", "a", {"negative_slope": s}) for s in (0.01, 1.7, -1.0)),
    *(LayerSpec("elu", "a", {"alpha": a}) for a in (1.0, 0.3, 2.5, -0.7)),
    LayerSpec("tanh", "a", {}),
    LayerSpec("sigmoid", "a", {}),
    *(LayerSpec("softplus", "a", {"beta": b, "threshold": 20.0}) for b in (1.0, 4.0, -0.5)),
    LayerSpec("hardtanh", "a", {"min_val": -0.5, "max_val": 2.0}),
    LayerSpec("gelu", "a", {"approximate": "none"}),
    LayerSpec("gelu", "a", {"approximate": "tanh"}),
    LayerSpec("silu", "a", {}),
]
NAMES = [f"{s.kind}{list(s.options.values())}" for s in SPECS]
every_curve = pytest.mark.parametrize("spec", SPECS, ids=NAMES)


def intervals(seed: int = 0) -> Range:
    """Narrow and wide ones, near and far, and ends on the knots."""
    g = torch.Generator().manual_seed(seed)
    middle = 4.0 * torch.randn(300, generator=g, dtype=torch.float64)
    half = 10.0 ** (6.0 * torch.rand(300, generator=g, dtype=torch.float64) - 5.0)
    ends = torch.tensor([-(2.0**0.5), -0.5, 0.0, 2.0**0.5, 2.0, 2.3993572805], dtype=torch.float64)
    low = torch.cat([middle - half, ends, ends - 1.0])
    high = torch.cat([middle + half, ends + 1.0, ends])
    return Range(low, high)


def points_of(interval: Range) -> Tensor:
    """Evenly spaced points of each interval, ``(intervals, 401)``."""
    share = torch.linspace(0.0, 1.0, 401, dtype=torch.float64)
    t = interval.low[:, None] * (1.0 - share) + interval.high[:, None] * share
    return t.clamp(interval.low[:, None], interval.high[:, None])


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
    jumps = CURVES[spec.kind].exact  # an end on a kink counts as beyond it
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
    slope = CURVES[spec.kind].derivative(spec.options, t)
    alpha, beta = slope_range(spec.kind, spec.options)
    assert alpha - 1e-13 <= float(slope.min()) <= float(slope.max()) <= beta + 1e-13
    edges = [-12.0, *(k.at for k in CURVES[spec.kind].knots(spec.options)), 12.0]
    for left, right in itertools.pairwise(edges):
        rise = slope[(t > left + 1e-6) & (t < right - 1e-6)].diff()
        assert float(rise.min()) >= -1e-14 or float(rise.max()) <= 1e-14
