"""The rules that settings obey, one row per rule, checked when a configuration is made.

A boolean is no number here: ``epochs=True`` is a mistake, not one epoch.  NumPy's numbers are
stored as Python's, so that equal settings have equal digests.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

_KINDS: dict[type, type] = {int: numbers.Integral, float: numbers.Real, bool: bool}


@dataclass(frozen=True)
class Rule:
    """What a value must be.

    Attributes:
        expected: in words, for the error.
        holds: whether a number (``kind``) is admitted.
        kind: ``int``, ``float`` or ``bool``.
        optional: whether ``None`` is admitted too.
        several: whether it is a row of such numbers.
    """

    expected: str
    holds: Callable[[Any], bool]
    kind: type[int] | type[float] | type[bool] = float
    optional: bool = False
    several: bool = False

    def or_none(self) -> Rule:
        """The same, and ``None``."""
        return replace(self, expected=f"{self.expected} or None", optional=True)

    def each(self) -> Rule:
        """A list or tuple, every entry by this rule."""
        return replace(self, several=True)

    def read(self, name: str, value: Any) -> Any:
        """The value as a Python number.

        Raises:
            ValueError: naming it.
        """
        if value is None and self.optional:
            return None
        if self.several:
            if not isinstance(value, list | tuple):
                raise ValueError(f"{name}: expected a list, each {self.expected}, got {value!r}")
            one = replace(self, several=False)
            return tuple(one.read(f"{name}[{k}]", entry) for k, entry in enumerate(value))
        good = isinstance(value, _KINDS[self.kind]) and (
            self.kind is bool or not isinstance(value, bool)
        )
        if not good or not self.holds(value):
            raise ValueError(f"{name}: expected {self.expected}, got {value!r}")
        return self.kind(value)


# Bounds and penalties far outside the scale of any weight square to numbers that a double cannot
# hold: inside this range training, the projection and the proof all work (tests/training).
LEAST, MOST = 1e-30, 1e30

COUNT = Rule("a whole number >= 1", lambda v: v >= 1, int)
SEED = Rule("a whole number from 0 to 2**63 - 1", lambda v: 0 <= v < 2**63, int)
POSITIVE = Rule("a finite number > 0", lambda v: 0.0 < v < math.inf)
NOT_NEGATIVE = Rule("a finite number >= 0", lambda v: 0.0 <= v < math.inf)
SHARE = Rule("a number in [0, 1]", lambda v: 0.0 <= v <= 1.0)
FLAG = Rule("True or False", lambda v: True, bool)
BOUND = Rule(f"a number from {LEAST:g} to {MOST:g}", lambda v: LEAST <= v <= MOST)


def check_settings(config: Any, **rules: Rule) -> None:
    """Hold the fields of a frozen dataclass to their rules, and store them as Python numbers.

    Raises:
        ValueError: naming the field, what was expected and what came.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Config:
        ...     epochs: int = 3
        ...     def __post_init__(self):
        ...         check_settings(self, epochs=COUNT)
        >>> Config(epochs=True)
        Traceback (most recent call last):
            ...
        ValueError: epochs: expected a whole number >= 1, got True
    """
    for name, rule in rules.items():
        object.__setattr__(config, name, rule.read(name, getattr(config, name)))
