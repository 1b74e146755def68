"""How data are read, and the error when they cannot be.  No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["classification", "regression"]
# One column or several, by name or number; as text several are separated by commas.
Columns = str | int | tuple[str | int, ...] | None


class DataError(ValueError):
    """A data set is missing, malformed, or not what its task needs; says what to do next."""


@dataclass(frozen=True)
class TableOptions:
    """How a CSV file is read.

    Args:
        target: name of the target column, or its number counted from 0; several for a regression
            with several outputs, separated by commas; ``None``: the last one.
        drop: columns that are no features, such as a row number, in the same way; ``None``: none.
        task: ``regression``, or ``classification`` (labels may then be words).
        test_fraction: share of the rows drawn for testing.
        seed: seed of that draw.
    """

    target: Columns = None
    drop: Columns = None
    task: Task = "regression"
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("target", "drop"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 0.0 < self.test_fraction < 1.0:
            raise DataError(
                f"test_fraction: expected a number in (0, 1), got {self.test_fraction!r}"
            )
