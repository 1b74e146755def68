"""Data sets by name: one table, one loader each, one frozen :class:`DataSet` out.

To add a set, write a loader ``(name, root) -> DataSet`` and add a row to ``_LOADERS``.
"""

from __future__ import annotations

import difflib
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..lazy import lazily
from .files import data_folder
from .options import DataError, TableOptions, Task

if TYPE_CHECKING:
    from .dataset import DataSet, Pair, check_pair

__all__ = [
    "DataError",
    "DataSet",
    "Pair",
    "TableOptions",
    "Task",
    "check_pair",
    "data_names",
    "load_data",
]

__getattr__, __dir__ = lazily(__name__, dict.fromkeys(("DataSet", "Pair", "check_pair"), "dataset"))

# Name -> module and function of its loader, imported when it is asked for.
_LOADERS = {
    "digits": ("small", "load_digits"),
    "toy2d": ("small", "load_toy2d"),
    "mnist14": ("idx", "load_mnist14"),
    "mnist": ("idx", "load_mnist"),
    "fashion": ("idx", "load_fashion"),
    "cifar10": ("cifar", "load_cifar10"),
}
_TABLE, _FOLDER = "csv:", "images:"


def data_names() -> tuple[str, ...]:
    """The names :func:`load_data` knows, beside ``csv:FILE`` and ``images:FOLDER``."""
    return tuple(_LOADERS)


def load_data(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    table: TableOptions | None = None,
) -> DataSet:
    """Load a data set by name.

    Args:
        name: one of :func:`data_names`, ``csv:FILE``, or ``images:FOLDER`` (a folder per class,
            see ``folders``).
        data_dir: folder of image sets; ``None`` is ``$ADMM_LIP_DATA``, else ``./data``.
        table: how to read a CSV file.

    Returns:
        A :class:`DataSet` of float32 inputs, flattened, and int64 labels or float32 targets.

    Raises:
        DataError: when the name is unknown, or the files are missing or malformed.

    Example:
        >>> from admm_lip.data import load_data
        >>> x, y = load_data("toy2d").train
        >>> tuple(x.shape), tuple(y.shape)
        ((50, 2), (50,))
    """
    if name.startswith(_TABLE):
        from .table import load_table

        path = Path(name.removeprefix(_TABLE)).expanduser()
        return load_table(path, table or TableOptions())
    if name.startswith(_FOLDER):
        from .folders import load_folder

        return load_folder(name, Path(name.removeprefix(_FOLDER)).expanduser())
    if name not in _LOADERS:
        near = difflib.get_close_matches(name, _LOADERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"data: expected one of {', '.join(_LOADERS)}, csv:FILE or images:FOLDER, "
            f"got {name!r}{hint}"
        )
    module, loader = _LOADERS[name]
    found: DataSet = getattr(importlib.import_module(f".{module}", __name__), loader)(
        name, data_folder(data_dir)
    )
    return found
