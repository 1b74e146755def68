"""Arrays as people have them, read as tensors: torch, NumPy, pandas, lists.

A tensor is handed through as it is.  pandas and polars are read through their ``to_numpy``, others
through ``__array__``, so none of them is imported.  What has no single reading (words where numbers
are meant, missing values, rows of unequal length) is refused with its row.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

# Words stay a NumPy array of str.
Words: TypeAlias = "np.ndarray[Any, np.dtype[np.str_]]"
_AnyArray: TypeAlias = "np.ndarray[Any, Any]"

# A float64 holds every integer up to here.
_EXACT = 2**53
# Kinds of NumPy's dtypes, and what they are read as; uint8 and floats keep their width.
_READ_AS: dict[str, type] = {"b": np.bool_, "i": np.int64, "u": np.int64}


def as_numbers(name: str, values: Any) -> Tensor:
    """Real numbers as a dense, detached tensor of their own type, on their own device.

    Args:
        name: of the argument, for errors.
        values: a tensor, an array, a data frame or series, a (nested) list.

    Raises:
        TypeError: naming the argument, for what holds no real numbers.
        ValueError: for missing values, rows of unequal length, integers beyond int64.

    Example:
        >>> as_numbers("x", [[1, 2], [3, 4]]).dtype
        torch.int64
    """
    read = as_numbers_or_words(name, values)
    if isinstance(read, Tensor):
        return read
    raise TypeError(
        f"{name}: expected numbers, got words ({_some(read)}); encode them as numbers, one column "
        "for each value where they have no order"
    )


def as_numbers_or_words(name: str, values: Any) -> Tensor | Words:
    """As :func:`as_numbers`, where words are no mistake (labels)."""
    if isinstance(values, Tensor):
        return _dense(name, values)
    if isinstance(values, (list, tuple)) and values and isinstance(values[0], Tensor):
        return _stacked(name, values)
    _refuse_scalars(name, values)
    array = _as_array(name, values)
    if array.dtype.kind == "O":
        array = _of_objects(name, array, getattr(values, "columns", None))
    if array.dtype.kind == "U":
        _refuse_mixture(name, values)
        return array
    return _tensor(name, array)


def _tensor(name: str, array: _AnyArray) -> Tensor:
    kind = array.dtype.kind
    if kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(
            f"{name}: expected real numbers of at most 64 bits, got an array of {array.dtype}; "
            "convert it, for instance by .astype(float)"
        )
    if kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: expected integers below 2**63, got {int(array.max())}")
    if kind in _READ_AS and array.dtype != np.uint8:
        array = array.astype(_READ_AS[kind], copy=False)
    # torch wants native bytes, positive strides, and memory that it may write to.
    array = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _stacked(name: str, rows: list[Any] | tuple[Any, ...]) -> Tensor:
    shapes = {tuple(row.shape) if isinstance(row, Tensor) else type(row).__name__ for row in rows}
    if len(shapes) > 1:
        raise ValueError(
            f"{name}: expected tensors of equal shape, got {', '.join(map(str, shapes))}; pad or "
            "cut the rows"
        )
    return torch.stack([_dense(name, row) for row in rows])


def to_float64(name: str, values: Tensor) -> Tensor:
    """The same numbers as float64.

    Raises:
        ValueError: for integers beyond 2^53, which a float64 may not hold.
    """
    if not values.is_floating_point() and values.numel() and values.dtype != torch.bool:
        largest = max(abs(int(values.min())), abs(int(values.max())))
        if largest > _EXACT:
            raise ValueError(
                f"{name}: expected integers up to 2**53, which floats hold exactly, got {largest}; "
                "scale them first"
            )
    return values.to(torch.float64)


def check_finite(name: str, values: Tensor) -> None:
    """Raise ``ValueError`` naming the first row with a value that is NaN or infinite."""
    # The sum says it in one pass, unless it overflows.
    if not values.is_floating_point() or bool(torch.isfinite(values.sum())):
        return
    bad = ~torch.isfinite(values.reshape(len(values), -1)).all(dim=1)
    if bool(bad.any()):
        raise ValueError(
            f"{name}: expected finite numbers, got a value that is NaN or infinite in row "
            f"{int(bad.nonzero()[0, 0])} ({int(bad.sum())} such rows); fill or drop those rows"
        )


def _dense(name: str, values: Tensor) -> Tensor:
    if values.is_complex() or values.is_quantized or values.layout != torch.strided:
        raise TypeError(
            f"{name}: expected a dense tensor of real numbers, got {values.dtype}, "
            f"{values.layout}; use .to_dense(), .dequantize() or .real"
        )
    return values.detach()


def _refuse_scalars(name: str, values: Any) -> None:
    """What NumPy would wrap as one object, or cut into letters."""
    readable = hasattr(values, "to_numpy") or hasattr(values, "__array__")
    if not readable and not isinstance(values, (list, tuple, range)):
        raise TypeError(
            f"{name}: expected a tensor, a NumPy array, a data frame or a list, "
            f"got {type(values).__name__}"
        )


def _as_array(name: str, values: Any) -> _AnyArray:
    try:
        to_numpy = getattr(values, "to_numpy", None)
        return np.asarray(values if to_numpy is None else to_numpy())
    except ValueError as error:  # rows of unequal length
        raise ValueError(
            f"{name}: expected rows of equal shape, got a list that is no array ({error}); pad or "
            "cut the rows"
        ) from None


def _of_objects(name: str, array: _AnyArray, columns: Any) -> _AnyArray:
    """An array of Python objects as numbers or words, where they are all of one sort."""
    flat = array.reshape(-1)
    if all(isinstance(v, str) for v in flat):
        return array.astype(str)
    for place, value in enumerate(flat):
        if isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)):
            continue
        row, *rest = np.unravel_index(place, array.shape)
        column = f", column {columns[rest[0]] if columns is not None else rest[0]}" if rest else ""
        missing = value is None or str(value) in ("<NA>", "NaT")
        raise ValueError(
            f"{name}: expected numbers throughout, got "
            f"{'a missing value' if missing else repr(value)} in row {int(row)}{column}; drop, "
            "fill or encode it"
        )
    kinds = {np.asarray(v).dtype.kind for v in flat}
    return array.astype(np.float64 if "f" in kinds else np.bool_ if kinds == {"b"} else np.int64)


def _refuse_mixture(name: str, values: Any) -> None:
    """NumPy writes ``[1, "a"]`` as two words."""
    for value in np.asarray(values, dtype=object).reshape(-1):
        if not isinstance(value, str):
            raise TypeError(
                f"{name}: expected words throughout or numbers throughout, got {value!r} among "
                "words; make them one sort"
            )


def _some(words: Words) -> str:
    found = sorted(set(words.reshape(-1).tolist()))
    return ", ".join(map(repr, found[:4])) + (", ..." if len(found) > 4 else "")
