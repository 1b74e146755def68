"""Training methods other than ADMM, by name, each from its paper's formulas.

A method is a frozen dataclass with hooks around one training loop
(:func:`admm_lip.train` without ``bound`` and ``mu``); its fields are its settings.

Example:
    >>> from admm_lip.research.comparators import METHODS
    >>> METHODS["gouk"](bound=2.0).p
    2.0
"""

from __future__ import annotations

from ...training.method import Method
from .adversarial import FastGradient, ProjectedGradient
from .aol import AlmostOrthogonal
from .barrier import Barrier
from .cayley import Cayley
from .gouk import LayerwiseProjection
from .gradient import InputGradient
from .lmt import LipschitzMargin
from .local import LocalLipschitz
from .nominal import Nominal
from .parseval import Parseval
from .product_margin import ProductMargin
from .sandwich import Sandwich
from .sll import Sll
from .spectral_penalty import SpectralPenalty
from .torchlip import Torchlip
from .trades import Trades
from .weight_decay import WeightDecay

__all__ = ["METHODS", "Method"]

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Nominal,
        WeightDecay,
        LipschitzMargin,
        LayerwiseProjection,
        Parseval,
        SpectralPenalty,
        ProductMargin,
        FastGradient,
        ProjectedGradient,
        Trades,
        InputGradient,
        Cayley,
        AlmostOrthogonal,
        Sll,
        Sandwich,
        Barrier,
        Torchlip,
        LocalLipschitz,
    )
}
