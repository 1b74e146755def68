"""What stays the same from round to round: what is asked, of which matrices, and how it is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from ..lipschitz import Lipschitz
from ..solvers import Slopes
from .admm_state import Matrices
from .config import AdmmConfig
from .held import NOTHING, Held
from .metric import PLAIN, Metric

_Row = TypeVar("_Row")


class Ball(ABC):
    """Weights of consecutive layers by the norm of the operator that they stand for.

    Attributes:
        layers: how many there are.
        shares: whether they take a share of the bound.
        gain: what they multiply the bound by, where they take no share.
        grows: whether that gain is for others to choose (:meth:`with_gain`).
    """

    layers = 1
    gain = 1.0
    shares = True
    grows = False

    @property
    def degrees(self) -> tuple[int, ...]:
        """The power of the norm that every layer follows: 1 of what takes a share of its own."""
        return (int(self.shares),) * self.layers

    @property
    def factors(self) -> tuple[float, ...]:
        """With which the layers count, of product 1."""
        return (1.0,) * self.layers

    @abstractmethod
    def norm_of(self, weights: Matrices) -> float:
        """The norm of one of so many equal layers that are worth as much as these."""

    @abstractmethod
    def nearest_to(
        self, anchor: Matrices, radius: float, tol: float, warm: Any = None
    ) -> tuple[Matrices, Any, int]:
        """The nearest weights of norm at most ``radius``, restart data, and steps taken."""

    def operators(self, weights: Matrices) -> Matrices:
        """The weights of what the bound sees, in which norms are homogeneous."""
        return weights

    def scaled(self, weights: Matrices, factors: Sequence[float]) -> Matrices:
        """The weights with these factors on what the bound sees."""
        return tuple(f * w for f, w in zip(factors, weights, strict=True))

    def fresh(self, weights: Matrices) -> Matrices:
        """Where a run from scratch begins, from orthogonal weights."""
        return weights

    def begun(self, weights: Matrices, fills: bool) -> tuple[float, ...]:
        """Where no share is taken: the factors that bring weights into the ball, or to its edge."""
        return (1.0,) * self.layers

    def apart(self) -> tuple[Ball, ...]:
        """The balls of the layers by themselves; none where they are only projected together."""
        return (self,)

    def gain_of(self, weights: Matrices) -> float:
        """What weights that stay multiply the bound by."""
        return self.norm_of(weights)

    def with_gain(self, gain: float) -> Ball:
        """The same of another gain, where it ``grows``."""
        return self

    def fitted(self, weights: Matrices) -> Ball:
        """The same with the ``factors``, of product 1, that suit the scales of these weights."""
        return self


class LayerBall(Ball):
    """Weights of one layer by the norm of the operator that they stand for."""

    @abstractmethod
    def norm(self, weight: Tensor) -> float:
        """The operator's norm."""

    @abstractmethod
    def nearest(
        self, anchor: Tensor, radius: float, tol: float, warm: Any = None
    ) -> tuple[Tensor, Any, int]:
        """The nearest weight of norm at most ``radius``, restart data, and steps taken."""

    def norm_of(self, weights: Matrices) -> float:
        """Of the one weight."""
        (weight,) = weights
        return self.norm(weight)

    def nearest_to(
        self, anchor: Matrices, radius: float, tol: float, warm: Any = None
    ) -> tuple[Matrices, Any, int]:
        """To the one weight."""
        (weight,) = anchor
        found, warm, steps = self.nearest(weight, radius, tol, warm)
        return (found,), warm, steps


class FixedBall(LayerBall):
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
class TiedBall(LayerBall):
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

    def begun(self, weights: Matrices, fills: bool) -> tuple[float, ...]:
        """The factor on K that brings it into the ball, or to its edge."""
        return _into(self.own.norm_of(weights), self.radius, fills)


@dataclass(frozen=True)
class UnitBall(LayerBall):
    """Of a layer in the branch of a block: norm 1 at most, whatever the share of the others is.

    Attributes:
        own: the ball of the layer by itself.
        radius: of that, 1 less the rounding of weights.
    """

    own: LayerBall
    radius: float
    shares = False

    def norm(self, weight: Tensor) -> float:
        """What the block is to be multiplied by, at most."""
        return max(1.0, self.own.norm(weight))

    def nearest(
        self, anchor: Tensor, radius: float, tol: float, warm: Any = None
    ) -> tuple[Tensor, Any, int]:
        """The nearest weight in the ball."""
        return self.own.nearest(anchor, self.radius, tol, warm)

    def begun(self, weights: Matrices, fills: bool) -> tuple[float, ...]:
        """The factor that brings the weight into the ball, or to its edge."""
        return _into(self.own.norm_of(weights), self.radius, fills)


def _into(norm: float, radius: float, fills: bool) -> tuple[float, ...]:
    return (radius / norm if norm > radius or (fills and norm > 0.0) else 1.0,)


@dataclass(frozen=True)
class LayerNorms:
    """Says that the constraint is spectral-norm balls (``layer_norms.py``).

    Attributes:
        balls: of the layers, in order; none says that all are dense, each by itself.
        gain: product of what takes no share: the norms of pools and frozen layers, steepest
            slopes, and what residual blocks may grow.
        image: shape of one input, where there are convolutions.
    """

    balls: tuple[Ball, ...] = ()
    gain: float = 1.0
    image: tuple[int, ...] | None = None

    def degrees(self, layers: int) -> tuple[int, ...]:
        """The power of the common norm that each of so many layers follows."""
        return tuple(d for ball in self.balls for d in ball.degrees) or (1,) * layers

    def sharing(self, layers: int) -> tuple[bool, ...]:
        """Which of so many layers move and share the bound."""
        return tuple(degree == 1 for degree in self.degrees(layers))

    def operators(self, weights: Matrices) -> Matrices:
        """The weights of what the bound sees, in which norms are homogeneous."""
        if not self.balls:
            return weights
        return tuple(w for b, own in grouped(self.balls, weights) for w in b.operators(own))

    def scaled(self, weights: Matrices, factors: Sequence[float]) -> Matrices:
        """The weights with these factors on what the bound sees, one for each layer."""
        rows = [*zip(weights, factors, strict=True)]
        if not self.balls:
            return tuple(f * w for w, f in rows)
        found: list[Tensor] = []
        for ball, group in grouped(self.balls, rows):
            own, each = zip(*group, strict=True)
            found += ball.scaled(own, each)
        return tuple(found)

    def share(self, product: float, layers: int) -> float:
        """The norm that each of them has where all the norms and the gain make up a product."""
        moving = sum(self.sharing(layers))
        return (product / self.gain) ** (1.0 / moving) if moving else 1.0


def grouped(balls: Sequence[Ball], rows: Sequence[_Row]) -> Iterator[tuple[Ball, tuple[_Row, ...]]]:
    """Every ball with the rows, one for each layer, of its layers."""
    first = 0
    for ball in balls:
        yield ball, tuple(rows[first : first + ball.layers])
        first += ball.layers


Activations = tuple[Slopes, ...] | LayerNorms
# By the kind of constraint: a clip per layer costs less than an optimizer step.
ROUND_STEPS: Mapping[type, int] = {LayerNorms: 4, tuple: 8}


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

    @property
    def round_steps(self) -> int:
        """Optimizer steps of a round."""
        return self.config.round_steps or ROUND_STEPS[type(self.slopes)]

    def sharing(self, layers: int) -> tuple[bool, ...]:
        """Which of so many layers move, and the bound with them."""
        if isinstance(self.slopes, LayerNorms):
            return self.slopes.sharing(layers)
        return tuple(not self.held.whole(k) for k in range(layers))

    def scaled(self, weights: Matrices, share: float) -> Matrices:
        """Weights with ``share`` times the bound, evenly over the layers that share it."""
        sharing = self.sharing(len(weights))
        each = share ** (1.0 / max(1, sum(sharing)))
        factors = [each if own else 1.0 for own in sharing]
        norms = self.slopes if isinstance(self.slopes, LayerNorms) else LayerNorms()
        return self.held.kept(weights, norms.scaled(weights, factors))

    def scaled_layer(self, layers: int) -> int:
        """Which of so many layers follows L: the first that can be scaled, else the last."""
        found = self.held.pliant(layers)
        return layers - 1 if found is None else found
