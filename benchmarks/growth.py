"""Lines through measured costs: a power of the size; a fixed part and a known power of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls


class Power(NamedTuple):
    """``factor size^power``: seconds, from the larger half of an axis on."""

    factor: float
    power: float

    def at(self, size: float) -> float:
        """The value there."""
        return float(self.factor * size**self.power)

    @staticmethod
    def through(sizes: Sequence[float], values: Sequence[float]) -> Power:
        """Least squares in logarithms, of the larger half, two points at least."""
        used = slice(-max(2, (len(sizes) + 1) // 2), None)
        power, log = np.polyfit(np.log(sizes[used]), np.log(values[used]), 1)
        return Power(float(np.exp(log)), float(power))


class Fixed(NamedTuple):
    """``fixed + slope size^power``: memory, the power known from what is held.

    Example:
        >>> found = Fixed.through([1, 2, 4], [3.0, 6.0, 18.0], 2.0)
        >>> round(found.fixed, 9), round(found.slope, 9), round(found.size_at(102.0), 9)
        (2.0, 1.0, 10.0)
    """

    fixed: float
    slope: float
    power: float

    @staticmethod
    def through(sizes: Sequence[float], values: Sequence[float], power: float) -> Fixed:
        """Least squares, both parts at least 0."""
        columns = np.stack([np.ones(len(sizes)), np.asarray(sizes, float) ** power], axis=1)
        (fixed, slope), _ = nnls(columns, np.asarray(values, float))
        return Fixed(float(fixed), float(slope), power)

    def size_at(self, value: float) -> float | None:
        """The size that reaches a value; ``None`` where nothing grows, or it is below them all."""
        if self.slope <= 0.0 or value <= self.fixed or not self.power:
            return None
        return float(((value - self.fixed) / self.slope) ** (1.0 / self.power))
