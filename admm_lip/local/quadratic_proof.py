"""Quadratic bounds of what a batch leaves open: in closed form, or by a witness that is checked.

A witness states slopes, curvatures and a metric for every hidden neuron, in float32, so that a
check takes exactly the numbers that were proven.  Any slopes, any curvatures t >= 0 and any metric
T > 0 prove a bound (``quadratic_pass.py``); a bad witness proves little, and never too much.  The
growth of a layer is that of the norms which all functionals of a sample share or, where that is not
enough, of a norm proven in this metric for this D alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .backward_lines import BackwardLines
from .forward_bounds import LayerBounds
from .quadratic_pass import Choice, QuadraticPass
from .witnesses import Stated

# What a check that sums in another order, or whose norms were proven with another excess, may miss.
SPARE = 1e-5


@dataclass(frozen=True, eq=False)
class Witness(Stated):
    """Slopes, curvatures and metric of some functionals; any values prove a bound.

    Attributes:
        slopes: g over c of all hidden neurons, ``(rows, neurons)``, float32,
        curvatures: t in its layer's unit (:meth:`QuadraticPass.curvature`), and
        metric: T; that of the last hidden layer says nothing.
    """

    slopes: Tensor
    curvatures: Tensor
    metric: Tensor

    def choice(self, passing: QuadraticPass) -> Choice:
        """As a pass over all its rows takes it."""
        slopes, curvatures = (
            torch.split(part.double()[:, None], passing.widths, dim=-1)
            for part in (self.slopes, self.curvatures)
        )
        return lambda k, c, m: (slopes[k], passing.curvature(k, c, m, curvatures[k]))


@dataclass(frozen=True, eq=False)
class OpenPass:
    """The pass of those samples of a batch of which something is open.

    Attributes:
        samples: which they are, and
        place: for every sample of the batch its place among them.
        own: their pass.
    """

    samples: Tensor
    place: Tensor
    own: QuadraticPass

    def among(self, asked: Tensor) -> Tensor:
        """Those of some functionals, ``(batch, m)``, whose samples are in the pass."""
        return asked & (self.place >= 0)[:, None]

    def at(self, items: Tensor) -> QuadraticPass:
        """One sample for each of some functionals, ``(batch, m)``."""
        return self.own.select(self.place[items.nonzero()[:, 0]])

    def closed(self, rows: Tensor, asked: Tensor, spare: float = 0.0) -> Tensor:
        """Lower bounds in closed form where asked, ``-inf`` elsewhere.

        Args:
            rows: ``(batch, m, n_out)``.
            asked: ``(batch, m)``.
            spare: share of what the bound gave away that it is lowered by.
        """
        found, some = torch.full(asked.shape, -math.inf, dtype=torch.float64), self.samples
        if not bool(self.among(asked).any()):
            return found
        # No more functionals of a sample than the most that any one asks for.
        most = int(asked[some].sum(dim=1).max())
        chosen = asked[some].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        bound, spent = self.own.functionals(rows[some][torch.arange(len(some))[:, None], chosen])
        found[some[:, None], chosen] = lowered(bound, spent, spare)
        return torch.where(asked, found, -math.inf)

    def proven(
        self, rows: Tensor, witness: Witness, claims: Tensor | float = 0.0, spare: float = 0.0
    ) -> Tensor:
        """The same by a witness: by the norms that all share, then by its own.

        Args:
            rows: ``(batch, m, n_out)``.
            witness: of some of them.
            claims: ``(rows,)``: what is above these by the first needs no second.
            spare: see :meth:`closed`.

        Returns:
            ``(rows,)``, one bound for each row of the witness.
        """
        own, functionals = self.at(witness.items), rows[witness.items][:, None]
        choose = witness.choice(own)
        found = lowered(*own.bound(functionals, choose, own.shared_growth), spare)[:, 0]
        left = ((found < claims) | (found <= 0.0)).nonzero()[:, 0]
        if len(left):
            part, rest = own.select(left), _rows_of(witness, left)
            growth = part.own_growth(rest.metric.double())
            better = lowered(*part.bound(functionals[left], rest.choice(part), growth), spare)[:, 0]
            found[left] = torch.maximum(found[left], better)
        return found


def _rows_of(witness: Witness, rows: Tensor) -> Witness:
    stated = witness.slopes, witness.curvatures, witness.metric
    return Witness(witness.items, *(part[rows] for part in stated))


def lowered(bound: Tensor, spent: Tensor, spare: float) -> Tensor:
    """A claim that a check with its own rounding reaches; ``-inf`` for what overflowed."""
    bound = bound - spare * (spent + bound.abs())
    return torch.where(torch.isfinite(bound), bound, -math.inf)


def open_pass(
    lines: BackwardLines, known: Sequence[LayerBounds], samples: Tensor
) -> OpenPass | None:
    """Of some samples, ``(batch,)``, boolean; ``None`` where there is nothing to be bounded."""
    some = (samples & (lines.region.radius > 0.0)).nonzero()[:, 0]
    if not (len(some) and known):
        return None
    place = torch.full((len(samples),), -1)
    place[some] = torch.arange(len(some))
    part = replace(lines, region=lines.region.select(some))
    own = QuadraticPass.of(part, [layer.select(some) for layer in known])
    return OpenPass(some, place, own)
