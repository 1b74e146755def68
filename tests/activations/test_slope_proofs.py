"""Slope ranges that no closed form gives, proven by interval arithmetic on the table's formulas.

``phi''`` has the stated sign on every box outside small brackets around its two roots, so ``phi'``
is monotone there and takes its extremes in the brackets or far out.  Within a bracket of half width
w it is at most its value at the middle plus ``w max |phi''|``.  Beyond :data:`REACH` every ``phi'``
here is within ``(1 + |x|) e^-|x|`` of 0 or of 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from interval_jets import JETS, Interval, Jet

from admm_lip.networks.activations import ACTIVATIONS, slope_range

REACH = 14.0
SMOOTH = [("silu", {}), ("mish", {}), ("gelu", {"approximate": "none"})]
every_smooth = pytest.mark.parametrize(("kind", "options"), SMOOTH, ids=[k for k, _ in SMOOTH])


def boxes(turns: tuple[float, float], bracket: float, reach: float) -> list[np.ndarray]:
    """Left ends, then right ends, of boxes of all but the brackets: finer towards the roots."""
    away = np.exp(np.arange(math.log(bracket), math.log(2.0 * reach), 2e-3))
    places = np.concatenate([turn + sign * away for turn in turns for sign in (-1.0, 1.0)])
    places = np.unique(np.concatenate([places, [-reach, reach]]))
    inside = (abs(places) <= reach) & np.all(
        [abs(places - turn) >= 0.999 * bracket for turn in turns], axis=0
    )
    pairs = list(itertools.pairwise(places[inside]))
    outside = [(a, b) for a, b in pairs if not any(a < turn < b for turn in turns)]
    return [np.array(ends) for ends in zip(*outside, strict=True)]


def check_signs(
    value: Callable[[Jet], Jet], turns: tuple[float, float], bracket: float, reach: float = REACH
) -> None:
    low, high = boxes(turns, bracket, reach)
    bend = value(Jet.of(low, high)).second
    between = (low > turns[0]) & (high < turns[1])
    assert (bend.low[between] > 0.0).all()
    assert (bend.high[~between] < 0.0).all()
    assert high[~between].max() == reach and low.min() == -reach


def extreme(value: Callable[[Jet], Jet], turn: float, bracket: float) -> Interval:
    """What ``phi'`` is within the bracket."""
    at = np.array([turn])
    slope, off = value(Jet.of(at, at)).first, bracket * bend_within(value, turn, bracket)
    return Interval.around(slope.low - off, slope.high + off)


def bend_within(value: Callable[[Jet], Jet], turn: float, bracket: float) -> np.ndarray:
    """``max |phi''|`` within the bracket."""
    at, wide = np.array([turn]), np.array([bracket])
    bend = value(Jet.of(at - wide, at + wide)).second
    return np.maximum(abs(bend.low), abs(bend.high))


def _silu_slope(x: Decimal) -> Decimal:
    g = 1 / (1 + (-x).exp())
    return g + x * g * (1 - g)


def _mish_slope(x: Decimal) -> Decimal:
    """``tanh(log(1 + e)) = n / (n + 2)`` with ``n = e^2 + 2 e``."""
    e = x.exp()
    n = e * e + 2 * e
    return n / (n + 2) + x * 2 * (2 * e * e + 2 * e) / (n + 2) ** 2


def _gelu_slope(x: Decimal) -> Decimal:
    """``(1 + erf(x / sqrt 2)) / 2 + x e^(-x^2 / 2) / sqrt(2 pi)``, erf by its series."""
    t = x / Decimal(2).sqrt()
    terms = [(-1) ** k * t ** (2 * k + 1) / (math.factorial(k) * (2 * k + 1)) for k in range(60)]
    pi = Decimal("3.14159265358979323846264338327950288419716939937511")
    return (1 + 2 / pi.sqrt() * sum(terms)) / 2 + x * (-x * x / 2).exp() / (2 * pi).sqrt()


SLOPES = {"silu": _silu_slope, "mish": _mish_slope, "gelu": _gelu_slope}


def row_value(kind: str, options: dict[str, Any]) -> Callable[[Jet], Jet]:
    return lambda x: ACTIVATIONS[kind].value(JETS, options, x)


def turns_of(kind: str, options: dict[str, Any]) -> tuple[float, float]:
    curve = ACTIVATIONS[kind].curve
    assert curve is not None and curve.signs(options) == (-1, 1, -1)
    left, right = curve.knots(options)
    return left.at, right.at


@every_smooth
def test_the_slopes_turn_at_the_two_knots_only(kind: str, options: dict[str, Any]) -> None:
    turns = turns_of(kind, options)
    check_signs(row_value(kind, options), turns, 1e-9)
    # Each knot is within its own rounding of the root: the bend has opposite signs beside it.
    for turn in turns:
        near = np.array([turn - 1e-12, turn + 1e-12])
        bend = row_value(kind, options)(Jet.of(near, near)).second
        assert bend.low[0] * bend.low[1] < 0.0 and bend.high[0] * bend.high[1] < 0.0


@every_smooth
def test_the_slope_range_holds_the_extremes_and_little_else(
    kind: str, options: dict[str, Any]
) -> None:
    """At the knots to 40 digits; within the brackets beside them nothing is larger by 5e-18."""
    alpha, beta = slope_range(kind, options)
    left, right = turns_of(kind, options)
    with localcontext(prec=40):
        least, greatest = (SLOPES[kind](Decimal(turn)) for turn in (left, right))
        off = Decimal("5e-18")
        assert max(bend_within(row_value(kind, options), t, 1e-9)[0] for t in (left, right)) < 5e-9
        assert Decimal(alpha) <= least - off and Decimal(beta) >= greatest + off
        assert least - Decimal(alpha) < Decimal("6e-16")
        assert Decimal(beta) - greatest < Decimal("6e-16")
    tail = (1.0 + REACH) * math.exp(-REACH)
    assert alpha < -tail and beta > 1.0 + tail


def test_gelus_tanh_form_stays_within_its_range_for_float32_constants() -> None:
    """``sqrt(2 / pi)`` and 0.044715 within ``2^-22`` of themselves, each at every part of that."""
    alpha, beta = slope_range("gelu", {"approximate": "tanh"})
    left, right = turns_of("gelu", {"approximate": "tanh"})
    k, c, width, parts = math.sqrt(2.0 / math.pi), 0.044715, 2.0**-22, 120

    def value(k: Interval, c: Interval) -> Callable[[Jet], Jet]:
        k_jet, c_jet = (
            Jet(v, Interval(0.0 * v.low, 0.0 * v.low), Interval(0.0 * v.low, 0.0 * v.low))
            for v in (k, c)
        )
        return lambda x: 0.5 * x * (1.0 + JETS.tanh(k_jet * (x + c_jet * x**3)))

    def spread(middle: float, low: np.ndarray, high: np.ndarray) -> Interval:
        return Interval.around(middle * (1.0 + low), middle * (1.0 + high))

    whole = [spread(v, np.array([-width]), np.array([width])) for v in (k, c)]
    bracket = 2e-5
    check_signs(value(*whole), (left, right), bracket, reach=6.0)
    ends = np.linspace(-width, width, parts + 1)
    rows, columns = np.meshgrid(np.arange(parts), np.arange(parts))
    small = value(
        *(spread(v, ends[i.ravel()], ends[i.ravel() + 1]) for v, i in ((k, rows), (c, columns)))
    )
    greatest = extreme(small, right, bracket)
    assert float(greatest.high.max()) <= beta
    assert float(greatest.high.max()) >= beta - 1e-8
    assert alpha == math.nextafter(1.0 - beta, -1.0)  # phi'(x) + phi'(-x) = 1 for any constants
