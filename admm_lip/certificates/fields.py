"""Checks of a record's fields: each returns the value as the record keeps it, or names the field.

Every record with a claim (certificates of all kinds, local ones, reports of samples) is checked
with these, on construction and so on reading, too.  No torch is imported here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any

from ..errors import CertificateError
from ..errors import shown as shown
from ..networks.layers import Shape

_LARGEST = sys.float_info.max


def keep(record: object, **values: Any) -> None:
    """Put checked values into a frozen record, from its ``__post_init__``."""
    for name, value in values.items():
        object.__setattr__(record, name, value)


def number_of(name: str, value: Any, least: float = -_LARGEST) -> float:
    """A finite number >= ``least`` as a float.

    Raises:
        CertificateError: naming the field, for anything else; a bool is no number.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Comparisons, because math.isfinite fails on integers beyond the floats.
    if not is_number or not least <= value <= _LARGEST:
        above = f" >= {least:g}" if least > -_LARGEST else ""
        raise CertificateError(f"{name}: expected a finite number{above}, got {shown(value)}")
    return float(value) + 0.0  # minus zero is zero


def numbers_of(name: str, values: Any, least: float = -_LARGEST) -> tuple[float, ...]:
    """A tuple of such numbers."""
    if not isinstance(values, tuple):
        raise CertificateError(f"{name}: expected a tuple, got {shown(values)}")
    return tuple(number_of(f"{name}[{i}]", value, least) for i, value in enumerate(values))


def multiplier_of(name: str, multiplier: Any) -> tuple[tuple[float, ...], ...]:
    """A tuple of numbers >= 0 per layer."""
    if not isinstance(multiplier, tuple):
        raise CertificateError(f"{name}: expected a tuple per layer, got {shown(multiplier)}")
    return tuple(numbers_of(f"{name}[{k}]", t, least=0.0) for k, t in enumerate(multiplier))


def sizes_of(name: str, values: Any) -> Shape:
    """Whole numbers > 0, at least one: a shape."""
    whole = isinstance(values, tuple) and all(type(n) is int and n > 0 for n in values)
    if not whole or not values or math.prod(values) > sys.maxsize:
        raise CertificateError(f"{name}: expected sizes > 0, got {shown(values)}")
    return tuple(values)


def whole_of(name: str, value: Any, least: int, most: int) -> int:
    """A whole number in a range."""
    if type(value) is not int or not least <= value <= most:
        raise CertificateError(
            f"{name}: expected a whole number from {least} to {most}, got {shown(value)}"
        )
    return value


def text_of(name: str, value: Any) -> str:
    """Text."""
    if not isinstance(value, str):
        raise CertificateError(f"{name}: expected text, got {shown(value)}")
    return value


def one_of(name: str, value: Any, names: Iterable[str]) -> str:
    """One of the names."""
    if not isinstance(value, str) or value not in names:
        raise CertificateError(f"{name}: expected one of {', '.join(names)}, got {shown(value)}")
    return value


def tuple_of(name: str, values: Any) -> tuple[Any, ...]:
    """A JSON list as a tuple."""
    if not isinstance(values, list):
        raise CertificateError(f"{name}: expected a list, got {shown(values)}")
    return tuple(values)


def tuples_of(name: str, values: Any) -> tuple[tuple[Any, ...], ...]:
    """A JSON list of lists as tuples: a multiplier."""
    lists = tuple_of(name, values)
    if not all(isinstance(t, list) for t in lists):
        raise CertificateError(f"{name}: expected a list of numbers per hidden layer")
    return tuple(tuple(t) for t in lists)
