"""Derivatives of the barrier, as they add up over parts of the frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...networks.layers import Array
from .barrier import Second


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Of ``log det F - (1 - eta) log det A`` by relative changes of the multipliers and of s.

    Attributes:
        gradient: of the multipliers.
        power: ``s E |y|^2``, minus the derivative by s, of F alone.
        hessian: minus the second derivatives, s last.
    """

    gradient: Array
    power: float
    hessian: Array


class Sums:
    """Blocks by activation; what is below the diagonal is filled in at the end."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.ends = np.cumsum([0, *sizes])
        n = int(self.ends[-1])
        self.gradient, self.hessian, self.power = np.zeros(n), np.zeros((n + 1, n + 1)), 0.0

    def _of(self, k: int) -> slice:
        return slice(self.ends[k], self.ends[k + 1])

    def add(self, part: Second, first: int) -> None:
        """What one part gives."""
        for k, (slope, row) in enumerate(zip(part.gradient, part.hessian, strict=True)):
            self.gradient[self._of(first + k)] += slope
            for j, block in enumerate(row):
                self.block(first + k, first + k + j, block)

    def block(self, k: int, j: int, block: Array) -> None:
        """A block on or above the diagonal."""
        self.hessian[self._of(k), self._of(j)] += block

    def beside(self, k: int, first: int, block: Array) -> None:
        """A block with all multipliers from an activation on."""
        self.hessian[self._of(k), self.ends[first] : -1] += block

    def cross(self, k: int, column: Array) -> None:
        """With s."""
        self.hessian[self._of(k), -1] += column

    def add_output(self, weights: Array, output: Any) -> None:
        """Of s itself."""
        self.power += float(weights @ np.einsum("fii->f", output).real)
        self.hessian[-1, -1] += float(weights @ (np.abs(output) ** 2).sum(axis=(1, 2)))

    def meet(self, met: Sequence[Array], inner: Array, weight: float) -> None:
        """All pairs of signals of the torus by the head: ``tr B_i lam B_j lam``, weighed."""
        here = [b.reshape(len(b), -1) for b in met]
        around = [weight * (inner @ b @ inner).reshape(len(b), -1) for b in met]
        for k, own in enumerate(around):
            for j in range(k, len(here)):
                self.block(k, j, own @ here[j].T)

    def found(self) -> Derivatives:
        """With the blocks below the diagonal."""
        upper = np.triu(self.hessian)
        return Derivatives(self.gradient, self.power, upper + np.triu(upper, 1).T)
