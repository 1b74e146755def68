"""The stated range of the data: which inputs are admissible at all."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def check_range(data_range: Any) -> tuple[float, float]:
    """The range as two floats.

    Raises:
        ValueError: unless it is two finite ends, the lower first.
    """
    ends = tuple(float(end) for end in data_range)
    if len(ends) != 2 or not -math.inf < ends[0] < ends[1] < math.inf:
        raise ValueError(
            f"data_range: expected two finite ends, the lower first, got {data_range!r}"
        )
    return ends[0], ends[1]


def check_inside(x: Tensor, data_range: tuple[float, float] | None) -> None:
    """Raise ``ValueError`` where an input leaves the stated range."""
    if data_range is None or not len(x):
        return
    low, high = float(x.min()), float(x.max())
    if not data_range[0] <= low <= high <= data_range[1]:
        raise ValueError(
            f"x: expected inputs in the stated data_range {data_range}, got values from {low:g} to "
            f"{high:g}; state the range of the data as they are fed to the network"
        )
