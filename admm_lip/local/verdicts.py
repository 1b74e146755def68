"""What a local certificate says of each input: whether its class is kept, and what settled that.

A class is settled by the cheapest level that proves it, so that of many inputs it can be said how
many each level proves, and in what time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from ..shown import Row
from .config import ASKED, LARGEST_RELAXATION, LEVELS, SETTLED

WRONG, OPEN = "wrong", "open"
# The place in SETTLED of what found a Lipschitz bound.
_BY_LIP = torch.tensor([SETTLED.index(n) if n in SETTLED else 0 for n in LEVELS])
_NEVER = len(SETTLED)


def kept(center: Tensor, margin: Tensor, lip: Tensor, radius: Tensor) -> Tensor:
    """Where ``f_y - f_j > 0`` on the whole ball: by lines, or by ``center > lip radius``.

    A bound below 0 or NaN keeps nothing.
    """
    return (center > 0.0) & ((margin > 0.0) | _kept_by_slope(center, lip, radius))


def _kept_by_slope(center: Tensor, lip: Tensor, radius: Tensor) -> Tensor:
    return (lip >= 0.0) & (reach(lip, radius) < center)


def reach(lip: Tensor, radius: Tensor) -> Tensor:
    """``lip radius``, rounded up."""
    still = (radius[:, None] == 0.0) | (lip == 0.0)  # where one of them is infinite, too
    return torch.where(still, 0.0, lip * radius[:, None]) * (1.0 + 1e-15)


def settled_by(
    proven: tuple[Tensor, Tensor, Tensor, Tensor], means: Tensor, level: Tensor, items: Tensor
) -> Tensor:
    """The cheapest level that proves each sample's class, indices of ``SETTLED``, 0 for none.

    Args:
        proven: center, margin, lip, ``(batch, m)`` each, and radius, as :func:`kept` takes them.
        means: of the margins, ``(batch, m)``: indices of ``ASKED``.
        level: of the Lipschitz bounds: indices of ``LEVELS``.
        items: which functionals count, ``(batch, m)``.
    """
    center, margin, lip, radius = proven
    own = _BY_LIP[level.long()]
    by_slope = torch.where(_kept_by_slope(center, lip, radius) & (own > 0), own, _NEVER)
    by_margin = torch.where(margin > 0.0, means.long() + SETTLED.index(ASKED[0]), _NEVER)
    cheapest = torch.where(center > 0.0, torch.minimum(by_slope, by_margin), _NEVER)
    dearest = torch.where(items, cheapest, 0).amax(dim=1)
    return torch.where(dearest < _NEVER, dearest, 0).to(torch.int8)


def decided(
    robust: Tensor, correct: Tensor, level: Tensor, settled: Tensor | None, own: Tensor
) -> list[str]:
    """How each input was decided, by name; ``own``: which functionals are ``f_y - f_y``."""
    needed = torch.where(own, 0, _BY_LIP[level.long()].clamp(min=1)).amax(dim=1)
    if settled is not None:
        needed = torch.where(settled > 0, settled, needed)
    names = zip(robust.tolist(), correct.tolist(), needed.tolist(), strict=True)
    return [SETTLED[k] if kept else OPEN if right else WRONG for kept, right, k in names]


def counted(names: Iterable[str]) -> dict[str, int]:
    """How often each is named, from cheap to dear, then what is open and what is wrong.

    Example:
        >>> counted(["open", "tuned", "norms", "norms"])
        {'norms': 2, 'tuned': 1, 'open': 1}
    """
    counts = Counter(names)
    return {name: counts[name] for name in (*SETTLED, OPEN, WRONG) if counts[name]}


def by_level(names: list[str], seconds: Tensor | None) -> list[Row]:
    """Of each level the rows that it settled, their share, and the mean of their seconds."""
    rows: list[Row] = []
    for name, count in counted(names).items():
        row: Row = {"settled_by": name, "rows": count, "share": count / len(names)}
        if seconds is not None:
            row["seconds_each"] = float(seconds[torch.tensor([n == name for n in names])].mean())
        rows.append(row)
    return rows


def left_open(sizes: Tensor | None) -> str:
    """How many open inputs the level ``semidefinite`` does not take, and why; empty for none.

    Args:
        sizes: of their relaxations, -1 for activations that have none, 0 for other inputs.

    Example:
        >>> left_open(torch.tensor([0, 5000, 4500]))
        '2 (relaxations of up to 5,000 variables; it takes 4,096)'
    """
    if sizes is None or not bool((sizes != 0).any()):
        return ""
    why = f"relaxations of up to {int(sizes.max()):,} variables; it takes {LARGEST_RELAXATION:,}"
    if bool((sizes < 0).any()):
        why = "it takes ReLU, LeakyReLU, PReLU, MaxMin and GroupSort2 alone"
    return f"{int((sizes != 0).sum())} ({why})"


def least_margins(center: Tensor, margin: Tensor, lip: Tensor, radius: Tensor) -> Tensor:
    """Proven lower bounds of ``f_y - f_j`` on the balls, greater than 0 where it is kept."""
    most = reach(lip, radius)
    by_slope = torch.where(torch.isfinite(most), center - most, -math.inf)
    by_slope = torch.where(center > 0.0, by_slope, center)
    return torch.where(center > 0.0, torch.maximum(by_slope, margin), by_slope)
