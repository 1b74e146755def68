"""Losses by name, each a function ``loss(outputs, targets, lip) -> scalar tensor``.

``lip`` is the Lipschitz bound of the round, which only the margin loss uses.  A plain torch loss
``loss(outputs, targets)`` becomes one of these through :func:`resolve_loss`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

BoundedLoss = Callable[[Tensor, Tensor, float], Tensor]
PlainLoss = Callable[[Tensor, Tensor], Tensor]

# Certified radius that the margin loss asks for beyond eps, as a share of eps, and a temperature.
SPARE = 0.25


def cross_entropy(outputs: Tensor, targets: Tensor, lip: float) -> Tensor:
    """Mean cross-entropy of logits ``(batch, classes)`` and integer targets ``(batch,)``."""
    return functional.cross_entropy(outputs, targets)


def squared_error(outputs: Tensor, targets: Tensor, lip: float) -> Tensor:
    """Mean squared error; targets ``(batch,)`` are compared with outputs ``(batch, 1)``."""
    return functional.mse_loss(outputs, targets.reshape(outputs.shape).to(outputs.dtype))


def margin_loss(eps: float, temperature: float) -> BoundedLoss:
    """Cross-entropy that asks for a certified radius of somewhat more than ``eps``.

    With L the bound, ``tau = temperature L`` and ``e_y`` the one-hot target::

        loss = tau / L * CE((f(x) - sqrt(2) r L e_y) / tau, y)
        r = eps + min(eps, eps / 4 + temperature)

    A margin of ``sqrt(2) r L`` certifies radius r (Tsuzuku et al., 2018).  What is asked to spare
    keeps the rows just short of eps on the steep side of the loss, which is ``temperature`` wide in
    units of the radius; asking for more makes every row count alike, and both the clean and the
    certified accuracy fall (at eps 1.58 on MNIST by 2.5 and 1.5 per cent for ``r = 2 eps``).
    Divided by L, so the loss does not change when f and L are scaled together.

    Args:
        eps: radius to certify, in input units, l2.
        temperature: of the softmax, as a share of L; so it is in input units too.
    """
    radius = eps + min(eps, SPARE * eps + temperature)

    def loss(outputs: Tensor, targets: Tensor, lip: float) -> Tensor:
        tau = temperature * lip
        own = torch.arange(outputs.shape[1], device=outputs.device) == targets[:, None]
        offset = math.sqrt(2.0) * radius * lip / tau * own.to(outputs.dtype)
        return temperature * functional.cross_entropy(outputs / tau - offset, targets)

    return loss


# name -> (needs class labels, factory(eps, temperature))
LOSSES: dict[str, tuple[bool, Callable[[float, float], BoundedLoss]]] = {
    "cross_entropy": (True, lambda eps, temperature: cross_entropy),
    "margin": (True, margin_loss),
    "squared_error": (False, lambda eps, temperature: squared_error),
}


def check_loss(loss: Any) -> None:
    """Raise unless ``loss`` is a name in ``LOSSES``, ``"auto"``, or callable as a loss.

    Raises:
        ValueError: for an unknown name.
        TypeError: for what is no function of outputs and targets.
    """
    if isinstance(loss, str):
        if loss != "auto" and loss not in LOSSES:
            names = ", ".join(("auto", *LOSSES))
            raise ValueError(f"loss: expected one of {names} or a callable, got {loss!r}")
        return
    if not callable(loss):
        raise TypeError(
            f"loss: expected a name or a callable, got {type(loss).__name__}; names are "
            f"{', '.join(('auto', *LOSSES))}"
        )
    called = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # some built-in functions do not tell
        return
    try:
        signature.bind(None, None)
    except TypeError:
        raise TypeError(
            f"loss: expected a function loss(outputs, targets), got one of {signature}; fix the "
            "other arguments, for instance by functools.partial"
        ) from None


def wants_labels(loss: Any) -> bool | None:
    """Whether a named loss takes class labels; ``None`` where the targets' type decides."""
    row = LOSSES.get(loss) if isinstance(loss, str) else None
    return None if row is None else row[0]


def checked_value(value: Any) -> Tensor:
    """What a loss returned, where it can be minimised.

    Raises:
        TypeError, ValueError: naming the loss, for what is no differentiable scalar tensor.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"loss: expected a scalar tensor of floats, got {got}; compute it from the outputs by "
            "torch, and return it"
        )
    if value.numel() != 1:
        raise ValueError(
            f"loss: expected a scalar, got a tensor of shape {tuple(value.shape)}; return its "
            ".mean() over the batch"
        )
    if not value.requires_grad:
        raise ValueError(
            "loss: expected a value with a gradient, got a detached tensor; compute it from the "
            "outputs without .detach(), .item(), .numpy() or torch.no_grad()"
        )
    return value if value.ndim == 0 else value.reshape(())


def named_loss(name: str, eps: float, temperature: float) -> BoundedLoss:
    """The loss of that name from the table ``LOSSES``.

    Raises:
        ValueError: for a name that is not in the table.
    """
    row = LOSSES.get(name)
    if row is None:
        raise ValueError(f"loss: expected one of {', '.join(LOSSES)} or a callable, got {name!r}")
    return row[1](eps, temperature)


def resolve_loss(loss: Any, targets: Tensor, eps: float, temperature: float) -> BoundedLoss:
    """A bounded loss from a name, ``"auto"`` (by the targets' type), or a torch loss.

    Args:
        loss: a name in ``LOSSES``, ``"auto"``, or any callable ``loss(outputs, targets)``.
        targets: a sample of the targets: integers mean classes, floats mean regression.
        eps: radius for the margin loss.
        temperature: of the margin loss.

    Raises:
        ValueError: for an unknown name, or a class loss on targets that are not integers.
        TypeError: when ``loss`` is neither a name nor callable.
    """
    check_loss(loss)
    if isinstance(loss, str):
        integer = not targets.is_floating_point()
        name = ("cross_entropy" if integer else "squared_error") if loss == "auto" else loss
        bounded = named_loss(name, eps, temperature)
        if LOSSES[name][0] and not integer:
            raise ValueError(
                f"loss: {name!r} needs integer class labels, got targets of type {targets.dtype}; "
                "use loss='squared_error' for regression"
            )
        return bounded
    plain: PlainLoss = loss

    def own(outputs: Tensor, targets: Tensor, lip: float) -> Tensor:
        try:
            return plain(outputs, targets)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(
                f"loss: expected a value for outputs {tuple(outputs.shape)}, {outputs.dtype}, and "
                f"targets {tuple(targets.shape)}, {targets.dtype}, got {type(error).__name__}: "
                f"{error}; integers are read as class labels, give floats where it takes numbers"
            ) from error

    return own
