"""Whether classes are kept on balls: samples that are wrong, or easy, go no further.

What a bound for all inputs settles, and what is wrong at the sample itself, is known before any
line is taken back to the input (``ball_proofs.py``).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from .account import Account
from .ball_proofs import Outcome, capped, prove
from .lipschitz_levels import nothing
from .seen import Seen
from .tasks import Task
from .witnesses import Stated

Some = TypeVar("Some", bound=Stated)


def prove_classes(task: Task, radii: Tensor, deadline: float = math.inf) -> Outcome:
    """What the classes need alone: each level for what the cheaper ones leave open.

    Args:
        task: the batch.
        radii: ``(batch,)``.
        deadline: ``time.monotonic()`` after which nothing dearer is begun.
    """
    if task.labels is None or not task.config.by_lines:
        return prove(task, radii, decide=True, deadline=deadline)
    first = _before_lines(task, radii)
    right = ((first.center > 0.0) | ~task.items).all(dim=1)
    rows = (right & (first.settled(radii, task.items) == 0)).nonzero()[:, 0]
    if not len(rows):
        return first
    rest = prove(task.part(rows), radii[rows], decide=True, deadline=deadline)
    return rest if len(rows) == len(radii) else _with_rows(first, rows, rest)


def _before_lines(task: Task, radii: Tensor) -> Outcome:
    """What is known at the samples, and for all inputs."""
    account = Account.opened(task.items, "norms")
    with account.timed():
        # Wider intervals than a check has, so that it reaches these claims.
        center = Seen.of(task, radii, ranges=False).center(task.functionals[:, :, 0], doubt=2.0)
        center = torch.where(torch.isfinite(center), center, -math.inf)
        found = nothing(task.items, sum(task.prepared.curved.hidden))
        if task.known is not None:
            found = capped(found, task.known.lips(task.labels, len(radii)), task.items)
    nan = torch.full((len(radii),), math.nan, dtype=torch.float64)
    return Outcome(found, torch.full_like(center, -math.inf), center, nan, nan, account)


def _with_rows(first: Outcome, rows: Tensor, rest: Outcome) -> Outcome:
    """What is known of all samples after more has been found of some, in ascending order."""
    for into, new in (
        *((getattr(first.found, n), getattr(rest.found, n)) for n in ("lip", "level", "roots")),
        *((getattr(first, n), getattr(rest, n)) for n in ("margin", "center")),
        (first.account.means, rest.account.means),
        (first.account.left, rest.account.left),
        (first.account.seconds, first.account.seconds[rows] + rest.account.seconds),
    ):
        into[rows] = new
    return replace(
        first,
        witness=_of_batch(rest.witness, rows, len(first.margin)),
        duals=_of_batch(rest.duals, rows, len(first.margin)),
    )


def _of_batch(given: Some | None, rows: Tensor, count: int) -> Some | None:
    """What is stated of some samples, as of the whole batch."""
    if given is None:
        return None
    items = torch.zeros(count, given.items.shape[1], dtype=torch.bool)
    items[rows] = given.items
    return replace(given, items=items)
