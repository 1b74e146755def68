"""Search for the slopes and curvatures of quadratic bounds, all open functionals together.

The bound of ``quadratic_pass.py`` is driven up by Adam (D. Kingma, J. Ba, 2015), one step for all
functionals of a batch at once, whatever samples they belong to.  Per functional and hidden layer,

    g_i = c_i (b_i + (1 - b_i) s(p_i))   on units with a kink (b_i the slope below it, s the
                                         logistic function); their one slope on others,
    D   = m S^2 + t U,

with p_i and log t free.  The growth is that of the norms which all functionals share, so that what
is driven up is itself a proven bound: a functional leaves as soon as it is above 0, and what is
kept, rounded to float32, is proven once more by itself (``quadratic_proof.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..rounding import TINY
from .input_region import chunks
from .quadratic_pass import QuadraticPass
from .quadratic_proof import SPARE, OpenPass, Witness, lowered

# Neurons of the functionals searched together: below, torch's calls cost more than its arithmetic.
_TOGETHER = 2**18
# Rates of Adam for p and log t, and how it forgets.
_RATES, _BETAS = (0.3, 0.1), (0.9, 0.99)
_SHARE = 0.15
# Of what a witness holds.
_MOST = torch.finfo(torch.float32).max
# Start of p, away from the ends of the logistic function.
_INSIDE = 1e-3


def searched(own: OpenPass, rows: Tensor, asked: Tensor, steps: int) -> tuple[Witness, Tensor]:
    """The best slopes and curvatures found, and what they prove, ``(rows,)``.

    Args:
        own: the pass of the samples.
        rows: ``(batch, m, n_out)``.
        asked: ``(batch, m)``; what is not in the pass is left out.
        steps: of Adam.
    """
    asked = own.among(asked)
    passing, functionals = own.at(asked), rows[asked][:, None]
    together = max(1, _TOGETHER // sum(passing.widths))
    parts = [
        _run(_Search.begun(passing.select(part), functionals[part]), steps)
        for part in chunks(torch.arange(len(functionals)), together)
    ]
    witness = Witness(asked, *(torch.cat(same) for same in zip(*parts, strict=True)))
    return witness, own.proven(rows, witness, spare=SPARE)


@dataclass(eq=False)
class _Search:
    """Some functionals, ``(rows, 1, n_out)``, each of the sample of its pass.

    Attributes:
        free: p of every layer, then log shares.
        first: running means of the gradients, and
        second: of their squares.
        seen: slopes and D of the last bound, layer by layer.
    """

    passing: QuadraticPass
    rows: Tensor
    free: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    seen: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @staticmethod
    def begun(passing: QuadraticPass, rows: Tensor) -> _Search:
        """From the closed form."""
        places, shares = [], []
        for h in passing.hidden:
            inside = (h.slope - h.below) / torch.where(h.below == 1.0, 1.0, 1.0 - h.below)
            places.append(torch.logit(inside.clamp(_INSIDE, 1.0 - _INSIDE))[:, None])
            shares.append(torch.full_like(places[-1][..., :1], math.log(_SHARE)))
        free = places + shares
        first, second = ([torch.zeros_like(p) for p in free] for _ in range(2))
        return _Search(passing, rows, free, first, second)

    def select(self, rows: Tensor) -> _Search:
        """That of some of the functionals."""
        free, first, second = (
            [p[rows].detach() for p in part] for part in (self.free, self.first, self.second)
        )
        return _Search(self.passing.select(rows), self.rows[rows], free, first, second)

    def step(self, count: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """What is proven, with its slopes and curvatures, ``(rows, ...)``, and a step of Adam."""
        for p in self.free:
            p.requires_grad_(True)
        with torch.enable_grad():
            bound, spent = self.passing.bound(self.rows, self._choose, self.passing.shared_growth)
            gradients = torch.autograd.grad(bound.sum(), self.free)
        for k, gradient in enumerate(gradients):
            self._move(k, gradient.nan_to_num(0.0, 0.0, 0.0), count)
        layers = [self.seen[k] for k in range(len(self.passing.hidden))]
        slopes, curvatures = (
            torch.cat([v.detach()[:, 0] for v in part], 1).nan_to_num(0.0).clamp(max=_MOST).float()
            for part in zip(*layers, strict=True)
        )
        return lowered(bound.detach(), spent.detach(), SPARE)[:, 0], (slopes, curvatures)

    def _choose(self, k: int, c: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        here, count = self.passing.hidden[k], len(self.passing.hidden)
        kinked = here.kinked[:, None]
        between = here.below + (1.0 - here.below) * torch.sigmoid(self.free[k])
        slope = torch.where(kinked > 0.0, between, here.slope[:, None])
        unit = self.passing.unit(k, c).detach()
        t = self.free[count + k].exp() * unit
        d = m[..., None] * here.steepest.square()[:, None] + t * kinked
        self.seen[k] = slope, d / unit
        return slope, d

    def _move(self, k: int, gradient: Tensor, count: int) -> None:
        """Upwards."""
        rate = _RATES[k // len(self.passing.hidden)]
        self.first[k] = torch.lerp(gradient, self.first[k], _BETAS[0])
        self.second[k] = torch.lerp(gradient.square(), self.second[k], _BETAS[1])
        mean = self.first[k] / (1.0 - _BETAS[0] ** count)
        size = (self.second[k] / (1.0 - _BETAS[1] ** count)).sqrt()
        self.free[k] = (self.free[k] + rate * mean / (size + TINY)).detach()


def _run(search: _Search, steps: int) -> tuple[Tensor, Tensor]:
    """Slopes and curvatures of the best bounds seen, ``(rows, neurons)`` each."""
    count, left = len(search.rows), torch.arange(len(search.rows))
    slopes = torch.zeros(count, sum(search.passing.widths))
    curvatures, best = torch.zeros_like(slopes), torch.full((count,), -torch.inf).double()
    for step in range(1, steps + 1):
        found, seen = search.step(step)
        better = found > best[left]
        kept = left[better]
        best[kept], slopes[kept], curvatures[kept] = found[better], *(part[better] for part in seen)
        open_ = (best[left] <= 0.0).nonzero()[:, 0]
        if not len(open_):
            break
        if len(open_) < len(left):
            search, left = search.select(open_), left[open_]
    return slopes, curvatures
