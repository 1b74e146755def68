"""CIFAR-10 from files that are safe to open: NumPy archives, or the binary release.

torchvision's ``cifar-10-batches-py`` are pickles, which can run any code when loaded, so they are
refused.  Read instead, from the data folder:

* ``CIFAR10/train_*.npz`` and ``CIFAR10/test.npz`` holding labels ``y`` and either pixels ``x``,
  uint8 ``(n, 3, 32, 32)``, or ``d``, the same pixels as differences modulo 256 (smaller files): red
  and blue minus green, then each plane minus its neighbour above, then minus the one on the left;
* ``cifar-10-batches-bin/data_batch_*.bin`` and ``test_batch.bin``, the authors' binary release: per
  picture one label byte, then the red, green and blue planes.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .dataset import DataError, DataSet, Pair
from .files import missing

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def load_cifar10(name: str, root: Path) -> DataSet:
    """CIFAR-10 with pixels in [0, 1]: however many training batches are there, and the test set."""
    layout = next((f for f in _LAYOUTS if (root / f.folder / f.test).is_file()), None)
    if layout is None:
        raise missing(name, root, [f"{f.folder}/{f.test}" for f in _LAYOUTS], _hint(root))
    folder = root / layout.folder
    batches = sorted(folder.glob(layout.train))
    if not batches:
        raise missing(name, folder, [layout.train])
    return DataSet(
        train=_pair(layout.read, batches),
        test=_pair(layout.read, [folder / layout.test]),
        name=name,
        task="classification",
        n_classes=10,
        input_range=(0.0, 1.0),
        shape=_SHAPE,
    )


def decode(differences: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels ``(n, 3, 32, 32)`` from their differences; uint8 arithmetic wraps on purpose."""
    pixels = differences.cumsum(2, dtype=np.uint8).cumsum(3, dtype=np.uint8)
    pixels[:, 0] += pixels[:, 1]
    pixels[:, 2] += pixels[:, 1]
    return pixels


def _read_npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            labels = archive["y"]
            pixels = decode(archive["d"]) if "d" in archive else archive["x"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: expected a NumPy archive with uint8 arrays y and x (or d), got {error}"
        ) from error
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), *_SHAPE):
        raise DataError(
            f"{path}: expected uint8 pictures of shape (n, 3, 32, 32) with a label each, "
            f"got {pixels.dtype} {pixels.shape} and {len(labels)} labels"
        )
    return pixels, labels


def _read_binary(path: Path) -> Arrays:
    content = np.fromfile(path, np.uint8)
    if content.size == 0 or content.size % (1 + _PIXELS):
        raise DataError(
            f"{path}: expected a multiple of {1 + _PIXELS} bytes, got {content.size}; "
            "fetch the file again"
        )
    rows = content.reshape(-1, 1 + _PIXELS)
    return rows[:, 1:].reshape(-1, *_SHAPE), rows[:, 0]


def _pair(read: Callable[[Path], Arrays], paths: Sequence[Path]) -> Pair:
    parts = [read(path) for path in paths]
    pixels = np.concatenate([p for p, _ in parts])
    labels = np.concatenate([y for _, y in parts])
    x = torch.from_numpy(pixels.astype(np.float32)).div_(255.0)
    return x.flatten(1), torch.from_numpy(labels.astype(np.int64))


def _hint(root: Path) -> str:
    if (root / "cifar-10-batches-py").is_dir():
        return (
            "cifar-10-batches-py is there, but its files are pickles, which can run any code when "
            "loaded, so they are never read; unpack the binary release (cifar-10-binary.tar.gz) "
            "beside it"
        )
    return "unpack the binary release (cifar-10-binary.tar.gz) there"


class _Layout(NamedTuple):
    folder: str
    train: str
    test: str
    read: Callable[[Path], Arrays]


_LAYOUTS = (
    _Layout("CIFAR10", "train_*.npz", "test.npz", _read_npz),
    _Layout("cifar-10-batches-bin", "data_batch_*.bin", "test_batch.bin", _read_binary),
)
