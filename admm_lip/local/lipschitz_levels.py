"""From cheap to dear: the levels of a local Lipschitz bound, for batches of samples.

1. ``norms``: the product of the layers' norms with the rows and columns of constant neurons
   removed (Y. Huang et al., NeurIPS 2021): ``||C W_l D_l^1/2|| ... ||D_1^1/2 W_0||`` with ``D_k``
   the steepest slopes on the ball.
2. ``closed``: the closed form of ``multipliers.py`` for the reduced inequality.
3. ``implied``: a multiplier for all inputs, narrowed to the local slopes.
4. ``optimised``: Newton steps from the best of these.

Every number that leaves this module is proven through rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..float64 import TINY, U
from ..rounding import SLACK, lengths, proven_norms, upper_product
from .activations import largest
from .config import LEVELS as LEVELS
from .curved_layers import CurvedNet
from .curves import Range
from .forward_bounds import scaled_norm
from .input_region import chunks
from .multipliers import THETAS, best_of, closed_form, from_global, improved
from .reduced_inequality import Gain, Reduced, proven_lip, reduce, with_outputs

NONE, GLOBAL, NORMS, CLOSED, IMPLIED, OPTIMISED, PRODUCT, MASKED = range(len(LEVELS))

# Entries of the largest batch of matrices at a time, and samples with equal padding at most.
_ENTRIES = 2**23
_GROUP = 64
# Entries of the coefficients of such samples.
_HELD = 2**25
# A bound further above its target than this factor is not worth optimising.
_WORTH = 1.3


@dataclass(frozen=True, eq=False)
class Wanted:
    """The functionals of each sample, and what is asked of their bounds.

    Attributes:
        rows: ``(batch, m, p, n_out)``, entries 0 and +-1.
        items: boolean ``(batch, m)``: which are asked for at all.
        target: ``(batch, m)``: a bound at or below it is good enough, and one far above is not
            worth optimising; 0 asks for the best.
        level: the highest level, an index of ``LEVELS``.
        deadline: ``time.monotonic()`` after which no further level is begun.
        known: ``(batch, m, n_k)`` per hidden layer: multipliers for all inputs, or ``None``.
        decide: stop at a sample as soon as one of its functionals misses its target; the one that
            is furthest from it is tried first.
    """

    rows: Tensor
    items: Tensor
    target: Tensor
    level: int
    deadline: float = math.inf
    known: tuple[Tensor, ...] | None = None
    decide: bool = False


@dataclass(frozen=True, eq=False)
class Found:
    """Proven bounds.

    Attributes:
        lip: ``(batch, m)``; ``inf`` where nothing was asked for or proven.
        level: ``(batch, m)``, int8, an index of ``LEVELS``.
        roots: roots of the multiplier, ``(batch, m, hidden neurons)``; 0 where none is needed.
    """

    lip: Tensor
    level: Tensor
    roots: Tensor


def local_lips(net: CurvedNet, slopes: Sequence[Range], wanted: Wanted) -> Found:
    """Bounds of every functional on the ball of each sample.

    Args:
        net: the network.
        slopes: per hidden layer, the slope ranges ``(batch, n)`` on the balls.
        wanted: functionals and effort.
    """
    found = _by_norms(net, slopes, wanted)
    if wanted.level <= NORMS or not slopes:
        return found
    if not wanted.decide:
        _raise_all(net, slopes, wanted, wanted.items, found)
        return found
    left = wanted.items & (found.lip > wanted.target)
    hardness = torch.where(left, found.lip / wanted.target, 0.0)
    hardest = left & (hardness == hardness.amax(dim=1, keepdim=True))
    _raise_all(net, slopes, wanted, hardest, found)
    passed = (~hardest | (found.lip <= wanted.target)).all(dim=1, keepdim=True)
    _raise_all(net, slopes, wanted, left & ~hardest & passed, found)
    return found


def nothing(items: Tensor, hidden: int) -> Found:
    """No bound of anything, at no cost; ``hidden`` is the number of neurons."""
    lip = torch.full(items.shape, math.inf, dtype=torch.float64)
    roots = torch.zeros(*items.shape, hidden, dtype=torch.float64)
    return Found(lip, torch.full(items.shape, NONE, dtype=torch.int8), roots)


def _raise_all(
    net: CurvedNet, slopes: Sequence[Range], wanted: Wanted, items: Tensor, found: Found
) -> None:
    """Levels 2 to 4 for some items, samples with equally many open neurons together."""
    opened = torch.stack([(s.high > s.low).sum(dim=1) for s in slopes]).sum(dim=0)
    samples = items.any(dim=1).nonzero()[:, 0]
    widest = max(net.hidden) * (net.ball.factor.shape[1] + int(opened.max()))
    for group in chunks(samples[torch.argsort(opened[samples])], min(_GROUP, _HELD // widest)):
        if time.monotonic() >= wanted.deadline:
            break
        _raise_level(net, slopes, wanted, group, items[group], found)


def norm_products(net: CurvedNet, slopes: Sequence[Range], rows: Tensor) -> Tensor:
    """The product of level 1, proven; ``(batch, m)`` for ``rows`` ``(batch, m, p, n_out)``."""
    last, ball = net.layers[-1], net.ball
    weight = last.rows_back(rows.flatten(0, 1)).view(*rows.shape[:3], -1)
    lost = lengths(rows, dim=(2, 3)) * (last.error + 4.0 * U * last.frobenius)
    if not slopes:
        if ball.norm != "l2" or ball.scale is not None:
            weight = rows @ ball.factor
            lost = lengths(rows, dim=(2, 3)) * (4.0 * U * lengths(ball.factor, dim=(0, 1)))
        affine: Tensor = (_norms(weight) + lost) * SLACK + TINY
        return affine
    halves = [largest(s).sqrt() * (1.0 + 1e-15) for s in slopes]
    product = _first_norm(net, halves[0])
    for k in range(1, len(slopes)):
        norms = scaled_norm(net.layers[k], halves[k], halves[k - 1])
        product = upper_product(product, norms + TINY, SLACK)
    top = halves[-1].amax(dim=1)
    outer = _norms(weight * halves[-1][:, None, None]) * (1.0 + 1e-12) + lost * top[:, None]
    return upper_product(outer + TINY, product[:, None], SLACK)


def _first_norm(net: CurvedNet, rows: Tensor) -> Tensor:
    """``||R W_0||`` over the unit ball, for every sample's row scales."""
    fitted = net.ball.fitted
    if fitted.operator.is_matrix or net.ball.stretch != 1.0:
        return proven_norms(rows[:, :, None] * net.ball.factor) * SLACK
    return scaled_norm(fitted, rows, None)


def _norms(matrices: Tensor) -> Tensor:
    """Proven norms; a single row's is its length."""
    if matrices.shape[-2] == 1:
        return lengths(matrices[..., 0, :])
    return proven_norms(matrices)


def _by_norms(net: CurvedNet, slopes: Sequence[Range], wanted: Wanted) -> Found:
    # High enough a claim for a check that sums in another order.
    norms = norm_products(net, slopes, wanted.rows) * (1.0 + 1e-8)
    lip = torch.where(wanted.items, norms, math.inf)
    level = torch.where(torch.isfinite(lip), NORMS, NONE).to(torch.int8)
    hidden = sum(net.hidden)
    return Found(lip, level, torch.zeros(*lip.shape, hidden, dtype=torch.float64))


def _raise_level(
    net: CurvedNet,
    slopes: Sequence[Range],
    wanted: Wanted,
    group: Tensor,
    asked: Tensor,
    found: Found,
) -> None:
    """Levels 2 to 4 for a group of samples; betters ``found`` in place."""
    reduced = reduce(net, [Range(s.low[group], s.high[group]) for s in slopes])
    items = (asked & (found.lip[group] > wanted.target[group])).nonzero()
    size = (reduced.rows.shape[1] + wanted.rows.shape[2]) * reduced.rows.shape[2]
    for part in chunks(items, _ENTRIES // max(size, 1)):
        local, functional = part[:, 0], part[:, 1]
        gain = with_outputs(net, reduced, local, wanted.rows[group][local, functional])
        at = group[local], functional
        roots, lip, level = _climb(gain, reduced, local, at, wanted)
        better = lip < found.lip[at]
        kept = at[0][better], at[1][better]
        found.lip[kept] = lip[better]
        found.level[kept] = level[better]
        found.roots[kept] = scattered(net, reduced, local[better], roots[better])


def _climb(
    gain: Gain, reduced: Reduced, local: Tensor, at: tuple[Tensor, Tensor], wanted: Wanted
) -> tuple[Tensor, Tensor, Tensor]:
    """Roots, proven bounds and levels of a batch of items."""
    roots, lip = best_of(gain, [closed_form(gain, theta) for theta in THETAS])
    level = torch.full_like(lip, CLOSED, dtype=torch.int8)
    if wanted.known is not None and wanted.level >= IMPLIED:
        narrowed = from_global(reduced, local, [t[at] for t in wanted.known])
        chosen, found = best_of(gain, [roots, narrowed])
        level = torch.where(found < lip, IMPLIED, level).to(torch.int8)
        roots, lip = chosen, found
    target = wanted.target[at]
    worth = (lip > target) & ((target == 0.0) | (lip < _WORTH * target)) & torch.isfinite(lip)
    if wanted.level >= OPTIMISED and bool(worth.any()) and time.monotonic() < wanted.deadline:
        some = worth.nonzero()[:, 0]
        better_roots, better = improved(gain.select(some), roots[some], lip[some])
        level[some] = torch.where(better < lip[some], OPTIMISED, level[some]).to(torch.int8)
        roots[some], lip[some] = better_roots, better
    return roots, proven_lip(gain, roots), level


def scattered(net: CurvedNet, reduced: Reduced, local: Tensor, roots: Tensor) -> Tensor:
    """Roots of the slots put at their neurons, ``(items, hidden neurons)``, 0 elsewhere."""
    widths = net.hidden
    dense, start, slot = torch.zeros(len(local), sum(widths), dtype=torch.float64), 0, 0
    for width, index, radius in zip(widths, reduced.index, reduced.radius, strict=True):
        count = index.shape[1]
        values = torch.where(radius[local] > 0.0, roots[:, slot : slot + count], 0.0)
        dense[:, start : start + width].scatter_(1, index[local], values)
        start, slot = start + width, slot + count
    return dense


def gathered(net: CurvedNet, reduced: Reduced, local: Tensor, dense: Tensor) -> Tensor:
    """The inverse of :func:`scattered`; padding gets 1, a missing root stays 0."""
    widths = net.hidden
    parts, start = [], 0
    for width, index, radius in zip(widths, reduced.index, reduced.radius, strict=True):
        picked = dense[:, start : start + width].gather(1, index[local])
        parts.append(torch.where(radius[local] > 0.0, picked, 1.0))
        start += width
    return torch.cat(parts, dim=1)
