"""Orthogonal layers by the Cayley transform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .layerwise import LayerwiseParametrization


@dataclass(frozen=True)
class Cayley(LayerwiseParametrization):
    """Every weight a multiple of a matrix with orthonormal rows or columns."""

    name: ClassVar[str] = "cayley"
    source: ClassVar[str] = "A. Trockman, J. Z. Kolter, ICLR 2021"

    def parametrization(self, layer: nn.Linear, cap: float) -> nn.Module:
        """``cap * cayley(gain * V / ||V||_F)``, gain learned, as in the paper's code."""
        return _CayleyWeight(layer.weight, cap)


class _CayleyWeight(nn.Module):
    """The map from free parameters to a scaled semi-orthogonal weight."""

    def __init__(self, weight: Tensor, cap: float) -> None:
        super().__init__()
        self.cap = cap
        self.gain = nn.Parameter(weight.detach().norm())

    def forward(self, free: Tensor) -> Tensor:
        return self.cap * cayley(normalised(free, self.gain))


def normalised(free: Tensor, gain: Tensor) -> Tensor:
    """``gain * free / ||free||_F``: direction and size learned apart."""
    size: Tensor = free.norm()
    return free * (gain / size.clamp_min(1e-12))


def cayley(free: Tensor) -> Tensor:
    """The semi-orthogonal matrix of free parameters, shape kept.

    For ``free = [U; V]`` with U square (a wide matrix is transposed first)::

        A = U - U' + V'V,      Q = [ (I + A)^{-1} (I - A) ;  -2 V (I + A)^{-1} ],      Q'Q = I.

    ``(I - A)(I + A)^{-1} = 2 (I + A)^{-1} - I``, so one solve gives both parts.  The symmetric part
    of I + A is at least I: the solve is never near singular.
    """
    if free.shape[0] < free.shape[1]:
        return cayley(free.T).T
    size = free.shape[1]
    u, v = free[:size], free[size:]
    eye = torch.eye(size, dtype=free.dtype, device=free.device)
    a = u - u.T + v.T @ v
    solved: Tensor = torch.linalg.solve(eye + a, torch.cat([2.0 * eye, -2.0 * v]), left=False)
    return torch.cat([solved[:size] - eye, solved[size:]])
