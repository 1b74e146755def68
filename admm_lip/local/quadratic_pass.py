"""Quadratic bounds of functionals of a network, taken back layer by layer to the input.

A linear bound forgets that the whole perturbation shares one ball.  Here a functional of the
outputs a of a hidden layer is bounded from below by

    c a - 1/2 (a - a^)' M (a - a^) + v,     a^ the outputs at the sample,

with a diagonal M >= 0 (0 at the top), and kept in that form down to the input, where one ball
serves all layers:

1. *activation* ``a_i = phi_i(z_i)``: for any slopes g and any diagonal D >= 0, with z^ the
   pre-activations at the sample,

       c a - 1/2 (a - a^)' M (a - a^)  >=  g z - 1/2 (z - z^)' D (z - z^) + sum_i h_i,
       h_i = min over z in [l_i, u_i] of c phi(z) - M (phi(z) - a^)^2/2 - g z + D (z - z^)^2/2:

   one parabola for each line that phi is made of, or lies between (``parabolas.py``);
2. *affine map*: ``c <- W'g``, ``v += g b``, and for any diagonal T > 0 (the *metric*)

       (z - z^)' D (z - z^) <= (a - a^)' M (a - a^),    M = ||D^1/2 W C T^-1/2||^2 T  the new M,

   C marking what can move.  D is ``M S^2 + t`` with S the steepest slopes, which lets none of M's
   curvature through to where it is worth more, and any t >= 0, 0 where phi is a line there.
   With T = I and ``t = t' U^2``, U from 0 to 1 by how much phi bends (1 for a kink), M is at
   most ``m ||S W C||^2 + t' ||U W C||^2``: two proven norms of a sample serve all its functionals
   and every choice of t' and g;
3. *input*, T = I: the support function of the region for the row, and M/2 times the square of its
   radius.

With M = 0, ``D = t I`` and no intervals this is SDP-CROWN's bias (Chiu et al., ICML 2025); with
t = 0 it is CROWN's line.  The slopes chosen are smooth in where the sample lies on the interval,
t is a share of what the row can gain on the ball; any values are sound, and the best of
some is taken.

**Rounding.**  g, D, z^ and a^ are doubles, taken as definitions.  What ``W a^ + b`` differs from z^
is at most d, so the square above is at most ``(1 + e) |D^1/2 W (a - a^)|^2 + (1 + 1/e) d'Dd``.
Rows lose what they lose in ``backward_lines.py``, parabolas what they lose in ``parabolas.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..float64 import TINY, U
from ..rounding import SLACK, gamma, lengths, upper_product
from .activations import Curved
from .backward_lines import BackwardLines, behind_last, doubt_back, times
from .curve_pieces import Bend
from .forward_bounds import LayerBounds, scaled_norm
from .layers import Layer
from .parabolas import Point, Quadratic, least_values

# Shares of a row's gain on the ball that t is tried with.
_SHARES = (0.05, 0.15, 0.45)
# e of the rounding of z^, a power of two.
_SPLIT = 2.0**-26


@dataclass(frozen=True, eq=False)
class _Hidden:
    """One hidden layer on every sample's ball; tensors ``(batch, n)`` unless said.

    Attributes:
        known: its intervals.
        bend: how its activations bend there.
        at: z^, and
        out: a^.
        off: bound on ``|W a^ + b - z^|``, and
        out_off: on what the outputs at the sample differ from a^.
        doubts: what a row over z loses on its way through W; ``None`` for the first layer.
        steepest: slopes on the interval, 0 for constant units.
        growths: ``||S W C||^2`` and ``||U W C||^2``, ``(batch,)`` each.
        reach: how far z moves, roughly, ``(batch,)``.
    """

    known: LayerBounds
    bend: Bend
    at: Tensor
    out: Tensor
    off: Tensor
    out_off: Tensor
    doubts: Tensor | None
    steepest: Tensor
    growths: tuple[Tensor, Tensor]
    reach: Tensor

    def select(self, rows: Tensor) -> _Hidden:
        """That of some of the samples."""
        each = ("at", "out", "off", "out_off", "steepest", "reach")
        return replace(
            self,
            known=self.known.select(rows),
            bend=self.bend.select(rows),
            doubts=None if self.doubts is None else self.doubts[rows],
            growths=(self.growths[0][rows], self.growths[1][rows]),
            **{name: getattr(self, name)[rows] for name in each},
        )

    def least(self, given: Quadratic) -> tuple[Tensor, Tensor]:
        """``h_i``, and a bound on its rounding, ``(batch, m, n)``."""
        known, point = self.known, Point(self.at, self.out)
        return least_values(self.bend.pieces, known.interval, known.reach, point, given)


# From a layer's number, rows c over its outputs ``(batch, m, n)`` and M to slopes (g over c) and D,
# all of which broadcast against c.
Choice = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
# From a layer's number, D and M to M of its inputs, ``(batch, m, n_in)``, or ``(batch, m, 1)`` for
# T = I; the first layer has no other.
Growth = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class QuadraticPass:
    """Quadratic bounds on the balls of some samples, all of positive and finite radius."""

    lines: BackwardLines
    hidden: list[_Hidden]

    @staticmethod
    def of(lines: BackwardLines, known: Sequence[LayerBounds]) -> QuadraticPass:
        """With the norms that all functionals share."""
        hidden: list[_Hidden] = []
        for layer in known:
            hidden.append(_hidden(lines, hidden, layer))
        return QuadraticPass(lines, hidden)

    @property
    def widths(self) -> list[int]:
        """Neurons of each hidden layer."""
        return [h.at.shape[1] for h in self.hidden]

    def select(self, rows: Tensor) -> QuadraticPass:
        """That of some of the samples, which may repeat."""
        lines = replace(self.lines, region=self.lines.region.select(rows))
        return QuadraticPass(lines, [h.select(rows) for h in self.hidden])

    def curvature(self, k: int, c: Tensor, m: Tensor, t: Tensor) -> Tensor:
        """D of a layer.

        Args:
            k: the layer.
            c: rows over its outputs, ``(batch, m, n)``.
            m: M.
            t: what D has beyond ``M S^2``, in units of ``|c|`` over how far z moves, roughly.
        """
        here = self.hidden[k]
        unit = (lengths(c) / (here.reach[:, None] + TINY))[..., None]
        return m * here.steepest.square()[:, None] + t * unit

    def behind(self, k: int) -> tuple[Layer, Tensor | None]:
        """A layer, and which of its inputs can move, ``(batch, n_in)``."""
        return _behind(self.lines, self.hidden[:k])

    def bound(self, rows: Tensor, choose: Choice, growth: Growth) -> tuple[Tensor, Tensor]:
        """Lower bounds of ``rows f`` on the regions, and what they gave away, ``(batch, m)``.

        Differentiable in what is chosen; proven if ``growth`` is.

        Args:
            rows: ``(batch, m, n_out)``: functionals of the outputs, with entries 0 and +-1.
            choose: slopes and D of each layer, the last first.
            growth: of each layer.
        """
        layers, known = self.lines.layers, [h.known for h in self.hidden]
        c, value, lost = behind_last(layers[-1], known, rows)
        m, spent = torch.zeros_like(value)[..., None], torch.zeros_like(value)
        for k in range(len(known) - 1, -1, -1):
            here = self.hidden[k]
            slope, d = choose(k, c, m)
            g = c * slope
            gain, doubt = here.least(Quadratic(c, m, g, d))
            bent = (d * here.off.square()[:, None]).sum(-1) * (1.0 + 1.0 / _SPLIT)
            value = value + gain.sum(-1)
            lost = lost + doubt.sum(-1) + gamma(gain.shape[-1]) * gain.abs().sum(-1)
            lost = lost + 0.5 * SLACK * bent + 4.0 * U * value.abs() + TINY
            spent = spent + gain.abs().sum(-1)
            m = SLACK * (1.0 + _SPLIT) * growth(k, d, m)
            if here.doubts is not None:
                reach = known[k - 1].reach.sum(1, keepdim=True)
                lost = lost + times(g.abs(), here.doubts) + TINY * reach
                if (bias := layers[k].bias) is not None:
                    value = value + g @ bias
                    lost = lost + 4.0 * U * value.abs()
                c = layers[k].rows_back(g)
        radius = self.lines.region.radius[:, None] * self.lines.region.ball.stretch
        ball = 0.5 * upper_product(m[..., 0], radius, radius)
        bound = self.lines.on_region(known[0], g, value, lost + ball)
        return bound, spent + ball

    def functionals(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same at the best of some shares."""
        found = [self.bound(rows, self._by_share(share), self.shared_growth) for share in _SHARES]
        best, spent = found[0]
        for bound, given in found[1:]:
            better = bound > best
            best, spent = torch.where(better, bound, best), torch.where(better, given, spent)
        return best, spent

    def _by_share(self, share: float) -> Choice:
        def choose(k: int, c: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
            here = self.hidden[k]
            bending = here.bend.bending.square()[:, None]
            return here.bend.slope[:, None], self.curvature(k, c, m, share * bending)

        return choose

    def shared_growth(self, k: int, d: Tensor, m: Tensor) -> Tensor:
        """By the norms that serve all: ``D <= m S^2 + t U^2``, m at least M, with the least t."""
        here = self.hidden[k]
        squares, bending = here.steepest.square()[:, None], here.bend.bending.square()[:, None]
        bends = bending > 0.0
        ratio = d / torch.where(d > 0.0, squares, 1.0)
        m = torch.maximum(torch.where(bends, 0.0, ratio), m).amax(dim=-1) * (1.0 + 4.0 * U)
        part = m[..., None] * squares
        above = d - part + 4.0 * U * (d + part)
        t = (torch.where(bends, above, 0.0) / torch.where(bends, bending, 1.0)).amax(dim=-1)
        growths = (growth[:, None] for growth in here.growths)
        by_slopes, by_bends = map(upper_product, (m, t.clamp(min=0.0)), growths)
        return (by_slopes + by_bends)[..., None]

    def own_growth(self, metric: Tensor) -> Growth:
        """By norms proven for every D, ``(batch, 1, n)``, in a metric of each sample.

        Args:
            metric: T of all hidden neurons, ``(batch, neurons)``, finite and positive.
        """
        metrics = torch.split(metric, self.widths, dim=1)

        def growth(k: int, d: Tensor, m: Tensor) -> Tensor:
            layer, columns = self.behind(k)
            into = metrics[k - 1] if k else metric.new_ones(1, 1)
            if k:
                scale = into.rsqrt() * (1.0 + 4.0 * U)
                columns = scale if columns is None else columns * scale
            norm = scaled_norm(layer, d[:, 0].sqrt() * (1.0 + 4.0 * U), columns)
            return upper_product(into, norm[:, None], norm[:, None])[:, None]

        return growth


def _hidden(lines: BackwardLines, before: list[_Hidden], known: LayerBounds) -> _Hidden:
    layer, columns = _behind(lines, before)
    activation = lines.layers[len(before)].activation
    assert isinstance(activation, Curved)
    low, high = known.interval
    at = 0.5 * (known.center.low + known.center.high)
    width = off = torch.maximum(known.center.high - at, at - known.center.low)
    out, out_off = activation.evaluate(at, width, known.response)
    doubts = None
    if before:
        inner, doubts = before[-1].out_off, doubt_back(layer, known, before[-1].known)
        off = off + layer.absolute(inner) + layer.error * lengths(inner)[:, None]
    bend, steepest = activation.bend(at, known.interval), known.response.rows
    assert steepest is not None
    norms = [scaled_norm(layer, rows, columns) for rows in (steepest, bend.bending)]
    moved = upper_product(_moved(lines, before), norms[0])
    return _Hidden(
        known=known,
        bend=bend,
        at=at,
        out=out,
        off=SLACK * off + TINY,
        out_off=out_off,
        doubts=doubts,
        steepest=steepest,
        growths=(upper_product(norms[0], norms[0]), upper_product(norms[1], norms[1])),
        reach=torch.minimum(moved, lengths(0.5 * (high - low))),
    )


def _behind(lines: BackwardLines, before: Sequence[_Hidden]) -> tuple[Layer, Tensor | None]:
    """The next layer, and which of its inputs can move."""
    if not before:
        return lines.region.ball.fitted, None
    return lines.layers[len(before)], before[-1].known.response.columns


def _moved(lines: BackwardLines, before: list[_Hidden]) -> Tensor:
    """How far the inputs of the next layer move, roughly."""
    if before:
        return before[-1].reach
    return lines.region.radius * lines.region.ball.stretch
