"""The tensors of a local certificate: what each is, in memory and in a file, and its range."""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..certificates.fields import shown
from ..errors import CertificateError
from .config import LEVELS, SETTLED

_LARGEST, _SINGLE = sys.float_info.max, torch.finfo(torch.float32).max
_WHOLE = 2.0**31 - 1.0
LEAST_METRIC = torch.finfo(torch.float32).tiny


class Column(NamedTuple):
    """What a tensor of the record is: dtype, its name in files, axes, least and greatest value.

    ``given``: whether it is always there; ``gaps``: whether a NaN says that there is no number.
    """

    dtype: torch.dtype
    code: str
    axes: tuple[str, ...]
    least: float
    most: float
    given: bool = True
    gaps: bool = False


def _floats(axes: str, least: float, most: float) -> Column:
    return Column(torch.float64, "F64", tuple(axes.split()), least, most)


def _shares() -> Column:
    return _floats("input", 0.0, 1.0)._replace(given=False, gaps=True)


def _singles(axes: str, least: float) -> Column:
    return Column(torch.float32, "F32", tuple(axes.split()), least, _SINGLE, given=False)


TENSORS = {
    "x": _floats("input feature", -_LARGEST, _LARGEST),
    "radius": _floats("input", 0.0, math.inf),
    "labels": Column(torch.int64, "I64", ("input",), -1.0, _LARGEST, given=False),
    "lip": _floats("input functional", 0.0, math.inf),
    "level": Column(torch.int8, "I8", ("input", "functional"), 0.0, len(LEVELS) - 1.0),
    "roots": _floats("input functional neuron", 0.0, _LARGEST),
    "margin": _floats("input functional", -math.inf, _LARGEST),
    "center": _floats("input functional", -math.inf, _LARGEST),
    "tuned": Column(torch.bool, "BOOL", ("input", "functional"), 0.0, 1.0, given=False),
    "slopes": _singles("row neuron", -_SINGLE),
    "curvatures": _singles("row neuron", 0.0),
    "metric": _singles("row neuron", LEAST_METRIC),
    "dual": Column(torch.bool, "BOOL", ("input", "functional"), 0.0, 1.0, given=False),
    "multipliers": _singles("dual_row multiplier", 0.0),
    "varying": _shares(),
    "ratio": _shares(),
    "settled": Column(torch.int8, "I8", ("input",), 0.0, len(SETTLED) - 1.0, given=False),
    "left": Column(torch.int32, "I32", ("input",), -1.0, _WHOLE, given=False),
    "seconds": _floats("input", 0.0, _LARGEST)._replace(given=False),
}


def check_tensor(name: str, tensor: Any, column: Column, sizes: dict[str, int]) -> None:
    """Type, range and shape of one tensor; sizes that are new are noted."""
    if (
        not isinstance(tensor, Tensor)
        or tensor.dtype != column.dtype
        or tensor.ndim != len(column.axes)
    ):
        got = f"{tuple(tensor.shape)} of {tensor.dtype}" if isinstance(tensor, Tensor) else tensor
        raise CertificateError(
            f"{name}: expected a tensor ({', '.join(column.axes)}) of {column.dtype}, "
            f"got {shown(got)}"
        )
    for axis, size in zip(column.axes, tensor.shape, strict=True):
        if sizes.setdefault(axis, size) != size:
            raise CertificateError(f"{name}: expected {sizes[axis]} per {axis}, got {size}")
    good = (tensor >= column.least) & (tensor <= column.most)
    good |= tensor.isnan() if column.gaps else False
    if not bool(good.all()):
        raise CertificateError(
            f"{name}: expected {_RANGES[column.least, column.most]}, got {tensor[~good][0].item()}"
        )


# In words, the values that a tensor may hold; a NaN is in none of them.
_RANGES = {
    (-_LARGEST, _LARGEST): "finite numbers",
    (-_SINGLE, _SINGLE): "finite numbers",
    (0.0, _LARGEST): "finite numbers >= 0",
    (0.0, _SINGLE): "finite numbers >= 0",
    (LEAST_METRIC, _SINGLE): f"finite numbers from {LEAST_METRIC:g}",
    (0.0, math.inf): "numbers >= 0",
    (-math.inf, _LARGEST): "numbers below infinity",
    (0.0, 1.0): "shares from 0 to 1, or NaN",
    (-1.0, _WHOLE): "sizes, or -1",
    (-1.0, _LARGEST): "classes, or +1 and -1",
    (0.0, len(LEVELS) - 1.0): f"indices of {LEVELS}",
    (0.0, len(SETTLED) - 1.0): f"indices of {SETTLED}",
}
