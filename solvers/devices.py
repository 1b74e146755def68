"""Devices that are not the CPU: whether they know float64, and what to do when one is full."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

Moved = TypeVar("Moved")
Result = TypeVar("Result")
_log = logging.getLogger("admm_lip")


@cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64, in which every bound is kept (Apple's MPS does not).

    Example:
        >>> has_float64(torch.device("cpu"))
        True
    """
    try:
        torch.ones(1, dtype=torch.float64, device=device)
    except TypeError:
        return False
    return True


def float64_home(value: Any) -> torch.device:
    """Where float64 results about ``value`` belong: on its device, if it has them, or the CPU."""
    device = torch.device(getattr(value, "device", "cpu"))
    return device if has_float64(device) else torch.device("cpu")


def device_of(value: Any) -> torch.device:
    """Where the first tensor of a problem is."""
    while not isinstance(value, Tensor):
        value = value[0] if isinstance(value, tuple) else next(iter(vars(value).values()))
    return value.device


def moved(value: Moved, device: torch.device) -> Moved:
    """A problem or a solution with every tensor on a device."""
    found: Any = value
    if isinstance(found, Tensor):
        found = found.to(device)
    elif type(found) is tuple:
        found = tuple(moved(entry, device) for entry in found)
    elif dataclasses.is_dataclass(found) and not isinstance(found, type):
        names = [field.name for field in dataclasses.fields(found) if field.init]
        found = dataclasses.replace(found, **{n: moved(getattr(found, n), device) for n in names})
    return found  # type: ignore[no-any-return]


def with_room(
    work: Callable[[Any, Any], Result], problem: Any, warm: Any, device: str = "cpu"
) -> Result:
    """``work(problem, warm)`` on a device, its result where the problem is.

    ``"cpu"`` is wherever the problem is.  Where the device has not the memory, it is the CPU.

    Raises:
        torch.OutOfMemoryError: where it is the CPU's memory that is full.
    """
    home, cpu = device_of(problem), torch.device("cpu")
    there = home if device == "cpu" else torch.device(device)
    try:
        if there == home:
            return work(problem, warm)
        return moved(work(moved(problem, there), moved(warm, there)), home)
    except torch.OutOfMemoryError:
        if there.type == "cpu":
            raise
    _log.warning("solve: %s is out of memory; this solve is done on the CPU", there)
    return moved(work(moved(problem, cpu), moved(warm, cpu)), home)
