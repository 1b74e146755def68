"""The archive and the JSON of ``torch.export.save``: sizes and types checked, no pickle read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import IO, Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from .. import strict_json
from ..errors import NetworkError, UnsupportedModule
from .zip_members import members_of

Array = npt.NDArray[Any]

MAX_ARCHIVE = 8 * 2**30
_MAX_JSON = 64 * 2**20

# torch's numbers of types; bfloat16 is stored as the upper half of a float32.
_BFLOAT16 = 13
_DTYPES: Mapping[int, np.dtype[Any]] = {
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f2"),
    7: np.dtype("<f4"),
    8: np.dtype("<f8"),
    _BFLOAT16: np.dtype("<u2"),
}


class Archive:
    """The members of a zip archive, below its one top folder, with their sizes checked."""

    def __init__(self, archive: ZipFile, file: IO[bytes]) -> None:
        if sum(m.file_size for m in archive.infolist()) > MAX_ARCHIVE:
            raise NetworkError(f"unpacks to more than the limit of {MAX_ARCHIVE} bytes")
        self.archive = archive
        self.members = members_of(archive, file)

    def read(self, name: str, limit: int = MAX_ARCHIVE) -> bytes:
        """One member, stored as it is."""
        member = self.members.get(name)
        if member is None:
            raise NetworkError(f"holds no {name}")
        if member.file_size > limit:
            raise NetworkError(f"{name}: above the limit of {limit} bytes")
        return self.archive.read(member)

    def read_json(self, name: str) -> Fields:
        """One member that is JSON."""
        try:
            data = strict_json.loads(self.read(name, _MAX_JSON).decode())
        except ValueError as error:
            raise NetworkError(f"{name}: not JSON ({error})") from None
        return Fields(data, name)

    def model(self) -> str:
        """The name of the one model inside."""
        names = [
            name[len("models/") : -len(".json")]
            for name in self.members
            if name.startswith("models/") and name.endswith(".json")
        ]
        if len(names) == 1:
            return names[0]
        if names:
            raise UnsupportedModule(f"holds the models {names!r:.200}; export one alone")
        if any(name.endswith((".pkl", ".pt")) for name in self.members):
            raise NetworkError(
                "holds pickled objects, which are never unpickled (written by torch.save, or by "
                "torch.export of an older torch); save it as safetensors with its architecture "
                "(admm_lip.networks.storage.save_network), or as torch.export of torch 2.8 or later"
            )
        raise NetworkError("holds no models/*.json; expected what torch.export.save writes")


class Fields:
    """A JSON value with its place, asked for by type: nothing in it is trusted."""

    def __init__(self, data: Any, where: str) -> None:
        self.data, self.where = data, where

    def get(self, key: str) -> Fields:
        """A member of an object."""
        if not isinstance(self.data, dict) or key not in self.data:
            raise NetworkError(f"{self.where}: expected an object with {key!r}")
        return Fields(self.data[key], f"{self.where}: {key}")

    def items(self) -> list[Fields]:
        """The entries of a list."""
        entries = self.of(list)
        return [Fields(entry, f"{self.where}[{k}]") for k, entry in enumerate(entries)]

    def of(self, kind: type) -> Any:
        """The value, which must be of the type ``kind``."""
        if type(self.data) is not kind:
            raise NetworkError(f"{self.where}: expected {kind.__name__}, got {self.data!r:.60}")
        return self.data

    def union(self) -> tuple[str, Fields]:
        """An object of one member, which says by its name what it is."""
        data = self.of(dict)
        if len(data) != 1:
            raise NetworkError(f"{self.where}: expected one of several kinds, got {data!r:.60}")
        (key,) = data
        return key, self.get(key)


class Payloads:
    """The tensors of one kind, ``weights`` or ``constants``, by their names."""

    def __init__(self, archive: Archive, kind: str, model: str) -> None:
        self.archive, self.kind = archive, kind
        config = archive.read_json(f"data/{kind}/{model}_{kind}_config.json").get("config")
        self.config = {name: config.get(name) for name in config.of(dict)}

    def tensor(self, name: str) -> Array:
        """One tensor, cut out of its storage with every index checked."""
        if name not in self.config:
            raise NetworkError(f"{name}: its {self.kind} payload is missing")
        entry = self.config[name]
        if entry.get("use_pickle").of(bool):
            raise UnsupportedModule(
                f"{name}: is pickled (a tensor subclass), and nothing is unpickled; replace it by "
                "a plain tensor before exporting"
            )
        path, meta = entry.get("path_name").of(str), entry.get("tensor_meta")
        number = meta.get("dtype").of(int)
        if number not in _DTYPES:
            raise UnsupportedModule(
                f"{name}: torch's type number {number}; expected float16, bfloat16, float32, "
                "float64, int32 or int64"
            )
        storage = self.archive.read(f"data/{self.kind}/{path}")
        values = _cut(storage, _DTYPES[number], meta, name)
        if number == _BFLOAT16:
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values


def _cut(storage: bytes, dtype: np.dtype[Any], meta: Fields, name: str) -> Array:
    sizes = [_whole(n, name) for n in meta.get("sizes").items()]
    strides = [_whole(n, name) for n in meta.get("strides").items()]
    offset = _whole(meta.get("storage_offset"), name)
    count = len(storage) // dtype.itemsize
    last = offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=False))
    # Expanded tensors repeat entries; no weight of a layer does.
    dense = len(sizes) == len(strides) and math.prod(sizes) <= count
    if not dense or 0 in sizes or last >= count:
        raise NetworkError(
            f"{name}: the sizes {sizes!r:.60}, strides {strides!r:.60} and offset {offset} do not "
            f"fit a storage of {count} values; the file is truncated or damaged"
        )
    flat = np.frombuffer(storage, dtype=dtype, count=count)
    # A stride along one entry is never used, and may be anything.
    steps = [s * dtype.itemsize if n > 1 else 0 for n, s in zip(sizes, strides, strict=True)]
    view = np.lib.stride_tricks.as_strided(flat[offset:], sizes, steps, writeable=False)
    return view.astype(dtype.newbyteorder("="), order="C")


def _whole(number: Fields, name: str) -> int:
    kind, value = number.union()
    if kind != "as_int" or value.of(int) < 0:
        raise NetworkError(
            f"{number.where}: {name}: expected a fixed size, got {number.data!r:.60}"
        )
    size: int = value.data
    return size
