"""Activations that the package does not know, by the slopes that a user promises for them.

A promise holds for one class of modules, not for those derived from it, or for one function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from .activation_row import SlopeRange


@dataclass(frozen=True)
class Promise:
    """What is promised: ``phi``, under this name, has difference quotients in ``slopes``."""

    name: str
    slopes: SlopeRange

    @property
    def options(self) -> dict[str, Any]:
        """As a row of the table keeps it."""
        return {"name": self.name, "alpha": self.slopes.alpha, "beta": self.slopes.beta}


# By class or function.
PROMISES: dict[Any, Promise] = {}


class PromisedFunction(nn.Module):
    """A promised function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """What the function gives."""
        return self.function(x)


def promise_of(what: Any) -> Promise | None:
    """The promise for a class, or for a function."""
    return PROMISES.get(what)


def promise_in(module: nn.Module) -> Promise | None:
    """The promise for what a module computes."""
    if isinstance(module, PromisedFunction):
        return promise_of(module.function)
    return promise_of(type(module))


def promised_functions() -> tuple[Callable[..., Any], ...]:
    """The functions written in Python, which are not to be looked into."""
    return tuple(key for key in PROMISES if isinstance(key, FunctionType))
