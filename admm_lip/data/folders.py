"""Any folder of pictures: one folder per class, or TinyImageNet's layout.

    FOLDER/train/<class>/*.png    FOLDER/val/<class>/*.png      (or test/, which is taken first)
    FOLDER/<class>/*.png          a fifth, drawn with a fixed seed, is the test set
    FOLDER/train/<class>/images/*.JPEG    FOLDER/val/images/*.JPEG and val/val_annotations.txt,
                                  lines of file name and class: TinyImageNet as it is handed out

Pictures must have one size and 8 bits per channel; grey ones among coloured ones get equal
channels.  All of them are held in memory as float32 (TinyImageNet: 5 GiB).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..extras import extra
from .dataset import DataError, DataSet, Pair

with extra():
    from PIL import Image, UnidentifiedImageError

_ANNOTATIONS = "val_annotations.txt"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".pgm", ".ppm")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")  # nothing else is decoded, whatever the suffix
_MODES = {"1": "L", "L": "L", "RGB": "RGB", "P": "RGB", "YCbCr": "RGB", "CMYK": "RGB"}
_LARGEST = 1024  # pixels a side
_TEST_SHARE = 0.2


class Labelled(NamedTuple):
    """A picture's file and the name of its class."""

    path: Path
    label: str


def load_folder(name: str, folder: Path) -> DataSet:
    """Read a folder of pictures, pixels in [0, 1].

    Args:
        name: of the data set.
        folder: laid out in one of the ways above.

    Raises:
        DataError: naming the folder or file that is missing, damaged, or not like the others.
    """
    if not folder.is_dir():
        raise DataError(f"data set {name!r}: expected a folder, but {folder} does not exist")
    train, test = _split(folder)
    classes = sorted({item.label for item in train})
    if len(classes) < 2:
        raise DataError(
            f"{folder}: expected a folder of pictures for each of at least 2 classes, found "
            f"{', '.join(classes) or 'none'} (pictures end in {', '.join(_SUFFIXES)})"
        )
    strangers = sorted({item.label for item in test} - set(classes))
    if strangers:
        raise DataError(
            f"{folder}: the test pictures are of class {strangers[0]!r}, which has no training "
            "pictures"
        )
    pixels = _read_all([item.path for item in (*train, *test)])
    numbers = {label: number for number, label in enumerate(classes)}
    labels = torch.tensor([numbers[item.label] for item in (*train, *test)])
    x, count = torch.from_numpy(pixels).float().div_(255.0).flatten(1), len(train)
    sides: tuple[Pair, Pair] = (x[:count], labels[:count]), (x[count:], labels[count:])
    return DataSet(
        *sides,
        name=name,
        task="classification",
        n_classes=len(classes),
        input_range=(0.0, 1.0),
        shape=tuple(pixels.shape[1:]),
    )


def _split(folder: Path) -> tuple[list[Labelled], list[Labelled]]:
    """Training and test pictures, without reading them."""
    if not (folder / "train").is_dir():
        return _held_out(_by_class(folder))
    annotated = (folder / "val" / _ANNOTATIONS).is_file()
    held = _annotated(folder / "val") if annotated else []  # there, test/ has no classes
    for part in ("test", "val"):
        held = held or (_by_class(folder / part) if (folder / part).is_dir() else [])
    if not held:
        raise DataError(
            f"{folder}: expected pictures to test on in test/<class>/ or val/<class>/, or "
            f"val/{_ANNOTATIONS}, beside train/; found none"
        )
    return _by_class(folder / "train"), held


def _by_class(part: Path) -> list[Labelled]:
    """Pictures in each class's folder, or in a folder ``images`` in there; in sorted order."""
    found = []
    for folder in sorted(p for p in part.iterdir() if p.is_dir()):
        files = [*folder.iterdir()]
        inner = folder / "images"
        files += [*inner.iterdir()] if inner.is_dir() else []
        found += [Labelled(p, folder.name) for p in sorted(files) if p.suffix.lower() in _SUFFIXES]
    return found


def _annotated(part: Path) -> list[Labelled]:
    """Pictures in ``images`` with the classes that the list beside it names."""
    found = []
    lines = (part / _ANNOTATIONS).read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        if len(words) < 2 or Path(words[0]).name != words[0]:
            raise DataError(
                f"{part / _ANNOTATIONS}, line {number}: expected a file name and a class, "
                f"got {line[:60]!r}"
            )
        found.append(Labelled(part / "images" / words[0], words[1]))
    return found


def _held_out(pictures: list[Labelled]) -> tuple[list[Labelled], list[Labelled]]:
    """A fixed random fifth as the test set (at least one picture of two)."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(pictures), generator=generator).tolist()
    cut = round(_TEST_SHARE * len(pictures))
    return [pictures[k] for k in sorted(order[cut:])], [pictures[k] for k in sorted(order[:cut])]


def _read_all(paths: Sequence[Path]) -> NDArray[np.uint8]:
    """Pictures ``(n, channels, rows, columns)``, all as large as the first."""
    pictures: list[NDArray[np.uint8]] = []
    for path in paths:
        pictures.append(_read(path))
        if pictures[-1].shape[:2] != pictures[0].shape[:2]:
            (rows, columns), (first, second) = pictures[-1].shape[:2], pictures[0].shape[:2]
            raise DataError(
                f"{path}: expected {first} x {second} pixels like {paths[0].name}, got "
                f"{rows} x {columns}; bring all pictures to one size"
            )
    channels = max(picture.shape[2] for picture in pictures)
    stacked = np.empty((len(pictures), channels, *pictures[0].shape[:2]), np.uint8)
    for row, picture in zip(stacked, pictures, strict=True):
        row[:] = picture.transpose(2, 0, 1)  # a single grey channel is broadcast
    return stacked


def _read(path: Path) -> NDArray[np.uint8]:
    """Pixels ``(rows, columns, 1 or 3)``."""
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            if max(picture.size) > _LARGEST:
                raise DataError(
                    f"{path}: expected at most {_LARGEST} pixels a side, got "
                    f"{picture.size[0]} x {picture.size[1]}; make the pictures smaller"
                )
            if picture.mode not in _MODES or "transparency" in picture.info:
                raise DataError(
                    f"{path}: expected grey or coloured pixels of 8 bits, from 0 to 255, got mode "
                    f"{picture.mode!r}; convert the picture (transparent pixels and other ranges "
                    "have no one meaning)"
                )
            pixels = np.asarray(picture.convert(_MODES[picture.mode]))
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file, though it is listed") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as a picture ({error})") from error
    return pixels.reshape(*pixels.shape[:2], -1)
