"""What a torch module takes and gives: its dtype, its device, the shape of a row, its outputs.

Seen on the first rows of the data, run in evaluation mode on a copy, before anything is trained,
certified or attacked: what the module cannot take is named then, not by the first step.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.arrays import as_numbers, check_finite

_ROWS = 2


@dataclass(frozen=True)
class Interface:
    """How inputs are handed to a module.

    Attributes:
        dtype: of its parameters.
        device: of its parameters.
        flat: whether rows are flattened first, since its first layer takes them flat.
        outputs: numbers in one row of its output.
    """

    dtype: torch.dtype
    device: torch.device
    flat: bool
    outputs: int

    def inputs(self, name: str, values: Any) -> Tensor:
        """Rows as the module takes them, in its dtype, on the device they came from.

        Raises:
            TypeError, ValueError: naming the argument, for what holds no finite numbers.
        """
        rows = as_rows(name, values)
        check_finite(name, rows)
        cast = rows.to(self.dtype)
        if cast.dtype != rows.dtype:
            check_finite(f"{name} in the model's {self.dtype}", cast)
        return cast.flatten(1) if self.flat else cast


def interface_of(model: nn.Module, name: str, values: Any) -> Interface:
    """The interface of a module, seen on the first of the inputs ``values``.

    Raises:
        ValueError: naming the argument, where the module does not take rows of this shape, or its
            outputs are no rows of numbers.
    """
    rows = as_rows(name, values)[:_ROWS]
    if not len(rows):
        raise ValueError(f"{name}: expected at least one sample, got none")
    first = next(iter(model.parameters()), torch.zeros(0))
    copied = copy.deepcopy(model).eval()
    seen = rows.to(first.device, first.dtype)
    reasons = []
    for flat in (False, True) if _takes_flat(copied, rows) else (False,):
        outputs = _run(copied, seen.flatten(1) if flat else seen)
        if isinstance(outputs, Tensor) and outputs.ndim == 2 and len(outputs) == len(rows):
            return Interface(first.dtype, first.device, flat, outputs.shape[1])
        reasons.append(outputs)
    raise ValueError(_refusal(copied, name, rows, reasons[0]))


def as_rows(name: str, values: Any) -> Tensor:
    """Real numbers with an axis of rows; a series is a column of one number a row."""
    rows = as_numbers(name, values)
    if rows.ndim == 0:
        raise ValueError(f"{name}: expected an array whose first axis counts rows, got one number")
    return rows[:, None] if rows.ndim == 1 else rows


def first_width(model: nn.Module) -> int | None:
    """Numbers that the first ``nn.Linear`` takes, where a module begins with one."""
    for module in model.modules():
        if not list(module.children()):
            return module.in_features if isinstance(module, nn.Linear) else None
    return None


def _takes_flat(model: nn.Module, rows: Tensor) -> bool:
    return rows.ndim > 2 and first_width(model) == rows[0].numel()


def _run(model: nn.Module, rows: Tensor) -> Any:
    """Outputs, or the error where it runs into one."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return model(rows)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return error


def _refusal(model: nn.Module, name: str, rows: Tensor, seen: Any) -> str:
    width = first_width(model)
    takes = "" if width is None else f": rows of {width} numbers"
    got = f"rows of shape {tuple(rows.shape[1:])}"
    if isinstance(seen, Exception):
        why = f"it raised {type(seen).__name__}: {str(seen).strip()}".partition("\n")[0]
    elif isinstance(seen, Tensor):
        why = f"it made outputs of shape {tuple(seen.shape)} of {len(rows)} rows"
    else:
        why = f"it returned {type(seen).__name__}"
    return (
        f"{name}: expected inputs that the model takes{takes}, got {got} ({why}); reshape the "
        "inputs, or change the model's first layer"
    )
