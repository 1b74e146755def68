"""Duals of semidefinite relaxations for what a batch leaves open: stated, and checked.

For networks that quadratic bounds take, small enough that a dense matrix over the inputs and the
neurons whose sign is open is factored in about a second.  A witness holds the multipliers of one
functional, in float32, so that a check takes exactly the numbers that were proven.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..networks.layers import Array
from ..networks.scalar_math_torch import scalar_runs
from .activations import Curved
from .backward_lines import behind_last
from .config import LARGEST_RELAXATION
from .layers import Layer
from .quadratic_proof import OpenPass
from .semidefinite_dual import Functional, LayerOnBall, OnBall
from .semidefinite_proof import ExactDual, multipliers_of
from .witnesses import Stated


@dataclass(frozen=True, eq=False)
class Duals(Stated):
    """Multipliers of some functionals; any that are not negative prove a bound.

    Attributes:
        multipliers: ``(rows, 1 + inputs + 6 hidden neurons)``, float32: of the ball, of the box,
            and of every neuron (``semidefinite_dual.py``).
    """

    multipliers: Tensor


@dataclass(frozen=True, eq=False)
class Relaxations:
    """The relaxations of the samples of a pass."""

    passing: OpenPass

    @cached_property
    def weights(self) -> list[Array]:
        """Of the hidden layers, the first as the ball measures its inputs."""
        lines = self.passing.own.lines
        layers = [lines.region.ball.first, *lines.layers[1:-1]]
        return [layer.operator.dense().numpy() for layer in layers]

    @cached_property
    def bends(self) -> list[Tensor] | None:
        """Slopes of the hidden layers' units below 0, see :func:`bends_of`."""
        return bends_of(self.passing.own.lines.layers)

    def size(self, sample: int) -> int:
        """Inputs and open neurons of a sample's relaxation; -1 of other activations."""
        own, place = self.passing.own, self.passing.place[sample]
        opened = sum(int((h.bend.bending[place] > 0.0).sum()) for h in own.hidden)
        return -1 if self.bends is None else own.lines.region.points.shape[1] + opened

    def ball(self, sample: int) -> OnBall | None:
        """The ball of a sample of the batch; ``None`` where its relaxation is not taken."""
        if not 0 < self.size(sample) <= LARGEST_RELAXATION:
            return None
        own, place = self.passing.own, int(self.passing.place[sample])
        region = own.lines.region
        inputs = region.points.shape[1]
        one = region.select(torch.tensor([place]))
        sides = torch.ones(1, 1, inputs, dtype=torch.float64)
        down, up = (one.room(side, None)[0, 0].numpy() for side in (-sides, sides))
        layers = tuple(self._layer(k, place) for k in range(len(own.hidden)))
        radius = float(region.radius[place]) if region.ball.norm == "l2" else None
        return OnBall(layers, down, up, radius)

    def _layer(self, k: int, place: int) -> LayerOnBall:
        own = self.passing.own
        h, layer = own.hidden[k], own.lines.layers[k] if k else own.lines.region.ball.first
        interval = h.known.interval
        assert self.bends is not None
        return LayerOnBall(
            weight=self.weights[k],
            below=self.bends[k].numpy(),
            low=interval.low[place].numpy(),
            high=interval.high[place].numpy(),
            at=h.at[place].numpy(),
            out=h.out[place].numpy(),
            off=h.off[place].numpy(),
            error=layer.error,
        )

    def functional(self, sample: int, row: Tensor) -> Functional:
        """A functional of the outputs, ``(n_out,)``, over the outputs of the last hidden layer."""
        own, place = self.passing.own, self.passing.place[sample]
        known = [h.known for h in own.select(place[None]).hidden]
        weight, value, lost = behind_last(own.lines.layers[-1], known, row[None, None])
        return Functional(weight[0, 0].numpy(), float(value), 2.0 * float(lost))


def proven(passing: OpenPass, rows: Tensor, witness: Duals, claims: Tensor) -> Tensor:
    """Which claims the multipliers prove, ``(rows of the witness,)``, boolean.

    Args:
        passing: the pass of the samples.
        rows: ``(batch, m, n_out)``.
        witness: of functionals whose samples are in it.
        claims: a lower bound for each row of the witness.
    """
    relaxations, held = Relaxations(passing), torch.zeros(len(claims), dtype=torch.bool)
    exact: dict[int, ExactDual | None] = {}
    for k, (sample, item) in enumerate(witness.items.nonzero().tolist()):
        if sample not in exact:
            ball = relaxations.ball(sample)
            exact = {sample: None if ball is None else ExactDual.of(ball)}
        dual = exact[sample]
        if dual is not None:
            y = multipliers_of(witness.multipliers[k].numpy(), dual.relaxation)
            functional = relaxations.functional(sample, rows[sample, item])
            held[k] = dual.proves(y, functional, float(claims[k]))
    return held


def bends_of(layers: Sequence[Layer]) -> list[Tensor] | None:
    """Slopes below 0 of the hidden layers' units, ``(n,)`` each, where those above 0 are 1.

    ``None`` where a layer has other activations.
    """
    found = []
    for layer in layers[:-1]:
        if not isinstance(layer.activation, Curved):
            return None
        runs = scalar_runs(layer.activation.spec, layer.operator.size_out)
        if any(one.kind not in ("relu", "leaky_relu") for _, one in runs):
            return None
        below = torch.zeros(layer.operator.size_out, dtype=torch.float64)
        for run, one in runs:
            below[run] = float(one.options.get("negative_slope", 0.0))
        found.append(below)
    return found
