"""Interval arithmetic on ``(phi, phi', phi'')``: what a formula's derivatives are on whole boxes.

Ends are rounded outwards by :data:`ULPS` units in the last place at every step, more than any
operation or library function here is off by.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from admm_lip.networks.scalar_math import NUMPY, Math

Array = np.ndarray
ULPS = 8.0


@dataclasses.dataclass(frozen=True)
class Interval:
    """``[low, high]``, arrays of boxes."""

    low: Array
    high: Array

    @staticmethod
    def around(low: Any, high: Any) -> Interval:
        """Widened by the rounding of what made the ends."""
        low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
        wider = [ULPS * 2.0**-52 * np.maximum(abs(end), 1e-300) for end in (low, high)]
        return Interval(low - wider[0], high + wider[1])

    def __add__(self, other: Any) -> Interval:
        o = _interval(other)
        return Interval.around(self.low + o.low, self.high + o.high)

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)

    def __mul__(self, other: Any) -> Interval:
        o = _interval(other)
        products = [a * b for a in (self.low, self.high) for b in (o.low, o.high)]
        return Interval.around(np.minimum.reduce(products), np.maximum.reduce(products))

    def rising(self, function: Any) -> Interval:
        """An increasing function."""
        return Interval.around(function(self.low), function(self.high))


def _interval(value: Any) -> Interval:
    return value if isinstance(value, Interval) else Interval(np.asarray(value), np.asarray(value))


@dataclasses.dataclass(frozen=True)
class Jet:
    """A function's value and first two derivatives on boxes."""

    value: Interval
    first: Interval
    second: Interval

    @staticmethod
    def of(low: Array, high: Array) -> Jet:
        """The variable itself."""
        one, zero = np.ones_like(low), np.zeros_like(low)
        return Jet(Interval(low, high), Interval(one, one), Interval(zero, zero))

    def __add__(self, other: Any) -> Jet:
        o = _jet(other)
        return Jet(self.value + o.value, self.first + o.first, self.second + o.second)

    __radd__ = __add__

    def __neg__(self) -> Jet:
        return self * -1.0

    def __sub__(self, other: Any) -> Jet:
        return self + -_jet(other)

    def __rsub__(self, other: Any) -> Jet:
        return -self + other

    def __mul__(self, other: Any) -> Jet:
        o = _jet(other)
        return Jet(
            self.value * o.value,
            self.first * o.value + self.value * o.first,
            self.second * o.value + self.first * o.first * 2.0 + self.value * o.second,
        )

    __rmul__ = __mul__

    def __truediv__(self, other: float) -> Jet:
        return self * Interval.around(1.0 / other, 1.0 / other)

    def __pow__(self, power: int) -> Jet:
        return self if power == 1 else self * self ** (power - 1)

    def through(self, value: Interval, first: Interval, second: Interval) -> Jet:
        """The chain rule, given a function and its derivatives at the value."""
        return Jet(
            value, first * self.first, second * self.first * self.first + first * self.second
        )


def _jet(value: Any) -> Jet:
    if isinstance(value, Jet):
        return value
    return Jet(_interval(value), _interval(0.0), _interval(0.0))


def _exp(x: Jet) -> Jet:
    e = x.value.rising(np.exp)
    return x.through(e, e, e)


def _tanh(x: Jet) -> Jet:
    t = x.value.rising(np.tanh)
    slope = (t + 1.0) * (-t + 1.0)
    return x.through(t, slope, t * slope * -2.0)


def _sigmoid(x: Jet) -> Jet:
    s, other = x.value.rising(NUMPY.sigmoid), (-x.value).rising(NUMPY.sigmoid)
    return x.through(s, s * other, s * other * (other + -s))


def _softplus(x: Jet) -> Jet:
    s, other = x.value.rising(NUMPY.sigmoid), (-x.value).rising(NUMPY.sigmoid)
    return x.through(x.value.rising(NUMPY.softplus), s, s * other)


def _erfc(x: Jet) -> Jet:
    value = -Interval.around(-NUMPY.erfc(x.value.low), -NUMPY.erfc(x.value.high))
    square = x.value * x.value
    square = Interval(np.maximum(square.low, 0.0), square.high)
    density = (-square).rising(np.exp) * Interval.around(*[-2.0 / math.sqrt(math.pi)] * 2)
    return x.through(value, density, x.value * density * -2.0)


def _unsupported(*given: Any) -> Any:
    raise NotImplementedError


JETS: Math = dataclasses.replace(
    NUMPY,
    exp=_exp,
    tanh=_tanh,
    sigmoid=_sigmoid,
    softplus=_softplus,
    erfc=_erfc,
    **dict.fromkeys(("expm1", "sin", "cos", "abs", "clip", "pieces"), _unsupported),
)
