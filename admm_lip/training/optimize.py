"""Torch optimizers and step-size schedules by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

OptimizerFactory = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]


def _adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    parameters = list(parameters)
    # The fused kernel is the same update with less Python; it wants floating CPU or CUDA tensors.
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.Adam(parameters, lr=lr, fused=fused)


OPTIMIZERS: dict[str, OptimizerFactory] = {
    "adam": _adam,
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr),
    "nadam": lambda parameters, lr: torch.optim.NAdam(parameters, lr=lr),
    "rmsprop": lambda parameters, lr: torch.optim.RMSprop(parameters, lr=lr),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
    "momentum": lambda parameters, lr: torch.optim.SGD(
        parameters, lr=lr, momentum=0.9, nesterov=True
    ),
    "lbfgs": lambda parameters, lr: torch.optim.LBFGS(parameters, lr=lr),
}


# These take one step along the gradient; what their closure returns they hand through unread.
_ONE_STEP = (
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RMSprop,
    torch.optim.SGD,
)


def reads_value(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer may use the objective's value (a line search), not only its slope."""
    return type(optimizer) not in _ONE_STEP


def make_optimizer(
    name: str | OptimizerFactory, parameters: Iterable[nn.Parameter], lr: float
) -> torch.optim.Optimizer:
    """The optimizer of that name, or what ``name(parameters, lr)`` returns.

    Raises:
        ValueError: for a name that is not in ``OPTIMIZERS``.
    """
    if callable(name):
        return name(parameters, lr)
    factory = OPTIMIZERS.get(name)
    if factory is None:
        raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {name!r}")
    return factory(parameters, lr)


def _hold_then_decay(progress: float) -> float:
    """1 up to 40 % of the run, linear to 1/20 at 80 %, then linear to 1/400 at the end."""
    if progress < 0.4:
        return 1.0
    if progress < 0.8:
        return 1.0 + (progress - 0.4) / 0.4 * (1 / 20 - 1.0)
    return 1 / 20 + (progress - 0.8) / 0.2 * (1 / 400 - 1 / 20)


def _hold_then_exponential(progress: float) -> float:
    """1 up to 55 % of the run, then exponentially down to 1/200."""
    return float(200.0 ** -(max(0.0, progress - 0.55) / 0.45))


def _hold_then_linear(progress: float) -> float:
    """1 up to 40 % of the run, then linear to 1/400 at the end."""
    return 1.0 if progress < 0.4 else 1.0 + (progress - 0.4) / 0.6 * (1 / 400 - 1.0)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "hold_then_decay": _hold_then_decay,
    "hold_then_linear": _hold_then_linear,
    "hold_then_exponential": _hold_then_exponential,
    "constant": lambda progress: 1.0,
}


def schedule_of(schedule: str | Callable[[float], float]) -> Callable[[float], float]:
    """The schedule of that name, or a function of the share of the run that is done as it is.

    Raises:
        ValueError: for a name that is not in ``SCHEDULES``.
    """
    if callable(schedule):
        return schedule
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")
    return SCHEDULES[schedule]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the step size of every parameter group."""
    group: dict[str, Any]
    for group in optimizer.param_groups:
        group["lr"] = lr
