"""Where image files are looked for, and the error that says what was not found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .options import DataError

ENVIRONMENT = "ADMM_LIP_DATA"


def data_folder(data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder of image sets: ``data_dir``, else ``$ADMM_LIP_DATA``, else ``./data``."""
    return Path(data_dir or os.environ.get(ENVIRONMENT) or "data").expanduser()


def find_file(name: str, root: Path, folder: str, stems: Sequence[str]) -> Path:
    """The first existing file of ``root/folder/stem`` for each stem.

    Raises:
        DataError: naming the data set, the folder and every file looked for.
    """
    for stem in stems:
        path = root / folder / stem
        if path.is_file():
            return path
    raise missing(name, root / folder, stems)


def missing(name: str, folder: Path, files: Sequence[str], hint: str = "") -> DataError:
    """The error for a set that is not there: folder, files, and how to point elsewhere."""
    return DataError(
        f"data set {name!r}: looked in {folder} for {' or '.join(files)} and found none; "
        f"{hint or 'put the files there'}, or name another folder with --data-dir or ${ENVIRONMENT}"
    )
