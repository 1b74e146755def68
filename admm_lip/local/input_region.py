"""The sets that local bounds speak of: balls around samples, optionally cut by an input box.

A displacement d of raw inputs moves the model's input by ``d / s`` and the first pre-activations by
``W_0 diag(1/s) d``.  Everything that bounds need to know of the unit ball is how far that reaches:
per neuron, all together in l2, and for a row a over the neurons, ``max a W_0 diag(1/s) d``.

For linf the Lipschitz levels measure d in a weighted l2 norm that the box fits into:
``|d_i| <= r`` implies ``sum_i (c_i d_i)^2 <= r^2`` for any c with ``sum c_i^2 <= 1``.  The c chosen
grow with the columns of ``W_0``, so that features which the network ignores cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..errors import CertificateError
from ..float64 import TINY, U
from ..rounding import SLACK, gamma, lengths, unit_scale, upper_product
from .curves import Range
from .layers import Layer
from .operators import ScaledInputs

Box = tuple[float, float]

# Entries of a batch of rows that are taken back together.
ENTRIES = 2**22
# Weight of a column that is zero, as a share of the mean one.
_LEAST = 1e-3
# Rounds of the split of a direction between ball and box; any number of them is sound.
_ROUNDS = 4
# Entries of a batch of directions that stay in the cache while they are split.
_CACHED = 2**16


@dataclass(frozen=True, eq=False)
class UnitBall:
    """The unit ball, seen from the first pre-activations.

    Attributes:
        norm: ``"l2"`` or ``"linf"``.
        scale: s, per feature, ``None`` for 1.
        first: ``W_0 diag(1/s)``.
        fitted: the first layer for inputs in which the unit ball of l2 holds that of the norm.
        stretch: the length that a fitted input may have.
    """

    norm: str
    scale: Tensor | None
    first: Layer
    fitted: Layer
    stretch: float = 1.0

    @cached_property
    def rows(self) -> Tensor:
        """Upper bounds of what one neuron's pre-activation moves, ``(n_1,)``."""
        if self.norm == "l2":
            return self.first.rows
        ones = torch.ones(1, self.first.operator.size_in, dtype=torch.float64)
        reach = self.first.spread(ones)[0] + self.first.error * ones.shape[1] ** 0.5
        raised: Tensor = reach * SLACK + TINY
        return raised

    @cached_property
    def reach(self) -> float:
        """Upper bound of what all of them move, in l2."""
        return self.first.norm if self.norm == "l2" else float(lengths(self.rows))

    @cached_property
    def factor(self) -> Tensor:
        """F with ``max a W_0 diag(1/s) d <= ||a F||`` over the unit ball, for every row a."""
        operator = self.fitted.operator
        exact = self.fitted.error == 0.0 and operator.size_out >= operator.size_in
        found = operator.dense() if exact else _gram_factor(self.fitted)
        return found if self.stretch == 1.0 else found * (self.stretch * SLACK)

    @cached_property
    def windows(self) -> tuple[Tensor, Tensor]:
        """What each row of ``W_0 diag(1/s)`` reads, and its entries there, ``(n_1, k)`` both.

        Rows that read less than others are filled with zeros.
        """
        operator, rows = self.first.operator, []
        for part in chunks(torch.arange(operator.size_out), ENTRIES // operator.size_in):
            dense = self.first.rows_back(one_hot(part, operator.size_out)[None])[0]
            rows.append((part, dense, int((dense != 0.0).sum(dim=1).max())))
        width = max(1, *(found for _, _, found in rows))
        places = [dense.abs().topk(width, dim=1).indices for _, dense, _ in rows]
        entries = [dense.gather(1, p) for (_, dense, _), p in zip(rows, places, strict=True)]
        return torch.cat(places), torch.cat(entries)

    def lengths(self, rows: Tensor) -> Tensor:
        """``||a W_0 diag(1/s)||`` in l2, for rows ``(batch, m, n_1)``, but for their rounding."""
        operator = self.first.operator
        narrow = operator.is_matrix and operator.size_out < operator.size_in // 2
        return lengths(rows @ self.factor if narrow else self.first.rows_back(rows))


def unit_ball(first: Layer, norm: str = "l2", scale: Tensor | None = None) -> UnitBall:
    """The unit ball of a norm.

    Args:
        first: the first layer, of stored arrays.
        norm: ``"l2"`` or ``"linf"``.
        scale: of every input, positive float64, or ``None``.
    """
    seen = _in_units(first, scale)
    if norm == "l2":
        return UnitBall(norm, scale, seen, seen)
    share = seen.operator.column_lengths().flatten()
    share = share / share.max()
    share = share + _LEAST * share.mean()
    c = (share / share.sum()).sqrt()
    fitted = _in_units(first, c if scale is None else c * scale)
    return UnitBall(norm, scale, seen, fitted, float(lengths(c)))


def _in_units(first: Layer, scale: Tensor | None) -> Layer:
    """The first layer for inputs in other units; every entry is rounded twice."""
    if scale is None:
        return first
    scaled = replace(first, operator=ScaledInputs(first.operator, 1.0 / scale))
    rounding = 4.0 * U * float(lengths(scaled.operator.row_lengths().flatten())) + TINY
    return replace(scaled, error=(rounding + first.error / float(scale.min())) * SLACK)


def _gram_factor(first: Layer) -> Tensor:
    """A factor F with ``F F' >= W W'``: a Cholesky factor of a Gram matrix shifted by its error.

    The product is off by ``gamma_n ||W||_F^2``, the factorisation by ``gamma_n tr``, the stored
    weights by ``(2 ||W|| + e) e``.
    """
    matrix = first.operator.dense()
    scale = float(unit_scale(matrix.abs().max()))
    weight, error = matrix * scale, first.error * scale
    total = (first.frobenius * scale) ** 2
    n = matrix.shape[0]
    shift = (gamma(matrix.shape[1]) + 4.0 * gamma(n + 4)) * total
    shift = (shift + (2.0 * first.norm * scale + error) * error) * SLACK + TINY
    for _ in range(20):
        shifted = weight @ weight.T + shift * torch.eye(n, dtype=torch.float64)
        found, info = torch.linalg.cholesky_ex(shifted)
        if int(info) == 0:
            factor: Tensor = found / scale
            return factor
        shift *= 4.0
    raise CertificateError(
        "model: the first layer's weights leave the range of float64; rescale them"
    )


def one_hot(places: Tensor, size: int) -> Tensor:
    """A row with a single 1 for each place, float64."""
    rows = torch.zeros(len(places), size, dtype=torch.float64)
    rows[torch.arange(len(places)), places] = 1.0
    return rows


def chunks(rows: Tensor, size: int) -> list[Tensor]:
    """Consecutive parts of at most ``size`` rows, at least one row each."""
    size = max(1, size)
    return [rows[k : k + size] for k in range(0, len(rows), size)]


@dataclass(frozen=True, eq=False)
class Region:
    """``{x': ||x' - x|| <= r, low <= x' <= high}`` for every sample, in the ball's norm.

    Attributes:
        ball: the unit ball.
        points: ``(batch, n_0)``, float64, taken as exact.
        radius: ``(batch,)``, float64.
        box: ends of the admissible inputs, the same for every feature, or ``None``.
    """

    ball: UnitBall
    points: Tensor
    radius: Tensor
    box: Box | None = None

    def __len__(self) -> int:
        return len(self.points)

    def select(self, rows: Tensor) -> Region:
        """The region of some of the samples."""
        return Region(self.ball, self.points[rows], self.radius[rows], self.box)

    def first_range(self, center: Range) -> Range:
        """Range of the first pre-activations."""
        if self.box is None:
            reach = upper_product(self.ball.rows, self.radius[:, None])
            return Range(center.low - reach, center.high + reach)
        places, entries = self.ball.windows
        ones = entries.new_ones(len(self), len(entries))
        down, up = torch.empty_like(ones), torch.empty_like(ones)
        size = entries.shape[1] * max(len(self), 1)
        for part in chunks(torch.arange(len(entries)), _CACHED // size):
            v = entries[part].expand(len(self), -1, -1)
            down[:, part] = self._reach(-v, places[part])
            up[:, part] = self._reach(v, places[part])
        off = self._lost(self.ball.rows, ones)
        return Range(center.low - self._raised(down, off), center.high + self._raised(up, off))

    def support(self, rows: Tensor) -> Tensor:
        """Upper bound of ``max a W_0 d`` over the displacements d, per row a.

        Args:
            rows: ``(batch, m, n_1)``.

        Returns:
            ``(batch, m)``: for l2 without a box ``r ||a F||``, with one the least of what
            :func:`_cut_support` gives and that; for linf feature by feature.
        """
        off = self._lost(rows.abs() @ self.ball.rows, lengths(rows))
        if self.ball.norm == "l2" and self.box is None:
            return self._raised(self.radius[:, None] * self.ball.lengths(rows), off)
        # As many samples at a time as stay in the cache.
        first = self.ball.first
        size = _CACHED // (rows.shape[1] * first.operator.size_in)
        parts = chunks(torch.arange(len(self)), size)
        found = [self.select(p)._reach(first.rows_back(rows[p])) for p in parts]
        return self._raised(torch.cat(found) if found else rows.new_zeros(rows.shape[:2]), off)

    def _lost(self, sums: Tensor, sizes: Tensor) -> Tensor:
        """What rows with ``|a|`` times the rows' norms, and these lengths, lose per unit of r."""
        first = self.ball.first
        error = first.error if self.ball.norm == "l2" else first.error * first.operator.size_in**0.5
        return gamma(first.operator.terms_back) * sums + error * sizes

    def _raised(self, reach: Tensor, off: Tensor) -> Tensor:
        """Rounded up."""
        raised: Tensor = (reach + self.radius[:, None] * (off + TINY)) * SLACK + TINY
        return raised

    def _reach(self, v: Tensor, places: Tensor | None = None) -> Tensor:
        """``max v d``, over the features at ``places`` (all), but for the rounding of v."""
        room = self.room(v, places)
        if self.ball.norm == "linf":
            most: Tensor = (v.abs() * room).sum(-1)
            return most
        whole = self.radius[:, None] * lengths(v)
        return whole if self.box is None else torch.minimum(whole, _cut_support(self, v, room))

    def room(self, v: Tensor, places: Tensor | None) -> Tensor:
        """How far each feature may go in the direction of ``v``, at most r; of the shape of v."""
        radius, scale = self.radius[:, None, None], self.ball.scale
        if self.box is None:
            return radius.expand_as(v)
        low, high = self.box
        up = (high - self.points).clamp(min=0.0) * (1.0 + 1e-15)
        down = (self.points - low).clamp(min=0.0) * (1.0 + 1e-15)
        if scale is not None:
            up, down = upper_product(up, scale), upper_product(down, scale)
        up, down = (e[:, None] if places is None else e[:, places] for e in (up, down))
        return torch.minimum(torch.where(v > 0.0, up, down), radius)


def _cut_support(region: Region, v: Tensor, room: Tensor) -> Tensor:
    """``max v d`` over ``||d|| <= r`` and the box, from above.

    For any split ``v = a + b``: at most ``r ||a|| + sum_i |b_i| s_i``, with ``s_i`` the room that
    the box leaves in the direction of ``v_i``.  The best split has ``a_i = min(|v_i|, s_i / c)``
    for the c at which the clipped step ``min(c |v_i|, s_i)`` has length r.
    """
    radius, size = region.radius[:, None, None], v.abs()
    pace = _pace(radius, size.detach(), room)
    share = torch.minimum(size, room / (pace + TINY))
    outer = ((size - share) * room).sum(-1)
    most: Tensor = region.radius[:, None] * lengths(share) + outer
    return most


def _pace(radius: Tensor, size: Tensor, room: Tensor) -> Tensor:
    """About the c at which ``min(c |v_i|, s_i)`` has length r."""
    pace = radius / lengths(size)[..., None]
    for _ in range(_ROUNDS):
        clipped = pace * size > room
        used = (torch.where(clipped, room, 0.0) / (radius + TINY)).square().sum(-1, keepdim=True)
        left = radius * (1.0 - used).clamp(min=0.0).sqrt()
        free = torch.where(clipped, 0.0, size)
        some = (free > 0.0).any(dim=-1, keepdim=True)
        pace = torch.where(some, left / lengths(free)[..., None], pace)
    return pace
