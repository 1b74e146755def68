"""An activation on an interval, piece by piece between two lines.

An activation that is made of lines is cut at its knots.  One that turns is cut where that loses
least, into pieces that hold equal parts of the integral of ``|phi''|^(1/2)`` (C. de Boor, 1973):
between the lines above and below a piece of width w there is at most about ``|phi''| w^2 / 8``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..float64 import TINY, U
from ..networks.layer_spec import LayerSpec
from .curves import (
    Range,
    curve_of,
    derivative_with_error,
    lines_on,
    slopes_of,
    slopes_on,
    tangent_at,
    value_with_error,
)

# Pieces of what turns, and the points that its derivative is looked at to find them.
_PIECES, _POINTS = 8, 33
# How fast the slopes chosen turn over at a kink.
_STEEPNESS = 8.0
# Least weight of what bends, and a place beyond all kinks.
_FAINT, _FAR = 1e-6, 1e30


class Pieces(NamedTuple):
    """``phi(z)`` lies, on each piece, between or within ``off`` of lines ``slope z + intercept``.

    Attributes:
        first: the ends of every piece, ``(pieces, batch, n)``, and
        last: the other ones.
        slope: of a line; a piece of two lines stands there twice.
        intercept: likewise.
        off: ``(batch, n)``.
    """

    first: Tensor
    last: Tensor
    slope: Tensor
    intercept: Tensor
    off: Tensor

    def padded(self, count: int) -> Pieces:
        """The same in so many pieces."""
        more = count - len(self.first)
        return self.each(lambda part: torch.cat([part, part[-1:].expand(more, -1, -1)]))

    def each(self, change: Callable[[Tensor], Tensor]) -> Pieces:
        """With another tensor for each of the lines'."""
        first, last, slope, intercept = map(change, self[:4])
        return Pieces(first, last, slope, intercept, self.off)


class Bend(NamedTuple):
    """What quadratic bounds need to know of activations on an interval, ``(batch, n)``.

    Attributes:
        pieces: see :class:`Pieces`.
        slopes: the range of their slopes.
        slope: one that suits the interval: of the chord, or smooth in where the sample lies.
        bending: how much they bend there, from 0 (not at all) to 1 (a kink).
    """

    pieces: Pieces
    slopes: Range
    slope: Tensor
    bending: Tensor

    def select(self, rows: Tensor) -> Bend:
        """Of some of the samples."""
        pieces = self.pieces.each(lambda part: part[:, rows])._replace(off=self.pieces.off[rows])
        slopes = Range(self.slopes.low[rows], self.slopes.high[rows])
        return Bend(pieces, slopes, self.slope[rows], self.bending[rows])


def bend_on(spec: LayerSpec, at: Tensor, interval: Range) -> Bend:
    """Of one scalar activation on intervals around points."""
    slopes = slopes_on(spec, interval)
    if not _straight(spec):
        (left, _), (right, _) = (value_with_error(spec, end) for end in interval)
        chord = (right - left) / (interval.high - interval.low + TINY)
        slope = torch.minimum(torch.maximum(chord, slopes.low), slopes.high)
        spread = slopes.high - slopes.low
        bending = torch.where(spread > 0.0, spread.clamp(_FAINT, 1.0), 0.0).sqrt()
        return Bend(_between(spec, interval), slopes, slope, bending)
    knots = [k for k in curve_of(spec).knots(spec.options) if k.jump]
    kinked = torch.zeros_like(at, dtype=torch.bool)
    for knot in knots:
        kinked |= (interval.low < knot.at) & (interval.high > knot.at)
    places = [torch.as_tensor(k.at, dtype=at.dtype).clamp(-_FAR, _FAR) for k in knots]
    slope = _turning(spec, places, at, interval)
    return Bend(_lines(spec, interval), slopes, slope, kinked.to(at))


def joined(parts: list[Bend]) -> Bend:
    """Of runs of neurons side by side."""
    most = max(len(part.pieces.first) for part in parts)
    pieces = zip(*(part.pieces.padded(most) for part in parts), strict=True)
    ends = zip(*(part.slopes for part in parts), strict=True)
    return Bend(
        Pieces(*(torch.cat(same, dim=-1) for same in pieces)),
        Range(*(torch.cat(same, dim=1) for same in ends)),
        torch.cat([part.slope for part in parts], dim=1),
        torch.cat([part.bending for part in parts], dim=1),
    )


def _straight(spec: LayerSpec) -> bool:
    """Whether an activation is made of lines."""
    return not any(curve_of(spec).signs(spec.options))


def _turning(spec: LayerSpec, places: list[Tensor], at: Tensor, interval: Range) -> Tensor:
    """The slope at a point, its jumps smoothed over a part of the interval."""
    first, last = (places[0], places[-1]) if places else (at.new_zeros(1), at.new_zeros(1))
    middles = (0.5 * (one + two) for one, two in pairwise(places))
    ends = [first - 1.0 - first.abs(), *middles, last + 1.0 + last.abs()]
    slopes = [derivative_with_error(spec, end)[0] for end in ends]
    slope = slopes[0].expand_as(at)
    for k, place in enumerate(places):
        low, high = interval.low - place, interval.high - place
        turn = torch.sigmoid(_STEEPNESS * (at - place) / (high - low + TINY))
        turn = torch.where(low >= 0.0, 1.0, torch.where(high <= 0.0, 0.0, turn))
        slope = slope + (slopes[k + 1] - slopes[k]) * turn
    return slope


def _lines(spec: LayerSpec, interval: Range) -> Pieces:
    """One line from knot to knot."""
    knots = [torch.as_tensor(k.at).to(interval.low) for k in curve_of(spec).knots(spec.options)]
    ends = [torch.minimum(torch.maximum(k, interval.low), interval.high) for k in knots]
    edges = torch.stack([interval.low, *ends, interval.high])
    first, last = edges[:-1], edges[1:]
    middle = 0.5 * (first + last)
    slope, intercept, slack = tangent_at(spec, middle, Range(first, last))
    alpha, beta = slopes_of(spec)
    # Knots are rounded, and neighbouring numbers have no middle.
    off = slack + 16.0 * U * (beta - alpha) * (first.abs() + last.abs())
    thin = (middle <= first) | (middle >= last)
    off = off + torch.where(thin, 2.0 * (abs(alpha) + abs(beta)) * (last - first), 0.0)
    return Pieces(first, last, slope, intercept, off.amax(dim=0))


def _between(spec: LayerSpec, interval: Range) -> Pieces:
    """A line below and one above each piece."""
    jumps = [torch.as_tensor(k.at) for k in curve_of(spec).knots(spec.options) if k.jump]
    inner = [knot.to(interval.low).expand_as(interval.low)[None] for knot in jumps]
    edges = torch.cat([interval.low[None], *inner, _even(spec, interval), interval.high[None]])
    edges = torch.minimum(torch.maximum(edges, interval.low), interval.high).sort(dim=0).values
    part = Range(edges[:-1], edges[1:])
    lines = lines_on(spec, 0.5 * (part.low + part.high), part, slopes_on(spec, part))
    return Pieces(
        torch.cat([part.low, part.low]),
        torch.cat([part.high, part.high]),
        torch.cat([lines.low_slope, lines.high_slope]),
        torch.cat([lines.low, lines.high]),
        torch.zeros_like(interval.low),
    )


def _even(spec: LayerSpec, interval: Range) -> Tensor:
    """Places between equal parts of the integral, but for the steps that it is taken in."""
    steps = torch.linspace(0.0, 1.0, _POINTS).to(interval.low)[:, None, None]
    points = interval.low + (interval.high - interval.low) * steps
    bent = derivative_with_error(spec, points)[0].diff(dim=0).abs().sqrt()
    bent = bent + 1e-3 * bent.amax(dim=0) + TINY
    share = torch.cat([torch.zeros_like(bent[:1]), bent.cumsum(dim=0)]).movedim(0, -1)
    share = (share / share[..., -1:]).contiguous()
    wanted = torch.arange(1, _PIECES).to(share) / _PIECES
    wanted = wanted.expand(*share.shape[:-1], -1).contiguous()
    right = torch.searchsorted(share, wanted).clamp(1, _POINTS - 1)
    low, high = share.gather(-1, right - 1), share.gather(-1, right)
    place = (right - 1 + (wanted - low) / (high - low + TINY)) / (_POINTS - 1)
    return interval.low + (interval.high - interval.low) * place.movedim(-1, 0)
