"""A network on disk: ``architecture.json`` and ``weights.safetensors`` in one folder.

Neither file can run code; sizes and types are checked before anything is used.  Together with
``certificate.json`` they are all that a check of the proof needs, and reading them needs no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy as st

from .. import strict_json
from ..errors import NetworkError
from ..files import write_atomic
from .network import Network

ARCHITECTURE = "architecture.json"
WEIGHTS = "weights.safetensors"
_MAX_JSON = 16 * 2**20
_MAX_WEIGHTS = 8 * 2**30
_MAX_HEADER = 100 * 2**20


def save_network(network: Network, folder: str | Path) -> None:
    """Write the two files of a network into an existing folder."""
    folder = Path(folder)
    text = json.dumps(network.to_json(), indent=2, allow_nan=False) + "\n"
    # A view would be written as it lies in memory.
    arrays = {key: np.array(array, order="C") for key, array in network.arrays.items()}
    write_atomic(folder / WEIGHTS, st.save(arrays))
    write_atomic(folder / ARCHITECTURE, text.encode())


def load_network(folder: str | Path) -> Network:
    """Read what :func:`save_network` wrote (or a training run's folder).

    Raises:
        NetworkError: naming the file that is missing, too large, truncated or inconsistent.
    """
    return load_files(Path(folder) / ARCHITECTURE, Path(folder) / WEIGHTS)


def load_files(architecture: Path, weights: Path) -> Network:
    """Read a network from its two files, whatever their names.

    Raises:
        NetworkError: naming the file that is missing, too large, truncated or inconsistent.
    """
    for path, limit in ((architecture, _MAX_JSON), (weights, _MAX_WEIGHTS)):
        if not path.is_file():
            raise NetworkError(f"expected a file {path.name} in {path.parent}, found none")
        if path.stat().st_size > limit:
            raise NetworkError(f"{path}: larger than the limit of {limit} bytes")
    try:
        data = strict_json.loads(architecture.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NetworkError(f"{architecture}: not a JSON file ({error})") from None
    try:
        safetensors_header(weights)
    except NetworkError as error:
        raise NetworkError(f"{weights}: truncated or damaged ({error})") from None
    try:
        arrays = st.load_file(weights)
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise NetworkError(f"{weights}: truncated, damaged or of a type unread ({error})") from None
    return Network.from_json(data, arrays)


def safetensors_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, in which no name may stand twice.

    Raises:
        NetworkError: for a file without one.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > min(_MAX_HEADER, path.stat().st_size - 8):
                raise NetworkError("the header is longer than the file, or than its limit")
            header = strict_json.loads(file.read(size).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise NetworkError(f"the header cannot be read: {error}") from None
    if not isinstance(header, dict):
        raise NetworkError("the header is not a JSON object")
    return header
