"""How data are read, and the error when they cannot be.  No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["classification", "regression"]


class DataError(ValueError):
    """A data set is missing, malformed, or not what its task needs; says what to do next."""


@dataclass(frozen=True)
class TableOptions:
    """How a CSV file is read.

    Args:
        target: name of the target column, or its number counted from 0; ``None``: the last one.
        task: ``regression``, or ``classification`` (labels may then be words).
        test_fraction: share of the rows drawn for testing.
        seed: seed of that draw.
    """

    target: str | int | None = None
    task: Task = "regression"
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.test_fraction < 1.0:
            raise DataError(
                f"test_fraction: expected a number in (0, 1), got {self.test_fraction!r}"
            )
