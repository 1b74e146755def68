"""The least value of a quadratic function of ``z`` and ``phi(z)`` on an interval, from below.

On an interval of z, with z^, a^, c, g and M, D >= 0 given,

    h = min of c phi(z) - M (phi(z) - a^)^2/2 - g z + D (z - z^)^2/2.

As this is concave in phi(z), which lies between two lines on each piece of the interval
(``curve_pieces.py``), it is least on one of the lines: h is at least the least of the parabolas

    c (s z + t) - M (s z + t - a^)^2/2 - g z + D (z - z^)^2/2

on their pieces, each in closed form.  Where phi is made of lines this is h itself.

**Rounding.**  c, g, M, D, z^, a^ and the lines are doubles, taken as definitions.  A parabola's
coefficients are rounded, which moves its minimum by no more than a few u times the sum of its
terms' sizes; the place of the minimum is rounded to second order only.  What phi leaves the lines
by, o, adds up to ``o (|c| + M (|phi - a^| + o))``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..float64 import TINY, U
from ..rounding import SLACK
from .activations import largest
from .curve_pieces import Pieces
from .curves import Range

# Roundings of the terms of a parabola.
_TERMS = 32.0 * U


class Point(NamedTuple):
    """z^ and a^, ``(batch, n)`` each."""

    z: Tensor
    a: Tensor


class Quadratic(NamedTuple):
    """c, M, g and D, ``(batch, m, n)`` or what broadcasts to it."""

    c: Tensor
    m: Tensor
    g: Tensor
    d: Tensor


def least_values(
    pieces: Pieces, on: Range, outputs: Tensor, point: Point, given: Quadratic
) -> tuple[Tensor, Tensor]:
    """h, and a bound on its rounding, ``(batch, m, n)``; differentiable in what is given.

    Args:
        pieces: of phi.
        on: the interval, ``(batch, n)``.
        outputs: upper bounds of ``|phi|`` on it, ``(batch, n)``.
        point: z^ and a^.
        given: the function.
    """
    (c, m, g, d), (at, out) = given, (part[:, None] for part in point)
    held = g + d * at  # towards z^
    least: Tensor | None = None
    lines = zip(*(part[:, :, None] for part in pieces[:4]), strict=True)
    for first, last, slope, intercept in lines:
        rest = intercept - out
        linear = slope * (c - m * rest) - held
        constant = c * intercept - 0.5 * m * rest.square()
        value = constant + _least(linear, d - m * slope.square(), first, last)
        least = value if least is None else torch.minimum(least, value)
    assert least is not None
    steep, rest = pieces.slope.abs().amax(dim=0)[:, None], pieces.intercept.abs().amax(dim=0)
    rest, far = rest[:, None], largest(on)[:, None]
    apart = rest + out.abs()
    linear = steep * (c.abs() + m * apart) + g.abs() + d * at.abs()
    sizes = far * (linear + 0.5 * far * (d + m * steep.square())) + 0.5 * d * at.square()
    sizes = sizes + c.abs() * rest + 0.5 * m * apart.square()
    off, away = pieces.off[:, None], outputs[:, None] + out.abs()
    doubt = _TERMS * sizes + off * (c.abs() + m * (away + off))
    return least + 0.5 * d * at.square(), SLACK * doubt + TINY


def _least(linear: Tensor, curvature: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """The minimum of ``linear t + curvature t^2/2`` over ``[first, last]``."""
    upward = curvature > 0.0
    lowest = -linear / torch.where(upward, curvature, 1.0)
    # The derivative of a minimum is that at its place.
    place = torch.minimum(torch.maximum(lowest, first), last).detach()
    inside = place * (linear + 0.5 * curvature * place)
    ends = [end * (linear + 0.5 * curvature * end) for end in (first, last)]
    return torch.where(upward, inside, torch.minimum(*ends))
