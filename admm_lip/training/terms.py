"""What stays the same from round to round: what is asked, of which matrices, and how it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..lipschitz import Lipschitz
from ..solvers import Slopes
from .config import AdmmConfig
from .metric import PLAIN, Metric


class LayerBall(Protocol):
    """Weights of one layer by the norm of the operator that they stand for."""

    def norm(self, weight: Tensor) -> float:
        """The operator's norm."""

    def nearest(
        self, anchor: Tensor, radius: float, tol: float, warm: Any = None
    ) -> tuple[Tensor, Any, int]:
        """The nearest weight of norm at most ``radius``, restart data, and steps taken."""


@dataclass(frozen=True)
class LayerNorms:
    """Says that the constraint is one spectral-norm ball per layer (``layer_norms.py``).

    Attributes:
        balls: of the layers, in order; none says that all are dense.
        gain: product of the norms of what stands between them: pools, steepest slopes.
        image: shape of one input, where there are convolutions.
    """

    balls: tuple[LayerBall, ...] = ()
    gain: float = 1.0
    image: tuple[int, ...] | None = None


Activations = tuple[Slopes, ...] | LayerNorms


@dataclass(frozen=True, eq=False)
class Terms:
    """The constraint of a run.

    Attributes:
        asked: the bound, or the price of L.
        slopes: of the hidden layers' activations, or that they sort pairs.
        config: of the algorithm.
        metric: which matrices the bound is about.
    """

    asked: Lipschitz
    slopes: Activations
    config: AdmmConfig
    metric: Metric = PLAIN
