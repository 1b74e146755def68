"""Data sets by name: one table, one loader each, one frozen :class:`DataSet` out.

To add a set, write a loader ``(name, root) -> DataSet`` and add a row to ``_LOADERS``.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

from .cifar import load_cifar10
from .dataset import DataError, DataSet, Pair, Scaling, Task, check_pair
from .files import data_folder
from .folders import load_folder
from .idx import load_fashion, load_mnist, load_mnist14
from .small import load_digits, load_toy2d
from .table import TableOptions, load_table

__all__ = [
    "DataError",
    "DataSet",
    "Pair",
    "Scaling",
    "TableOptions",
    "Task",
    "check_pair",
    "data_names",
    "load_data",
]

_LOADERS: dict[str, Callable[[str, Path], DataSet]] = {
    "digits": load_digits,
    "toy2d": load_toy2d,
    "mnist14": load_mnist14,
    "mnist": load_mnist,
    "fashion": load_fashion,
    "cifar10": load_cifar10,
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
        path = Path(name.removeprefix(_TABLE)).expanduser()
        return load_table(path, table or TableOptions())
    if name.startswith(_FOLDER):
        return load_folder(name, Path(name.removeprefix(_FOLDER)).expanduser())
    if name not in _LOADERS:
        near = difflib.get_close_matches(name, _LOADERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"data: expected one of {', '.join(_LOADERS)}, csv:FILE or images:FOLDER, "
            f"got {name!r}{hint}"
        )
    return _LOADERS[name](name, data_folder(data_dir))
