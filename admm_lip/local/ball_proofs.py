"""What is proven of a batch of samples on their balls: by lines and multipliers, or by norms.

Two ways, of which the level that is asked for chooses one:

* **by lines** (``norms`` and dearer): linear bounds of every neuron taken back to the input give
  margins and slope ranges, these give Lipschitz bounds (``lipschitz_levels.py``);
* **by norms** (``product`` and ``masked``): intervals and the norms of what can move on the ball
  (``norm_margins.py``), a few passes a batch whatever the size of the network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .account import Account
from .backward_lines import center_values
from .config import ASKED, BY_NAME
from .curves import Range
from .lipschitz_levels import GLOBAL, MASKED, NONE, PRODUCT, Found, Wanted, local_lips, nothing
from .met_values import least_met
from .metric_search import refined
from .norm_margins import NormBounds, NormMargins
from .quadratic_proof import SPARE, OpenPass, Witness
from .quadratic_search import searched
from .seen import Seen
from .semidefinite_search import raised
from .semidefinite_witness import Duals
from .tasks import Task
from .verdicts import kept, settled_by

# A target that every bound exceeds by far.
_UNASKED = 1e-300
# Claims are this much below what was found: a check sums in another order.
_SPARE = 1e-9
# A search that goes on from another radius takes one step for so many.
_GOING_ON = 3


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was proven of a batch at its radii.

    Attributes:
        found: Lipschitz bounds.
        margin: lower bounds of the functionals on the balls, ``(batch, m)``.
        center: lower bounds at the samples themselves.
        varying: share of hidden units that can move, ``(batch,)``; NaN where not computed.
        ratio: hidden layers' factor over that of their own norms, ``(batch,)``; NaN likewise.
        witness: of the margins that a search has found, where one was begun, and
        duals: of those that duals have raised further.
        states: where the searches of margins stand, ``(batch, m, ...)``, NaN where there was none.
        account: what it took, and by what the margins were proven.
    """

    found: Found
    margin: Tensor
    center: Tensor
    varying: Tensor
    ratio: Tensor
    account: Account
    witness: Witness | None = None
    duals: Duals | None = None
    states: Tensor | None = None

    def settled(self, radii: Tensor, items: Tensor) -> Tensor:
        """The cheapest level that proves each sample's class at these radii."""
        proven = self.center, self.margin, self.found.lip, radii
        return settled_by(proven, self.account.means, self.found.level, items)


def empty(task: Task) -> Outcome:
    """Of no samples."""
    hidden = sum(task.prepared.widths[:-1]) if task.config.by_lines else 0
    lower, none = torch.zeros(0, task.items.shape[1], dtype=torch.float64), torch.zeros(0).double()
    account = Account.opened(task.items, ASKED[0])
    return Outcome(nothing(task.items, hidden), lower, lower.clone(), none, none, account)


def prove(
    task: Task,
    radii: Tensor,
    *,
    decide: bool = False,
    cheaply: bool = False,
    deadline: float = math.inf,
    states: Tensor | None = None,
) -> Outcome:
    """Bounds of a batch at the given radii.

    Args:
        task: the batch.
        radii: ``(batch,)``.
        decide: only what the class needs: nothing is bounded where something cheaper proves it.
        cheaply: by lines, no Lipschitz bounds but those known for all inputs; by norms, no masked
            ones.
        deadline: see :class:`Wanted`.
        states: those of an outcome at other radii, from which searches go on.
    """
    if task.config.by_lines:
        outcome = _by_lines(task, radii, decide, cheaply, deadline, states)
    else:
        outcome = _by_norms(task, radii, decide or task.config.decide, cheaply)
    everywhere = torch.isposinf(radii)[:, None]
    found, margin = _on_balls(outcome.found, everywhere), outcome.margin
    if task.labels is not None:
        margin = torch.where(everywhere, -math.inf, margin)
    if task.known is not None:
        found = capped(found, task.known.lips(task.labels, len(radii)), task.items)
    return replace(outcome, found=found, margin=margin)


def _by_lines(
    task: Task,
    radii: Tensor,
    decide: bool,
    cheaply: bool,
    deadline: float,
    states: Tensor | None,
) -> Outcome:
    centred, account = task.labels is not None, Account.opened(task.items, "norms")
    center, margin = (torch.zeros_like(task.items, dtype=torch.float64) for _ in range(2))
    witness, duals = None, None
    with account.timed():
        seen = Seen.of(task, radii)
        slopes = seen.slopes(centred)
        if centred:
            center, margin = _claims(task, seen)
    if centred and task.config.quadratic:
        steps = task.config.steps if task.config.tuned and not cheaply else 0
        steps = steps if states is None else -(-steps // _GOING_ON)
        open_ = task.items & (margin <= 0.0) & (center > 0.0)
        metric_steps = task.config.metric_steps if steps else 0
        dual_steps = task.config.dual_steps if task.config.semidefinite and not cheaply else 0
        budget = steps, metric_steps, dual_steps
        search = _Search(task.functionals[:, :, 0], *budget, deadline, account)
        margin, witness, duals, states = _dearer(seen, search, open_, margin, states)
    if centred:
        margin = torch.where(seen.everywhere, -math.inf, margin)
    asked, target = _left(task, seen, center, margin)
    items = task.items & asked if decide else task.items
    with account.timed(items.any(dim=1)):
        if cheaply:
            found = nothing(task.items, sum(task.prepared.curved.hidden))
        else:
            wanted = _wanted(task, items, target, deadline)
            wanted = replace(wanted, decide=decide and centred)
            found = local_lips(task.prepared.curved, slopes, wanted)
    nan = torch.full((len(radii),), math.nan, dtype=torch.float64)
    return Outcome(
        _finite(found, slopes), margin, center, nan, nan, account, witness, duals, states
    )


def _left(task: Task, seen: Seen, center: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
    """Which functionals margins leave open, and the slopes that would prove them."""
    if task.labels is None:
        return task.items, torch.zeros_like(center)
    radius = seen.lines.region.radius
    asked = (margin <= 0.0) & (center > 0.0) & (radius > 0.0)[:, None]
    goal = center / radius[:, None] * (1.0 - 1e-8)
    # What lines decide, or nothing can, gets a bound but no Newton steps.
    return asked, torch.where(asked, goal, _UNASKED)


@dataclass(frozen=True, eq=False)
class _Search:
    """What dearer bounds of margins are asked for.

    Attributes:
        rows: the functionals, ``(batch, m, n_out)``.
        steps: of the search for quadratic bounds,
        metric_steps: of its second part, and
        dual_steps: of that for duals.
        deadline: after which nothing is begun.
        account: of the batch.
    """

    rows: Tensor
    steps: int
    metric_steps: int
    dual_steps: int
    deadline: float
    account: Account


def _dearer(
    seen: Seen, asked: _Search, open_: Tensor, margin: Tensor, states: Tensor | None
) -> tuple[Tensor, Witness | None, Duals | None, Tensor | None]:
    """Margins raised where they are open, by quadratic bounds and then by duals."""
    if time.monotonic() >= asked.deadline:
        return margin, None, None, states
    with asked.account.timed(open_.any(dim=1)):
        passing = seen.open_pass(open_.any(dim=1))
    if passing is None:
        return margin, None, None, states
    margin, witness, states = _quadratic(passing, asked, open_, margin, states)
    if not asked.dual_steps:
        return margin, witness, None, states
    open_ = open_ & (margin <= 0.0)
    with asked.account.timed(open_.any(dim=1)):
        left, budget = asked.account.left, (asked.dual_steps, asked.deadline)
        higher, duals = raised(passing, asked.rows, open_, margin, left, budget)
        margin = asked.account.raised(margin, higher, "semidefinite")
    if witness is not None and duals is not None:
        witness = witness.select(~duals.items[witness.items])
    return margin, witness, duals, states


def _quadratic(
    passing: OpenPass, asked: _Search, open_: Tensor, margin: Tensor, states: Tensor | None
) -> tuple[Tensor, Witness | None, Tensor | None]:
    """Margins raised where they are open: in closed form, then by a search."""
    rows, account = asked.rows, asked.account
    with account.timed(open_.any(dim=1)):
        margin = account.raised(margin, passing.closed(rows, open_, SPARE), "quadratic")
    open_ = passing.among(open_ & (margin <= 0.0))
    if not asked.steps or not bool(open_.any()) or time.monotonic() >= asked.deadline:
        return margin, None, states
    with account.timed(open_.any(dim=1)):
        found = searched(passing, rows, open_, asked.steps, states, asked.deadline)
        if states is None:
            states = margin.new_full((*margin.shape, found.state.shape[1]), math.nan)
        states[open_] = found.state
    margin, witness = _kept_witness(asked, margin, found.witness, found.proven)
    return *_in_own_metric(passing, asked, margin, found.witness, witness), states


def _in_own_metric(
    passing: OpenPass, asked: _Search, margin: Tensor, begun: Witness, witness: Witness
) -> tuple[Tensor, Witness]:
    """Margins raised further, where they are open and no attack meets a value below 0."""
    open_ = begun.items & (margin <= 0.0)
    if not asked.metric_steps or not bool(open_.any()) or time.monotonic() >= asked.deadline:
        return margin, witness
    with asked.account.timed(open_.any(dim=1)):
        rows = asked.rows[open_][:, None]
        open_[open_.clone()] = least_met(passing.at(open_), rows) > 0.0
        if not bool(open_.any()):
            return margin, witness
        begun = begun.select(open_[begun.items])
        found = refined(passing, asked.rows, begun, asked.metric_steps, asked.deadline)
    margin, better = _kept_witness(asked, margin, *found)
    return margin, witness.replaced(better)


def _kept_witness(
    asked: _Search, margin: Tensor, witness: Witness, proven: Tensor
) -> tuple[Tensor, Witness]:
    """Margins raised by a witness, and its rows that raise any."""
    better = proven > margin[witness.items]
    higher = margin.new_full(margin.shape, -math.inf)
    higher[witness.items] = proven
    return asked.account.raised(margin, higher, "tuned"), witness.select(better)


def _on_balls(found: Found, everywhere: Tensor) -> Found:
    """Bounds of balls, none where the ball is the whole space."""
    return Found(
        torch.where(everywhere, math.inf, found.lip),
        torch.where(everywhere, NONE, found.level).to(torch.int8),
        torch.where(everywhere[:, :, None], 0.0, found.roots),
    )


def _claims(task: Task, seen: Seen) -> tuple[Tensor, Tensor]:
    """Lower bounds at the samples and on their balls, low enough for another order of summation."""
    rows = task.functionals[:, :, 0]
    center, margin = seen.center(rows, doubt=2.0), seen.margin(rows)
    spare = seen.center(rows) - center
    return _lowered(center, margin, spare)


def _lowered(center: Tensor, margin: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    """Claims of which nothing overflowed."""
    margin = margin - (spare + _SPARE * center.abs()) - _SPARE * margin.abs()
    known = torch.isfinite(margin) & torch.isfinite(center)
    return torch.where(known, center, -math.inf), torch.where(known, margin, -math.inf)


def _wanted(task: Task, items: Tensor, target: Tensor, deadline: float) -> Wanted:
    level = BY_NAME[task.config.level]
    known = None if task.known is None else task.known.multipliers(task.labels, len(items))
    return Wanted(task.functionals, items, target, level, deadline, known)


def capped(found: Found, lips: Tensor, items: Tensor) -> Found:
    """No bound above the one for all inputs."""
    use = items & (lips < found.lip)
    return Found(
        torch.where(use, lips, found.lip),
        torch.where(use, GLOBAL, found.level).to(torch.int8),
        torch.where(use[:, :, None], 0.0, found.roots),
    )


def _finite(found: Found, slopes: list[Range]) -> Found:
    """Samples whose bounds overflowed prove nothing."""
    bad = torch.isnan(found.lip)
    for s in slopes:
        bad |= ~(torch.isfinite(s.low) & torch.isfinite(s.high)).all(dim=1, keepdim=True)
    level = torch.where(bad, NONE, found.level).to(torch.int8)
    return Found(torch.where(bad, math.inf, found.lip), level, found.roots)


def _by_norms(task: Task, radii: Tensor, decide: bool, cheaply: bool) -> Outcome:
    """The cheaper means for all samples, the dearer for those that are left."""
    account = Account.opened(task.items, "product")
    with account.timed():
        work = _Work.begun(task, torch.where(torch.isposinf(radii), 0.0, radii))
        work.improve(work.left(decide), work.norms.by_box, PRODUCT)
    rows = work.left(decide)
    if not cheaply and BY_NAME[task.config.level] == MASKED and len(rows):
        with account.timed(torch.isin(torch.arange(len(radii)), rows)):
            if decide and task.labels is not None:
                seen = work.norms.estimated(*work.part(rows))
                rows = rows[((seen > 0.0) | ~task.items[rows]).all(dim=1)]
            work.improve(rows, work.norms.by_masked, MASKED)
    account.means[work.level == MASKED] = ASKED.index("masked")
    return work.outcome(account)


@dataclass(eq=False)
class _Work:
    """The way by norms: the best of what was found so far."""

    task: Task
    norms: NormMargins
    radii: Tensor
    center: Tensor
    spare: Tensor
    best: NormBounds
    level: Tensor

    @staticmethod
    def begun(task: Task, radii: Tensor) -> _Work:
        """By the layers' own norms."""
        norms, centred = task.prepared.norms, task.labels is not None
        best = norms.by_product(task.functionals)
        center = spare = torch.zeros_like(best.lip)
        if centred:
            at, rows = norms.at_samples(task.points), task.functionals[:, :, 0]
            center = center_values(norms.layers[-1], at, rows, doubt=2.0)
            spare = center_values(norms.layers[-1], at, rows) - center
            center = torch.where(torch.isfinite(center), center, -math.inf)
        level = torch.full(best.lip.shape, PRODUCT, dtype=torch.int8)
        return _Work(task, norms, radii, center, spare, best, level)

    def left(self, decide: bool) -> Tensor:
        """The samples of which more is to be found: of the right class, and not yet proven."""
        if self.task.labels is None:
            return torch.arange(len(self.radii))
        right = ((self.center > 0.0) | ~self.task.items).all(dim=1)
        held = kept(self.center, self.best.margin, self.best.lip, self.radii)
        done = (held | ~self.task.items).all(dim=1) & decide
        return (right & ~done).nonzero()[:, 0]

    def part(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points, radii and functionals of some samples."""
        return self.task.points[rows], self.radii[rows], self.task.functionals[rows]

    def improve(
        self, rows: Tensor, means: Callable[[Tensor, Tensor, Tensor], NormBounds], level: int
    ) -> None:
        """The better of what was found and of what the means find."""
        if not len(rows):
            return
        found, best = means(*self.part(rows)), self.best
        margin = found.margin
        if self.task.labels is not None:
            margin = _lowered(self.center[rows], margin, self.spare[rows])[1]
        if level > PRODUCT:
            # The claims of an item are all by its level's means.
            better = (found.lip < best.lip[rows]) | (margin > best.margin[rows])
            self.level[rows] = torch.where(better, level, self.level[rows]).to(torch.int8)
            margin = torch.where(better, margin, best.margin[rows])
        best.lip[rows] = torch.minimum(found.lip, best.lip[rows])
        best.margin[rows] = margin
        best.ratio[rows], best.varying[rows] = found.ratio, found.varying

    def outcome(self, account: Account) -> Outcome:
        """As bounds and claims."""
        lip = torch.where(self.task.items, self.best.lip * (1.0 + 1e-8), math.inf)
        lip = torch.where(torch.isnan(lip), math.inf, lip)
        # A level names the means of the margin too, so it stays where a slope overflowed.
        level = torch.where(self.task.items, self.level, NONE).to(torch.int8)
        margin = torch.where(self.task.items, self.best.margin, -math.inf)
        margin = margin if self.task.labels is not None else torch.zeros_like(lip)
        roots = torch.zeros(*lip.shape, 0, dtype=torch.float64)
        ratio = torch.where(self.best.varying.isnan(), math.nan, self.best.ratio)
        found = Found(lip, level, roots)
        return Outcome(found, margin, self.center, self.best.varying, ratio, account)
