"""A network from a file or a folder, whichever format it is in."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import NetworkError
from ..networks.layers import Shape
from ..networks.network import Network
from ..networks.storage import load_files, load_network
from .from_torch import read_module
from .onnx_model import read_onnx
from .pt2 import read_pt2

if TYPE_CHECKING:
    from torch import nn

_HEAD = 16


@dataclass(frozen=True)
class Format:
    """One row of the table: how a format is named, recognised and read.

    ``recognise`` takes the path and the first bytes of the file (none of a folder).
    """

    name: str
    recognise: Callable[[Path, bytes], bool]
    read: Callable[[Path, Shape | None], Network]


def open_network(path: str | os.PathLike[str], input_shape: Shape | None = None) -> Network:
    """Read a network from a run folder, safetensors, a ``torch.export`` archive or an ONNX file.

    Nothing is unpickled and no torch is needed.

    Args:
        path: a folder with ``weights.safetensors`` and ``architecture.json``; a safetensors file
            with its architecture beside it; what ``torch.export.save`` wrote; or an ONNX file.
        input_shape: shape of one input without the batch, where the file leaves it open.

    Raises:
        NetworkError: for a file that cannot be read, naming what is wrong and what can be read.
        UnsupportedModule: by name, for what is not a chain of supported layers.
    """
    path = Path(path)
    if not path.exists():
        raise NetworkError(f"{path}: expected a file or folder, found none")
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(_HEAD)
    for row in FORMATS:
        if row.recognise(path, head):
            return row.read(path, input_shape)
    raise NetworkError(
        f"{path}: not a format that is read; expected "
        f"{', '.join(row.name for row in FORMATS if row.name)}"
    )


def network_of(
    model: nn.Module | Network | str | Path, input_shape: Shape | None = None
) -> Network:
    """The network of a torch module, an estimator of scikit-learn, a folder or file, or itself.

    Torch is needed for modules and estimators only.
    """
    if isinstance(model, Network):
        return model
    if isinstance(model, str | os.PathLike):
        return open_network(Path(model), input_shape)
    return read_module(_module(model), input_shape)


def _module(model: Any) -> nn.Module:
    from torch import nn

    from .from_sklearn import is_estimator, module_of

    if is_estimator(model):
        return module_of(model)
    if not isinstance(model, nn.Module):
        raise TypeError(
            "model: expected a torch.nn.Module, a Network, an estimator of scikit-learn or the "
            f"path of a run folder, got {type(model).__name__}"
        )
    return model


def _read_folder(path: Path, given: Shape | None) -> Network:
    return _as_given(load_network(path), given, path)


def _read_safetensors(path: Path, given: Shape | None) -> Network:
    """The architecture is ``NAME.json`` beside ``NAME.safetensors``, else ``architecture.json``."""
    own = path.with_suffix(".json")
    architecture = own if own.is_file() else path.with_name("architecture.json")
    return _as_given(load_files(architecture, path), given, path)


def _as_given(network: Network, given: Shape | None, path: Path) -> Network:
    if given is not None and tuple(given) != network.input_shape:
        raise NetworkError(
            f"input_shape: {path} has the input shape {network.input_shape}, got {tuple(given)}"
        )
    return network


def _refuse_pickle(path: Path, given: Shape | None) -> Network:
    raise NetworkError(
        f"{path}: a pickled file, which is never unpickled; save the network as safetensors with "
        "its architecture (admm_lip.networks.storage.save_network), by torch.export.save or as ONNX"
    )


def _is_safetensors(path: Path, head: bytes) -> bool:
    """Eight bytes of length, then JSON."""
    return head[8:9] == b"{" or path.suffix == ".safetensors"


FORMATS = (
    Format("a folder", lambda path, head: path.is_dir(), _read_folder),
    Format("torch.export (.pt2)", lambda path, head: head[:4] == b"PK\x03\x04", read_pt2),
    # Every protocol since 2 opens with this byte, which opens no ONNX file.
    Format("", lambda path, head: head[:1] == b"\x80", _refuse_pickle),
    Format("safetensors with architecture.json", _is_safetensors, _read_safetensors),
    Format(
        "ONNX (.onnx)",
        lambda path, head: path.suffix == ".onnx" or head[:1] == b"\x08",
        read_onnx,
    ),
)
