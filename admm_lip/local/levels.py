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

from ..rounding import SLACK, TINY, U, lengths, proven_norms, upper_product
from .config import LEVELS as LEVELS
from .curves import Range
from .gain import Gain, Reduced, proven_lip, reduce, with_outputs
from .multipliers import THETAS, best_of, closed_form, from_global, improved
from .tensors import Net, chunks

NONE, GLOBAL, NORMS, CLOSED, IMPLIED, OPTIMISED = range(len(LEVELS))

# Entries of the largest batch of matrices at a time, and samples with equal padding at most.
_ENTRIES = 2**23
_GROUP = 64
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


def local_lips(net: Net, slopes: Sequence[Range], wanted: Wanted) -> Found:
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


def nothing(net: Net, items: Tensor) -> Found:
    """No bound of anything, at no cost."""
    hidden = sum(len(a.bias) for a in net.maps[:-1])
    lip = torch.full(items.shape, math.inf, dtype=torch.float64)
    roots = torch.zeros(*items.shape, hidden, dtype=torch.float64)
    return Found(lip, torch.full(items.shape, NONE, dtype=torch.int8), roots)


def _raise_all(
    net: Net, slopes: Sequence[Range], wanted: Wanted, items: Tensor, found: Found
) -> None:
    """Levels 2 to 4 for some items, samples with equally many open neurons together."""
    opened = torch.stack([(s.high > s.low).sum(dim=1) for s in slopes]).sum(dim=0)
    samples = items.any(dim=1).nonzero()[:, 0]
    for group in chunks(samples[torch.argsort(opened[samples])], _GROUP):
        if time.monotonic() >= wanted.deadline:
            break
        _raise_level(net, slopes, wanted, group, items[group], found)


def masked_norms(net: Net, slopes: Sequence[Range], rows: Tensor) -> Tensor:
    """The product of level 1, proven; ``(batch, m)`` for ``rows`` ``(batch, m, p, n_out)``."""
    last = net.maps[-1]
    weight = rows @ last.weight
    lost = lengths(rows, dim=(2, 3)) * (last.error + 4.0 * U * last.frobenius)
    if not slopes:
        if net.ball.norm != "l2" or net.ball.scale is not None:
            weight = rows @ net.factor
            lost = lengths(rows, dim=(2, 3)) * (4.0 * U * lengths(net.factor, dim=(0, 1)))
        affine: Tensor = (_norms(weight) + lost) * SLACK + TINY
        return affine
    halves = [torch.maximum(s.low.abs(), s.high.abs()).sqrt() * (1.0 + 1e-15) for s in slopes]
    top = [h.amax(dim=1) for h in halves]
    product = proven_norms(halves[0][:, :, None] * net.factor) * SLACK
    for k in range(1, len(slopes)):
        middle = halves[k][:, :, None] * net.maps[k].weight * halves[k - 1][:, None]
        norms = proven_norms(middle) * (1.0 + 1e-12) + net.maps[k].error * top[k] * top[k - 1]
        product = upper_product(product, norms + TINY, SLACK)
    outer = _norms(weight * halves[-1][:, None, None]) * (1.0 + 1e-12) + lost * top[-1][:, None]
    return upper_product(outer + TINY, product[:, None], SLACK)


def _norms(matrices: Tensor) -> Tensor:
    """Proven norms; a single row's is its length."""
    if matrices.shape[-2] == 1:
        return lengths(matrices[..., 0, :])
    return proven_norms(matrices)


def _by_norms(net: Net, slopes: Sequence[Range], wanted: Wanted) -> Found:
    # High enough a claim for a check that sums in another order.
    norms = masked_norms(net, slopes, wanted.rows) * (1.0 + 1e-8)
    lip = torch.where(wanted.items, norms, math.inf)
    level = torch.where(torch.isfinite(lip), NORMS, NONE).to(torch.int8)
    hidden = sum(len(a.bias) for a in net.maps[:-1])
    return Found(lip, level, torch.zeros(*lip.shape, hidden, dtype=torch.float64))


def _raise_level(
    net: Net,
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


def scattered(net: Net, reduced: Reduced, local: Tensor, roots: Tensor) -> Tensor:
    """Roots of the slots put at their neurons, ``(items, hidden neurons)``, 0 elsewhere."""
    widths = [len(a.bias) for a in net.maps[:-1]]
    dense, start, slot = torch.zeros(len(local), sum(widths), dtype=torch.float64), 0, 0
    for width, index, radius in zip(widths, reduced.index, reduced.radius, strict=True):
        count = index.shape[1]
        values = torch.where(radius[local] > 0.0, roots[:, slot : slot + count], 0.0)
        dense[:, start : start + width].scatter_(1, index[local], values)
        start, slot = start + width, slot + count
    return dense


def gathered(net: Net, reduced: Reduced, local: Tensor, dense: Tensor) -> Tensor:
    """The inverse of :func:`scattered`; padding gets 1, a missing root stays 0."""
    widths = [len(a.bias) for a in net.maps[:-1]]
    parts, start = [], 0
    for width, index, radius in zip(widths, reduced.index, reduced.radius, strict=True):
        picked = dense[:, start : start + width].gather(1, index[local])
        parts.append(torch.where(radius[local] > 0.0, picked, 1.0))
        start += width
    return torch.cat(parts, dim=1)


# Highest level by name, as a configuration states it.
