"""Adam (D. Kingma, J. Ba, 2015) on rows of parameters that come and go."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..float64 import TINY

_BETAS = 0.9, 0.99


class Moments(NamedTuple):
    """Running means of the gradients, and of their squares, and the steps made, row by row."""

    first: Tensor
    second: Tensor
    steps: Tensor

    @staticmethod
    def none(like: Tensor) -> Moments:
        """Before the first step, of parameters ``(rows, 1, n)``."""
        return Moments(
            torch.zeros_like(like), torch.zeros_like(like), torch.zeros_like(like[..., :1])
        )

    def after(self, gradient: Tensor) -> Moments:
        """With one gradient more; what is not finite counts as 0."""
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        first = torch.lerp(gradient, self.first, _BETAS[0])
        return Moments(
            first, torch.lerp(gradient.square(), self.second, _BETAS[1]), self.steps + 1.0
        )

    def move(self) -> Tensor:
        """The step upwards, at a rate of 1."""
        mean = self.first / (1.0 - _BETAS[0] ** self.steps)
        return mean / ((self.second / (1.0 - _BETAS[1] ** self.steps)).sqrt() + TINY)

    def select(self, rows: Tensor) -> Moments:
        """Those of some of the rows."""
        return Moments(*(part[rows] for part in self))
