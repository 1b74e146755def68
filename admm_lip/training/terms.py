"""What stays the same from round to round: what is asked, of which matrices, and how it is kept."""

from __future__ import annotations

from dataclasses import dataclass

from ..lipschitz import Lipschitz
from ..solvers import Slopes
from .config import AdmmConfig
from .metric import PLAIN, Metric


@dataclass(frozen=True)
class LayerNorms:
    """Says that the constraint is one spectral-norm ball per layer (``layer_norms.py``)."""


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
