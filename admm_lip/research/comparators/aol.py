"""Almost-orthogonal layers: columns rescaled until the norm is at most 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from .layerwise import LayerwiseParametrization


@dataclass(frozen=True)
class AlmostOrthogonal(LayerwiseParametrization):
    """Every weight a rescaled free matrix of norm at most its cap."""

    name: ClassVar[str] = "aol"
    source: ClassVar[str] = "B. Prach, C. H. Lampert, ECCV 2022, theorem 1"

    def parametrization(self, layer: nn.Linear, cap: float) -> nn.Module:
        """``cap * almost_orthogonal(P)``."""
        return _AolWeight(cap)


class _AolWeight(nn.Module):
    """The map from free parameters to a rescaled weight."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, free: Tensor) -> Tensor:
        return self.cap * almost_orthogonal(free)


def almost_orthogonal(free: Tensor) -> Tensor:
    """``P D`` with ``D = diag(sum_j |P'P|_ij)^{-1/2}``: norm at most 1, by diagonal dominance.

    The theorem holds for P' too.  A wide matrix is rescaled on its rows, where the Gram matrix is
    the smaller one; zero rows or columns stay zero.
    """
    if free.shape[0] < free.shape[1]:
        return almost_orthogonal(free.T).T
    sums = (free.T @ free).abs().sum(dim=1)
    return free * sums.clamp_min(1e-30).rsqrt()
