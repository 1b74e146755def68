"""What stays the same from round to round: what is asked, of which matrices, and how it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..lipschitz import Lipschitz
from ..solvers import Slopes
from .config import AdmmConfig
from .held import NOTHING, Held
from .metric import PLAIN, Metric


class LayerBall(Protocol):
    """Weights of one layer by the norm of the operator that they stand for."""

    def norm(self, weight: Tensor) -> float:
        """The operator's norm."""

    def nearest(
        self, anchor: Tensor, radius: float, tol: float, warm: Any = None
    ) -> tuple[Tensor, Any, int]:
        """The nearest weight of norm at most ``radius``, restart data, and steps taken."""


class FixedBall:
    """Of a layer that stays: its norm is part of the gain, and the nearest weight is its own."""

    def norm(self, weight: Tensor) -> float:
        """What is left of the norm beside the gain."""
        return 1.0

    def nearest(
        self, anchor: Tensor, radius: float, tol: float, warm: Any = None
    ) -> tuple[Tensor, None, int]:
        """The weight itself."""
        return anchor, None, 1


FIXED = FixedBall()


@dataclass(frozen=True)
class LayerNorms:
    """Says that the constraint is one spectral-norm ball per layer (``layer_norms.py``).

    Attributes:
        balls: of the layers, in order; none says that all are dense.
        gain: product of the norms of what does not move: pools, steepest slopes, frozen layers.
        image: shape of one input, where there are convolutions.
    """

    balls: tuple[LayerBall, ...] = ()
    gain: float = 1.0
    image: tuple[int, ...] | None = None

    def moving(self, layers: int) -> int:
        """How many of so many layers move, and so share the bound."""
        return layers - sum(ball is FIXED for ball in self.balls)


Activations = tuple[Slopes, ...] | LayerNorms


@dataclass(frozen=True, eq=False)
class Terms:
    """The constraint of a run.

    Attributes:
        asked: the bound, or the price of L.
        slopes: of the hidden layers' activations, or that they sort pairs.
        config: of the algorithm.
        metric: which matrices the bound is about.
        held: what stays of them.

    Raises:
        ValueError: for a price on L where no layer can follow it.
    """

    asked: Lipschitz
    slopes: Activations
    config: AdmmConfig
    metric: Metric = PLAIN
    held: Held = NOTHING

    def __post_init__(self) -> None:
        if self.asked.mu is None or not self.held:
            return
        layer = self.held.pliant(len(self.held.masks))
        if layer is None:
            raise ValueError(
                "mu: a price moves L by scaling one layer, but in each of them something is held "
                "at what is not 0; enforce a bound"
            )
        if layer and self.config.lip_step == "exact" and not isinstance(self.slopes, LayerNorms):
            raise ValueError(
                "lip_step: 'exact' scales the first layer, of which something is held at what is "
                "not 0; expected 'newton'"
            )

    def scaled_layer(self, layers: int) -> int:
        """Which of so many layers follows L: the first that can be scaled, else the last."""
        found = self.held.pliant(layers)
        return layers - 1 if found is None else found
