"""MNIST and Fashion-MNIST from IDX files, gzipped or not, at torchvision's paths.

An IDX file is two zero bytes, a type code (8 is unsigned byte), the number of axes, the sizes as
big-endian 32-bit integers, then the values in row-major order.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .dataset import DataError, DataSet, Pair
from .files import find_file

_UNSIGNED_BYTE = 8


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes.

    Raises:
        DataError: when the file is truncated, damaged, or not IDX.
    """
    content = _read_bytes(path)
    if len(content) < 4 or content[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
        raise DataError(f"{path}: expected an IDX file of unsigned bytes, got another format")
    axes = content[3]
    header = 4 + 4 * axes
    if len(content) < header:
        raise DataError(f"{path}: the IDX header is cut short; fetch the file again")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", axes, 4))
    if len(content) != header + math.prod(shape):
        raise DataError(
            f"{path}: expected {math.prod(shape)} bytes of data for shape {shape}, "
            f"got {len(content) - header}; fetch the file again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def load_mnist(name: str, root: Path) -> DataSet:
    """MNIST: 60,000 + 10,000 digits of 28 x 28 pixels in [0, 1]."""
    return _images(name, "MNIST", root, pool=1)


def load_mnist14(name: str, root: Path) -> DataSet:
    """MNIST averaged over 2 x 2 pixels to 14 x 14, the paper's input size."""
    return _images(name, "MNIST", root, pool=2)


def load_fashion(name: str, root: Path) -> DataSet:
    """Fashion-MNIST: the layout of MNIST, ten kinds of clothing."""
    return _images(name, "FashionMNIST", root, pool=1)


def _images(name: str, folder: str, root: Path, pool: int) -> DataSet:
    return DataSet(
        train=_pair(name, folder, root, "train", pool),
        test=_pair(name, folder, root, "t10k", pool),
        name=name,
        task="classification",
        n_classes=10,
        input_range=(0.0, 1.0),
        shape=(1, 28 // pool, 28 // pool),
    )


def _pair(name: str, folder: str, root: Path, part: str, pool: int) -> Pair:
    pixels = read_idx(_find(name, folder, root, f"{part}-images-idx3-ubyte"))
    labels = read_idx(_find(name, folder, root, f"{part}-labels-idx1-ubyte"))
    if pixels.shape != (len(labels), 28, 28) or labels.ndim != 1:
        raise DataError(
            f"data set {name!r}, {part}: expected images of 28 x 28 with a label each, "
            f"got arrays of shape {pixels.shape} and {labels.shape}"
        )
    x = torch.from_numpy(pixels.astype(np.float32)).div_(255.0).unsqueeze(1)
    if pool > 1:
        x = torch.nn.functional.avg_pool2d(x, pool)
    return x.flatten(1), torch.from_numpy(labels.astype(np.int64))


def _find(name: str, folder: str, root: Path, stem: str) -> Path:
    return find_file(name, root, f"{folder}/raw", (stem, f"{stem}.gz"))


def _read_bytes(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the file again") from error
