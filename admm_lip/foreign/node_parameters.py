"""The parameters of one node, read with their types checked: a file may hold anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NetworkError, UnsupportedModule
from ..networks.layers import Shape

# Shapes have few entries, and a folded constant is a shape.
_MAX_LIST = 1024


@dataclass(frozen=True)
class ChainValue:
    """The value that the chain has at some node; ``shape`` is without the batch."""

    shape: Shape


@dataclass(frozen=True, eq=False)
class Call:
    """A node's label (for messages), its name and parameters, the batch size if it is fixed.

    ``number_type`` is the NumPy type that plain numbers are computed with, ``outputs`` how many
    values the node makes.
    """

    label: str
    name: str
    parameters: Mapping[str, Any]
    batch: int | None
    number_type: Any = np.float64
    outputs: int = 1

    def __getitem__(self, key: str) -> Any:
        return self.parameters[key]

    def array(self, key: str) -> npt.NDArray[Any]:
        """A constant of floating-point numbers; a plain number becomes an array of no axes."""
        value = self[key]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return self._scalar(float(value))
        if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype != np.bool_:
            return self._scalar(float(value))
        if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.floating):
            raise UnsupportedModule(
                f"{self.label}: {key}: expected a constant of floating-point numbers, "
                f"got {_kind(value)}"
            )
        return value

    def _scalar(self, value: float) -> npt.NDArray[Any]:
        with np.errstate(over="ignore"):
            return np.array(value, dtype=self.number_type)

    def number(self, key: str) -> float:
        """One finite number as it is stored, from a plain number or an array of one entry."""
        value = self[key]
        if isinstance(value, np.ndarray | np.generic) and value.size == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.unexpected(key, "a constant number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.unexpected(key, "a finite number")
        return number

    def integers(self, key: str) -> list[int]:
        """A short list of whole numbers, or one, from a list or an array of at most one axis."""
        value = self[key]
        if isinstance(value, np.ndarray) and value.ndim <= 1:
            value = value.reshape(-1)[: _MAX_LIST + 1].tolist()
        value = [value] if type(value) is int else value
        if not isinstance(value, list | tuple) or len(value) > _MAX_LIST:
            raise self.unexpected(key, "a short list of whole numbers")
        items = [v.item() if isinstance(v, np.ndarray) and v.size == 1 else v for v in value]
        if not all(type(v) is int for v in items):
            raise self.unexpected(key, "a short list of whole numbers")
        return items

    def integer(self, key: str) -> int:
        """One whole number."""
        value = self[key]
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        if type(value) is not int:
            raise self.unexpected(key, "a whole number")
        return value

    def flag(self, key: str) -> bool:
        """A truth value; 0 and 1 count."""
        value = self[key]
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        if value not in (0, 1) or isinstance(value, float):
            raise self.unexpected(key, "true or false")
        return bool(value)

    def text(self, key: str) -> str:
        """A piece of text."""
        value = self[key]
        if not isinstance(value, str):
            raise self.unexpected(key, "text")
        return value

    def need(self, key: str, *allowed: Any) -> None:
        """Refuse a parameter that has none of the ``allowed`` values."""
        value = self[key]
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        if isinstance(value, np.ndarray | list | ChainValue) or value not in allowed:
            raise UnsupportedModule(
                f"{self.label}: {key}={value!r:.60} is not handled; only "
                f"{' or '.join(map(repr, allowed))} is"
            )

    def unexpected(self, key: str, what: str) -> NetworkError:
        """The error that ``key`` is not ``what``."""
        return NetworkError(f"{self.label}: {key}: expected {what}, got {_kind(self[key])}")


def _kind(value: Any) -> str:
    if isinstance(value, ChainValue):
        return "a value that depends on the input"
    if isinstance(value, np.ndarray) and value.size > 1:
        return f"an array of {value.dtype} of shape {value.shape}"
    return f"{value!r:.60}"
