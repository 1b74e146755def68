"""What stays the same from round to round: what is asked, of which matrices, and how it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..lipschitz import Lipschitz
from ..solvers import Slopes
from .admm_state import Matrices
from .config import AdmmConfig
from .held import NOTHING, Held
from .metric import PLAIN, Metric


class LayerBall(Protocol):
    """Weights of one layer by the norm of the operator that they stand for.

    ``shares`` says whether the layer takes a share of the bound.
    """

    @property
    def shares(self) -> bool:
        """Whether the radius is the layer's share of the bound."""

    def norm(self, weight: Tensor) -> float:
        """The operator's norm."""

    def nearest(
        self, anchor: Tensor, radius: float, tol: float, warm: Any = None
    ) -> tuple[Tensor, Any, int]:
        """The nearest weight of norm at most ``radius``, restart data, and steps taken."""


class FixedBall:
    """Of a layer that stays: its norm is part of the gain, and the nearest weight is its own."""

    shares = False

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
class TiedBall:
    """Of the K of a tied block: a radius of its own, within which the block's norm is 1.

    Attributes:
        own: the ball of K by itself.
        radius: of that.
    """

    own: LayerBall
    radius: float
    shares = False

    def norm(self, weight: Tensor) -> float:
        """The block's: ``max(1, ||K||^2 - 1)``."""
        return max(1.0, self.own.norm(weight) ** 2 - 1.0)

    def nearest(
        self, anchor: Tensor, radius: float, tol: float, warm: Any = None
    ) -> tuple[Tensor, Any, int]:
        """The nearest K in the ball, whatever the share of the others is."""
        return self.own.nearest(anchor, self.radius, tol, warm)

    def begun(self, weight: Tensor, fills: bool) -> float:
        """The factor on K that brings it into the ball, or to its edge."""
        norm = self.own.norm(weight)
        return self.radius / norm if norm > self.radius or (fills and norm > 0.0) else 1.0


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

    def sharing(self, layers: int) -> tuple[bool, ...]:
        """Which of so many layers move and share the bound."""
        return tuple(ball.shares for ball in self.balls) or (True,) * layers

    def share(self, product: float, layers: int) -> float:
        """The norm that each of them has where all the norms and the gain make up a product."""
        moving = sum(self.sharing(layers))
        return (product / self.gain) ** (1.0 / moving) if moving else 1.0


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

    def sharing(self, layers: int) -> tuple[bool, ...]:
        """Which of so many layers move, and the bound with them."""
        if isinstance(self.slopes, LayerNorms):
            return self.slopes.sharing(layers)
        return tuple(not self.held.whole(k) for k in range(layers))

    def scaled(self, weights: Matrices, share: float) -> Matrices:
        """Weights with ``share`` times the bound, evenly over the layers that share it."""
        sharing = self.sharing(len(weights))
        moved = self.held.scaled(weights, share ** (1.0 / max(1, sum(sharing))))
        rows = zip(sharing, weights, moved, strict=True)
        return tuple(m if own else w for own, w, m in rows)

    def scaled_layer(self, layers: int) -> int:
        """Which of so many layers follows L: the first that can be scaled, else the last."""
        found = self.held.pliant(layers)
        return layers - 1 if found is None else found
