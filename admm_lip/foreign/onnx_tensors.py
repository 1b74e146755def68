"""Tensors and attributes of an ONNX file as NumPy arrays, with every length checked.

Numbers of types are those that the format's ``onnx.proto`` fixes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NetworkError, UnsupportedModule

Array = npt.NDArray[Any]

# protobuf's own limit on a file; the data outside it may be as large again.
MAX_BYTES = 2 * 2**30 - 1


@dataclass(frozen=True)
class _Kind:
    """How a tensor type is stored: little-endian, and the field for values that are not raw."""

    stored: np.dtype[Any]
    field: str
    bits: bool = False
    bfloat16: bool = False


_KINDS: Mapping[int, _Kind] = {
    1: _Kind(np.dtype("<f4"), "float_data"),
    6: _Kind(np.dtype("<i4"), "int32_data"),
    7: _Kind(np.dtype("<i8"), "int64_data"),
    9: _Kind(np.dtype("?"), "int32_data"),
    10: _Kind(np.dtype("<f2"), "int32_data", bits=True),
    11: _Kind(np.dtype("<f8"), "double_data"),
    16: _Kind(np.dtype("<u2"), "int32_data", bits=True, bfloat16=True),
}
FLOATS = (1, 10, 11, 16)
_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_EXTERNAL = 1


class Decoder:
    """Tensors and attributes as NumPy arrays and plain numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left = MAX_BYTES

    def attribute(self, attribute: Any, label: str) -> Any:
        """One of the kinds that a chain needs; floats stay NumPy's float32, which they are."""
        readers: Mapping[int, Callable[[Any], Any]] = {
            1: lambda a: np.float32(a.f),
            2: lambda a: int(a.i),
            3: lambda a: text(a.s),
            4: lambda a: self.tensor(a.t, f"{label}: {text(a.name)}"),
            6: lambda a: [np.float32(v) for v in a.floats],
            7: lambda a: [int(v) for v in a.ints],
        }
        if attribute.type not in readers or attribute.ref_attr_name:
            raise UnsupportedModule(
                f"{label}: its attribute {text(attribute.name)!r} is of a kind that is not read"
            )
        return readers[attribute.type](attribute)

    def tensor(self, tensor: Any, label: str) -> Array:
        """A tensor, its length checked against its shape."""
        kind = _KINDS.get(tensor.data_type)
        if kind is None:
            raise UnsupportedModule(
                f"{label}: expected float16, bfloat16, float32, float64, int32, int64 or bool, "
                f"got the ONNX type {_type_name(tensor)}"
            )
        shape = tuple(int(n) for n in tensor.dims)
        size = math.prod(shape)
        if min(shape, default=0) < 0 or size * kind.stored.itemsize > MAX_BYTES:
            raise NetworkError(f"{label}: the shape {shape!r:.100} is negative or too large")
        values = self._values(tensor, kind, label)
        if values.size != size:
            raise NetworkError(
                f"{label}: expected {size} values for the shape {shape!r:.100}, "
                f"got {values.size}; the file is truncated or damaged"
            )
        if kind.bfloat16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.reshape(shape)

    def _values(self, tensor: Any, kind: _Kind, label: str) -> Array:
        kept = [tensor.data_location == _EXTERNAL, tensor.HasField("raw_data")]
        kept += [len(getattr(tensor, name)) > 0 for name in _TYPED]
        if sum(kept) > 1 or (tensor.external_data and not kept[0]):
            raise NetworkError(f"{label}: its values are stored in more than one way")
        if tensor.data_location == _EXTERNAL:
            raw = self._external(tensor, label)
        elif tensor.HasField("raw_data"):
            raw = tensor.raw_data
        else:
            return _typed(getattr(tensor, kind.field), kind, label)
        if len(raw) % kind.stored.itemsize:
            raise NetworkError(f"{label}: {len(raw)} bytes are no whole number of values")
        return np.frombuffer(raw, dtype=kind.stored).astype(kind.stored.newbyteorder("="))

    def _external(self, tensor: Any, label: str) -> bytes:
        entries = {text(entry.key): text(entry.value) for entry in tensor.external_data}
        if len(entries) < len(tensor.external_data):
            raise NetworkError(f"{label}: says twice where its external data are")
        path = _inside(self.folder, entries.get("location", ""), label)
        offset, length = (_natural(entries, key, label) for key in ("offset", "length"))
        size = path.stat().st_size
        start = offset or 0
        count = size - start if length is None else length
        if count < 0 or start + count > size:
            raise NetworkError(
                f"{label}: its external data {path.name} is truncated: expected {count} bytes "
                f"from {start} on, the file has {size}"
            )
        self.left -= count
        if self.left < 0:
            raise NetworkError(f"{label}: external data above the limit of {MAX_BYTES} bytes")
        with path.open("rb") as file:
            file.seek(start)
            return file.read(count)


def _type_name(tensor: Any) -> str:
    """The name of a tensor's type, for example ``INT8``."""
    try:
        name: str = tensor.DataType.Name(tensor.data_type)
    except ValueError:
        return f"number {tensor.data_type}, which has no name"
    return name


def _typed(values: Iterable[Any], kind: _Kind, label: str) -> Array:
    if not kind.bits:
        return np.array(list(values), dtype=kind.stored)
    patterns = np.array(list(values), dtype=np.int64)
    if ((patterns < 0) | (patterns > 0xFFFF)).any():
        raise NetworkError(f"{label}: holds a bit pattern outside 16 bits")
    return patterns.astype(np.uint16).view(kind.stored)


def _inside(folder: Path, location: str, label: str) -> Path:
    """The external file, refused where it is missing or leads out of the model's folder."""
    named = f"{label}: its external data {location!r:.200}"
    if not location or "\0" in location or Path(location).is_absolute():
        raise NetworkError(f"{named}: expected the name of a file beside the model")
    path = (folder / location).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise NetworkError(f"{named} leads out of the model's folder, which is not followed")
    if not path.is_file():
        raise NetworkError(f"{named} is missing; put it beside the model")
    return path


def _natural(entries: Mapping[str, str], key: str, label: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise NetworkError(f"{label}: external data's {key}: expected a number, got {text!r:.60}")
    return int(text)


def text(content: str | bytes) -> str:
    """Text of a file; protobuf hands out bytes where it is not UTF-8.

    Raises:
        NetworkError: where it is not.
    """
    try:
        return content if isinstance(content, str) else content.decode()
    except UnicodeDecodeError:
        raise NetworkError(f"damaged: holds text that is not UTF-8, {content!r:.60}") from None
