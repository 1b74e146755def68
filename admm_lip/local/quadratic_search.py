"""Search for the slopes and curvatures of quadratic bounds, all open functionals together.

The bound of ``quadratic_pass.py`` is driven up by Adam, one step for all functionals of a batch at
once, whatever samples they belong to.  Per functional and hidden layer,

    g_i = c_i (a_i + (b_i - a_i) s(p_i))   on units that bend (a_i, b_i their least and greatest
                                           slope, s the logistic function); their one slope on
                                           others,
    D   = M S^2 + t U^2,

with p_i and log t free.  The growth is that of the norms which all functionals share, so that what
is driven up is itself a proven bound: a functional leaves as soon as it is above 0, and what is
kept, rounded to float32, is proven once more by itself (``quadratic_proof.py``).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .adam import Moments
from .input_region import chunks
from .quadratic_pass import QuadraticPass
from .quadratic_proof import SPARE, OpenPass, Witness, lowered

# Neurons of the functionals searched together: below, torch's calls cost more than its arithmetic.
TOGETHER = 2**18
# Rates of Adam for p and log t.
_RATES = 0.3, 0.1
_SHARE = 0.15
# Of what a witness holds.
MOST = torch.finfo(torch.float32).max
# Start of p, away from the ends of the logistic function.
_INSIDE = 1e-3


class Searched(NamedTuple):
    """What a search of some functionals, ``(rows,)``, ended with.

    Attributes:
        witness: the best slopes and curvatures.
        proven: what they prove, ``(rows,)``.
        state: where it stood when it found them, ``(rows, 3 parameters + 1)``: a search at a
            radius nearby goes on from there.
    """

    witness: Witness
    proven: Tensor
    state: Tensor


def searched(
    own: OpenPass,
    rows: Tensor,
    asked: Tensor,
    steps: int,
    start: Tensor | None = None,
    deadline: float = math.inf,
) -> Searched:
    """The best slopes and curvatures found.

    Args:
        own: the pass of the samples.
        rows: ``(batch, m, n_out)``.
        asked: ``(batch, m)``; what is not in the pass is left out.
        steps: of Adam.
        start: ``(batch, m, 3 parameters + 1)``: states of earlier searches, NaN where there was
            none; such a search begins with the closed form.
        deadline: ``time.monotonic()`` after which no step is begun; every part of the functionals
            has an equal share of the time until then.
    """
    asked = own.among(asked)
    passing, functionals = own.at(asked), rows[asked][:, None]
    states = None if start is None else start[asked]

    def begun(part: Tensor) -> _Search:
        own_states = None if states is None else states[part]
        return _Search.begun(passing.select(part), functionals[part], own_states)

    together = max(1, TOGETHER // sum(passing.widths))
    parts, found = chunks(torch.arange(len(functionals)), together), []
    for k, part in enumerate(parts):
        now = time.monotonic()
        found.append(_run(begun(part), steps, now + (deadline - now) / (len(parts) - k)))
    slopes, curvatures, state = (torch.cat(same) for same in zip(*found, strict=True))
    witness = Witness(asked, slopes, curvatures, torch.ones_like(slopes))
    return Searched(witness, own.proven(rows, witness, spare=SPARE), state)


@dataclass(eq=False)
class _Search:
    """Some functionals, ``(rows, 1, n_out)``, each of the sample of its pass.

    Attributes:
        free: p of every neuron, then the log share of every layer, ``(rows, 1, parameters)``.
        moments: of Adam.
        seen: slopes and curvatures of the last bound, layer by layer.
    """

    passing: QuadraticPass
    rows: Tensor
    free: Tensor
    moments: Moments
    seen: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @staticmethod
    def begun(passing: QuadraticPass, rows: Tensor, states: Tensor | None) -> _Search:
        """From the closed form, or from where an earlier search stands."""
        places = []
        for h in passing.hidden:
            (low, high), slope = h.bend.slopes, h.bend.slope
            inside = (slope - low) / torch.where(high > low, high - low, 1.0)
            places.append(torch.logit(inside.clamp(_INSIDE, 1.0 - _INSIDE)))
        free = torch.cat(places, dim=1)
        shares = torch.full_like(free[:, : len(places)], math.log(_SHARE))
        free = torch.cat([free, shares], dim=1)
        count = free.shape[1]
        state = torch.cat([free, free.new_zeros(len(free), 2 * count + 1)], dim=1)
        if states is not None:
            state = torch.where(states.isnan(), state, states)
        free, *moments = torch.split(state[:, None], [count, count, count, 1], dim=-1)
        return _Search(passing, rows, free, Moments(*moments))

    def state(self) -> Tensor:
        """Where it stands, ``(rows, 3 parameters + 1)``."""
        return torch.cat([self.free.detach(), *self.moments], -1)[:, 0]

    def select(self, rows: Tensor) -> _Search:
        """That of some of the functionals."""
        own, free = self.passing.select(rows), self.free[rows].detach()
        return _Search(own, self.rows[rows], free, self.moments.select(rows))

    def step(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """What is proven, with its slopes and curvatures, ``(rows, ...)``, and a step of Adam."""
        self.free.requires_grad_(True)
        with torch.enable_grad():
            bound, spent = self.passing.bound(self.rows, self._choose, self.passing.shared_growth)
            (gradient,) = torch.autograd.grad(bound.sum(), self.free)
        self._move(gradient)
        layers = [self.seen[k] for k in range(len(self.passing.hidden))]
        slopes, curvatures = (
            torch.cat([v.detach()[:, 0] for v in part], 1).nan_to_num(0.0).clamp(max=MOST).float()
            for part in zip(*layers, strict=True)
        )
        return lowered(bound.detach(), spent.detach(), SPARE)[:, 0], (slopes, curvatures)

    def _choose(self, k: int, c: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        here, widths = self.passing.hidden[k], self.passing.widths
        place = self.free.narrow(-1, sum(widths[:k]), widths[k])
        share = self.free.narrow(-1, sum(widths) + k, 1)
        bend = here.bend
        low, high, bending = (p[:, None] for p in (*bend.slopes, bend.bending))
        between = low + (high - low) * torch.sigmoid(place)
        slope = torch.where(bending > 0.0, between, bend.slope[:, None])
        curvature = share.exp() * bending.square()
        self.seen[k] = slope, curvature
        return slope, self.passing.curvature(k, c, m, curvature)

    def _move(self, gradient: Tensor) -> None:
        """Upwards."""
        neurons = sum(self.passing.widths)
        rate = torch.full_like(gradient[:1], _RATES[0])
        rate[..., neurons:] = _RATES[1]
        self.moments = self.moments.after(gradient)
        self.free = (self.free + rate * self.moments.move()).detach()


def _run(search: _Search, steps: int, deadline: float) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes and curvatures of the best bounds seen, ``(rows, neurons)`` each, and the states."""
    count, left = len(search.rows), torch.arange(len(search.rows))
    slopes = torch.zeros(count, sum(search.passing.widths))
    curvatures, best = torch.zeros_like(slopes), torch.full((count,), -torch.inf).double()
    states = search.state()
    for _ in range(steps):
        if time.monotonic() >= deadline:
            break
        before = search.state()
        found, seen = search.step()
        better = found > best[left]
        kept = left[better]
        best[kept], slopes[kept], curvatures[kept] = found[better], *(part[better] for part in seen)
        states[kept] = before[better]
        open_ = (best[left] <= 0.0).nonzero()[:, 0]
        if not len(open_):
            break
        if len(open_) < len(left):
            search, left = search.select(open_), left[open_]
    return slopes, curvatures, states
