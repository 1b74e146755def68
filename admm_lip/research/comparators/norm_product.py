"""What the methods that follow the layers' spectral norms share: the vectors, and the bound.

One power iteration runs beside each ``Linear`` while training (:mod:`.spectral`); afterwards the
product of the exact norms is the method's own bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ...training.method import Method, check_at_least
from .spectral import drop_vectors, linears, product_bound, start_vectors


@dataclass(frozen=True)
class NormProduct(Method):
    """A method that keeps a running estimate of every layer's norm.

    Args:
        iterations: power iterations per step.
    """

    iterations: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, iterations=self.iterations)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Start the layers' power iterations."""
        start_vectors(linears(model))
        return model

    def finish(self, model: nn.Module) -> nn.Module:
        """The same module without the power-iteration vectors."""
        drop_vectors(model)
        return model

    def lipschitz(self, model: nn.Module) -> float:
        """The product of the spectral norms of all layers."""
        return product_bound(model)
