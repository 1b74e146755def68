"""Search for the metric of quadratic bounds, with slopes and curvatures: from where norms that all
functionals share have brought them.

For fixed signs of the rows c the bound is concave in g, D and M together, and M has but to hold
``diag(M) >= C W' D W C``: per neuron it is worth a great deal.  Here the slopes, the logarithms of
the curvatures t and those of the metric T are free, and the growth is estimated by power iterations
that go on from step to step, with its gradient at the vector found.  Such an estimate is from
below, and the largest eigenvalue has kinks where the best metric is.  So the steps are small, what
counts is the running mean of where they lead, and that is proven (``quadratic_proof.py``) wherever
longer iterations find it above 0, and where it would not get there at its pace, as gains only
shrink.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..float64 import TINY
from ..rounding import lengths
from .adam import Moments
from .columns import LEAST_METRIC
from .input_region import chunks
from .power_iteration import keeps_input_side, masked_norms, vector_shape
from .quadratic_pass import Growth, QuadraticPass
from .quadratic_proof import SPARE, OpenPass, Witness
from .quadratic_search import MOST, TOGETHER

# Rates of Adam for slopes, log t and log T, and the least weight of a step in the running mean.
_RATES, _NEWEST = (0.01, 0.01, 0.005), 0.03
# Power iterations of a step, and of a look at the running mean, which comes every so many steps.
_POWER, _SURE, _LOOK = 2, 20, 50
# Looks that the pace is taken over at which what is left is expected to rise.
_PACE = 4
# Where log t begins that is 0.
_LEAST = 1e-6


def refined(
    own: OpenPass, rows: Tensor, witness: Witness, steps: int, deadline: float
) -> tuple[Witness, Tensor]:
    """The best slopes, curvatures and metrics found, and what they prove, ``(rows,)``.

    Args:
        own: the pass of the samples.
        rows: ``(batch, m, n_out)``.
        witness: of the functionals that are open, from which the search begins.
        steps: of Adam.
        deadline: ``time.monotonic()`` after which no step is begun; every part of the functionals
            has an equal share of the time until then.
    """
    together = max(1, TOGETHER // sum(own.own.widths))
    parts, found = chunks(torch.arange(len(witness.slopes)), together), []
    for k, part in enumerate(parts):
        now = time.monotonic()
        chosen = torch.zeros(len(witness.slopes), dtype=torch.bool)
        chosen[part] = True
        until = now + (deadline - now) / (len(parts) - k)
        found.append(_run(own, rows, witness.select(chosen), steps, until))
    *stated, proven = (torch.cat(same) for same in zip(*found, strict=True))
    return Witness(witness.items, *stated), proven


def _run(
    own: OpenPass, rows: Tensor, witness: Witness, steps: int, deadline: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slopes, curvatures, metrics and what they prove, of all rows of a witness."""
    search = _Search.begun(own.at(witness.items), rows[witness.items][:, None], witness)
    best = torch.full((len(witness.slopes),), -torch.inf, dtype=torch.float64)
    stated = [part.clone() for part in (witness.slopes, witness.curvatures, witness.metric)]
    left, made, seen = torch.arange(len(best)), 0, [search.look()]
    while len(left):
        search.go(min(_LOOK, steps - made), deadline)
        made += _LOOK
        seen = [*seen[-_PACE:], search.look()]
        done = _given_up(seen, (steps - made) / _LOOK) | (time.monotonic() >= deadline)
        tried = done | (seen[-1] > 0.0)
        for into, new in zip(stated, search.stated(), strict=True):
            into[left[tried]] = new[tried]
        chosen = torch.zeros(len(best), dtype=torch.bool)
        chosen[left[tried]] = True
        some = Witness(witness.items, *stated).select(chosen)
        best[left[tried]] = own.proven(rows, some, spare=SPARE)
        kept = (best[left] <= 0.0) & ~done
        search, left = search.select(kept.nonzero()[:, 0]), left[kept]
        seen = [values[kept] for values in seen]
    return stated[0], stated[1], stated[2], best


def _given_up(seen: list[Tensor], looks: float) -> Tensor:
    """Which searches would be below 0 after some looks more, at the pace of the last ones."""
    if len(seen) <= _PACE:
        return torch.full_like(seen[-1], looks <= 0.0, dtype=torch.bool)
    highest = torch.stack(seen).amax(dim=0)
    return (looks <= 0.0) | (highest + (highest - seen[0]) / _PACE * looks < 0.0)


@dataclass(eq=False)
class _Search:
    """Some functionals, ``(rows, 1, n_out)``, each of the sample of its pass.

    Attributes:
        free: slopes, log t and log T of every neuron, ``(rows, 1, 3 neurons)``.
        mean: their running mean.
        moments: of Adam.
        vectors: where the power iterations of each layer stand.
    """

    passing: QuadraticPass
    rows: Tensor
    free: Tensor
    mean: Tensor
    moments: Moments
    vectors: list[Tensor]

    @staticmethod
    def begun(passing: QuadraticPass, rows: Tensor, witness: Witness) -> _Search:
        """From a witness."""
        t, metric = witness.curvatures.double().clamp(min=_LEAST), witness.metric.double()
        free = torch.cat([witness.slopes.double(), t.log(), metric.log()], dim=1)[:, None]
        random, vectors = torch.Generator().manual_seed(0), []
        for k in range(len(passing.hidden)):
            shape = vector_shape(passing.behind(k)[0].operator)
            vectors.append(torch.randn(shape, generator=random).double().expand(len(rows), *shape))
        return _Search(passing, rows, free, free.clone(), Moments.none(free), vectors)

    def select(self, rows: Tensor) -> _Search:
        """That of some of the functionals."""
        free, mean, vectors = self.free[rows], self.mean[rows], [v[rows] for v in self.vectors]
        own, moments = self.passing.select(rows), self.moments.select(rows)
        return _Search(own, self.rows[rows], free, mean, moments, vectors)

    def go(self, steps: int, deadline: float) -> None:
        """Some steps."""
        sizes = [sum(self.passing.widths)] * 3
        rates = torch.cat([torch.full((n,), r) for n, r in zip(sizes, _RATES, strict=True)])
        for _ in range(steps):
            if time.monotonic() >= deadline:
                return
            self.free.requires_grad_(True)
            with torch.enable_grad():
                bound = self._bound(self.free, _POWER)
                (gradient,) = torch.autograd.grad(bound.sum(), self.free)
            self.moments = self.moments.after(gradient)
            self.free = self.free.detach() + rates * self.moments.move()
            weight = (1.0 / self.moments.steps).clamp(min=_NEWEST)
            self.mean = self.mean + weight * (self.free - self.mean)

    def look(self) -> Tensor:
        """About what the running mean proves, ``(rows,)``."""
        return self._bound(self.mean, _SURE)

    def stated(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes, curvatures and metric at the running mean, ``(rows, neurons)``, float32."""
        slopes, t, metric = (torch.cat(part, dim=-1)[:, 0] for part in self._taken(self.mean))
        t, metric = t.clamp(max=MOST), metric.clamp(LEAST_METRIC, MOST)
        return slopes.float(), t.float(), metric.float()

    def _taken(self, free: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Slopes, curvatures and metric of each layer, ``(rows, 1, n)``."""
        widths = self.passing.widths
        parts = [torch.split(part, widths, dim=-1) for part in free.chunk(3, dim=-1)]
        slopes, t, metric = [], [], []
        for h, *own in zip(self.passing.hidden, *parts, strict=True):
            bends = h.bend.bending[:, None] > 0.0
            slopes.append(torch.where(bends, own[0], h.bend.slope[:, None]))
            t.append(torch.where(bends, own[1].exp(), 0.0))
            metric.append(own[2].exp())
        return slopes, t, metric

    def _bound(self, free: Tensor, rounds: int) -> Tensor:
        slopes, t, metric = self._taken(free)

        def choose(k: int, c: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
            return slopes[k], self.passing.curvature(k, c, m, t[k])

        found = self.passing.bound(self.rows, choose, self._growth(metric, rounds))
        return found[0][:, 0]

    def _growth(self, metric: list[Tensor], rounds: int) -> Growth:
        """Estimated by some power iterations more."""

        def growth(k: int, d: Tensor, m: Tensor) -> Tensor:
            layer, columns = self.passing.behind(k)
            operator, into = layer.operator, metric[k - 1][:, 0] if k else d.new_ones(1, 1)
            scale = None if columns is None else columns * into.rsqrt()
            v = self._vectors(k, d[:, 0], scale, rounds)
            v = v if scale is None else v * scale.reshape(v.shape)
            through = operator.trained(v).flatten(1)
            return ((d[:, 0] * through.square()).sum(dim=1, keepdim=True) * into)[:, None]

        return growth

    @torch.no_grad()
    def _vectors(self, k: int, d: Tensor, scale: Tensor | None, rounds: int) -> Tensor:
        """About the first right singular vectors of ``D^1/2 W C T^-1/2``, of norm 1."""
        operator, roots = self.passing.behind(k)[0].operator, d.sqrt()
        found = masked_norms(operator, roots, scale, self.vectors[k], rounds, marks=False)[1]
        self.vectors[k] = found
        if keeps_input_side(operator):
            return found
        back = operator.adjoint(found * roots.reshape(found.shape)).flatten(1)
        back = back if scale is None else back * scale
        back = back / (lengths(back)[:, None] + TINY)
        return back.reshape(-1, *operator.shape_in)
