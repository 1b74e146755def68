"""The door for activations of the user's own: their slopes, promised."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from torch import Tensor, nn

from ..errors import shown
from .activation_formulas import PROMISED_NAME
from .activation_row import SlopeRange
from .functional_calls import ARITHMETIC, FUNCTIONS
from .promises import PROMISES, Promise
from .readers import row_of


def register_activation(
    what: type[nn.Module] | Callable[[Tensor], Tensor],
    slopes: tuple[float, float],
    name: str | None = None,
) -> None:
    """Promise the slopes of an activation, so that networks with it can be certified.

    For the activation ``phi``, one function of every entry by itself, you promise

        alpha <= (phi(u) - phi(v)) / (u - v) <= beta        for all u != v.

    A bound certified with it holds for every function that keeps this promise; the package looks
    at some thousand points when a network is read and refuses a promise that is broken there, but
    it proves nothing of ``phi``: ``certificate.reported()`` and ``verify`` name what is promised.

    Certificates for all inputs (``certify`` of every kind, ``verify``, saving and loading) work
    with it.  What evaluates ``phi`` is refused by name: local certificates, radii, predictions
    from files, the exact check, export as ONNX, and training.

    Args:
        what: a class of modules (classes derived from it are others, with promises of their own),
            or a function of one tensor that a ``forward`` calls by a global name without a leading
            underscore.
        slopes: ``(alpha, beta)``, finite, ``alpha < beta``.
        name: under which files and certificates know it, the qualified name where not given.
            Networks with activations of different names are different networks; what the module
            holds (its parameters) makes no difference, since the promise is for all it may hold.

    Raises:
        TypeError: where ``what`` is neither, or ``slopes`` are not two numbers.
        ValueError: for an interval that is reversed, empty or not finite, an activation of which
            the package knows the slopes itself, or one that was registered otherwise before.

    Example:
        >>> import torch
        >>> from admm_lip import certify, register_activation, verify
        >>> class Knee(torch.nn.Module):  # slopes in [1/2, 1]
        ...     def forward(self, x):
        ...         return 0.75 * x + 0.25 * torch.sqrt(1 + x * x)
        >>> register_activation(Knee, slopes=(0.5, 1.0))
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 5), Knee(), torch.nn.Linear(5, 2))
        >>> certificate = certify(model)
        >>> verify(certificate, model)
        >>> certificate.reported()["promised"]
        {'Knee': (0.5, 1.0)}
    """
    _check_kind(what)
    promise = Promise(_name_of(what, name), _checked(slopes))
    known = PROMISES.get(what)
    if known is not None and known != promise:
        raise ValueError(
            f"{promise.name}: is registered already, as {known.name!r} with slopes "
            f"{tuple(known.slopes)}; got {tuple(promise.slopes)}"
        )
    for other, held in PROMISES.items():
        if held.name == promise.name and _home(other) != _home(what):
            raise ValueError(
                f"name: {promise.name!r} stands for {'.'.join(_home(other))} already; give another"
            )
    PROMISES[what] = promise


def _check_kind(what: Any) -> None:
    """Raise unless ``what`` is a class or a function of which no table knows the slopes."""
    if isinstance(what, type) and issubclass(what, nn.Module):
        known = row_of(what) is not None
    elif inspect.isroutine(what):
        known = what in FUNCTIONS or what in ARITHMETIC
    else:
        raise TypeError(
            f"what: expected a class of torch.nn.Module or a function, got {shown(what)}"
        )
    if known:
        raise ValueError(
            f"what: {what.__name__} is known already, and read with slopes of its own; leave the "
            "registration out"
        )


def _checked(slopes: Any) -> SlopeRange:
    """The interval, as two floats."""
    pair = tuple(slopes) if isinstance(slopes, tuple | list) else ()
    numbers = [isinstance(end, Real) and not isinstance(end, bool) for end in pair]
    if numbers != [True, True]:
        raise TypeError(f"slopes: expected two numbers (alpha, beta), got {shown(slopes)}")
    alpha, beta = map(float, pair)
    if not (math.isfinite(alpha) and math.isfinite(beta)):
        raise ValueError(f"slopes: expected finite numbers, got {shown(slopes)}")
    if not alpha < beta:
        hint = "; swap them" if alpha > beta else "; a function of one slope is a linear layer"
        raise ValueError(f"slopes: expected alpha < beta, got {shown(slopes)}{hint}")
    return SlopeRange(alpha, beta)


def _name_of(what: Any, given: str | None) -> str:
    name = _home(what)[1] if given is None else given
    if (
        not isinstance(name, str)
        or PROMISED_NAME.fullmatch(name) is None
        or name.endswith("<lambda>")
    ):
        raise ValueError(
            f"name: expected letters, digits, '_', '.', '<' and '>', at most 200, of the function "
            f"alone, got {shown(name)}; give name="
        )
    return name


def _home(what: Any) -> tuple[str, str]:
    """Where it is defined: a cell that runs again defines the same class again."""
    name = getattr(what, "__qualname__", None) or getattr(what, "__name__", "")
    return str(getattr(what, "__module__", None)), str(name)
