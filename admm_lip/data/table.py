"""A user's own CSV file, for regression or classification."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..units import Units
from .dataset import DataSet
from .options import Columns, DataError, TableOptions, Task

Array = NDArray[np.float64]


def load_table(path: Path, options: TableOptions) -> DataSet:
    """A CSV file as a data set, features (and regression targets) standardised on training rows.

    The first line may be a header.  Fields are separated by commas, semicolons or tabs; every
    feature must be a number in every row.

    Raises:
        DataError: naming the file, and the line and column of what cannot be used.
    """
    header, rows = _read_rows(path)
    targets = _columns(path, header, "target", options.target) or [len(header) - 1]
    dropped = _columns(path, header, "drop", options.drop)
    features = [c for c in range(len(header)) if c not in (*targets, *dropped)]
    _check_roles(path, header, options.task, features, targets, dropped)
    x = _numbers(path, header, rows, features)
    train, test = _drawn(path, len(rows), options)
    names = [header[c] for c in features]
    if options.task == "classification":
        y, classes = _labels(path, [row[targets[0]] for _, row in rows])
        units = replace(Units.standardising(x[train], input_names=names), classes=tuple(classes))
    else:
        wanted = _numbers(path, header, rows, targets)
        target_names = [header[c] for c in targets]
        units = Units.standardising(x[train], wanted[train], names, target_names)
        y, classes = _tensor(units.target_to_model(wanted)), []
    scaled = _tensor(units.to_model(x))
    return DataSet(
        train=(scaled[train], y[train]),
        test=(scaled[test], y[test]),
        name=f"csv:{path}",
        task=options.task,
        n_classes=len(classes),
        input_range=(float(scaled[train].min()), float(scaled[train].max())),
        shape=(len(features),),
        units=units,
        dropped=tuple(header[c] for c in dropped),
    )


def read_features(path: Path, units: Units, named: bool = True) -> tuple[Array, tuple[str, ...]]:
    """The features of a file's rows, in the order of ``units.input_names``.

    Columns are found by name, in any order; a file without a header, or with features that have
    no names (``named=False``), must hold exactly the features, in their order.

    Returns:
        float64 ``(rows, features)``, and the names of the columns that were left out.

    Raises:
        DataError: naming the columns that are missing, or line and column of what is no number.
    """
    header, rows = _read_rows(path)
    if not rows:
        raise DataError(f"{path}: expected rows of numbers below the header, got none")
    wanted = units.input_names
    if not named and len(header) != len(wanted):
        raise DataError(
            f"{path}: expected {len(wanted)} columns, one for each input of the network, got "
            f"{len(header)}"
        )
    if not named:
        return _numbers(path, header, rows, list(range(len(wanted)))), ()
    if header == [str(c) for c in range(len(header))] and list(wanted) != header:
        if len(header) != len(wanted):
            raise DataError(
                f"{path}: expected a header with the columns {', '.join(wanted)}, or exactly these "
                f"{len(wanted)} columns without one, got {len(header)} columns without a header"
            )
        return _numbers(path, list(wanted), rows, list(range(len(wanted)))), ()
    missing = [name for name in wanted if name not in header]
    if missing:
        raise DataError(
            f"{path}: expected the columns {', '.join(wanted)}; missing: {', '.join(missing)}"
        )
    left_out = tuple(name for name in header if name not in wanted)
    return _numbers(path, header, rows, [header.index(name) for name in wanted]), left_out


_Row = tuple[int, list[str]]


def _read_rows(path: Path) -> tuple[list[str], list[_Row]]:
    """Column names and ``(line number, fields)`` of every line that is not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"csv: {path} cannot be read as UTF-8 text ({error})") from error
    first = text.lstrip().partition("\n")[0]
    reader = csv.reader(text.splitlines(), delimiter=max(",;\t", key=first.count))
    lines = [(reader.line_num, [field.strip() for field in row]) for row in reader if any(row)]
    if not lines:
        raise DataError(f"csv: {path} is empty; expected a header and rows of numbers")
    width = len(lines[0][1])
    for number, row in lines:
        if len(row) != width:
            raise DataError(
                f"{path}, line {number}: expected {width} fields as in the first line, "
                f"got {len(row)}"
            )
    # Only a header has no number in it at all.
    if not any(_is_number(field) for field in lines[0][1]):
        # The index that pandas writes has no name.
        header = [name or f"column {c}" for c, name in enumerate(lines[0][1])]
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise DataError(f"{path}: expected different column names, got {twice[0]!r} twice")
        return header, lines[1:]
    return [str(c) for c in range(width)], lines


def _columns(path: Path, header: Sequence[str], role: str, given: Columns) -> list[int]:
    """Numbers of the columns that were named."""
    if given is None or given == "":
        return []
    if isinstance(given, tuple):
        words: list[str] = [str(g) for g in given]
    else:
        words = [str(given)] if str(given) in header else [w.strip() for w in str(given).split(",")]
    return list(dict.fromkeys(_column(path, header, role, word) for word in words))


def _column(path: Path, header: Sequence[str], role: str, word: str) -> int:
    if word in header:
        return header.index(word)
    number = int(word) if word.lstrip("-").isdigit() else None
    if number is not None and -len(header) <= number < len(header):
        return number % len(header)
    raise DataError(
        f"{role}: expected one of the columns of {path} ({', '.join(header)}) or a number "
        f"below {len(header)}, got {word!r}"
    )


def _check_roles(
    path: Path,
    header: Sequence[str],
    task: Task,
    features: list[int],
    targets: list[int],
    dropped: list[int],
) -> None:
    """Raise :class:`DataError` unless the columns can play their roles."""
    both = [header[c] for c in targets if c in dropped]
    if both:
        raise DataError(f"drop: {both[0]!r} is the target; name another target, or keep it")
    if task == "classification" and len(targets) > 1:
        raise DataError(
            f"target: expected one column of classes, got {', '.join(header[c] for c in targets)}; "
            "several targets go with task regression"
        )
    if not features:
        raise DataError(f"{path}: expected a feature column beside the target, got none")


def _drawn(
    path: Path, count: int, options: TableOptions
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the training rows and of the test rows."""
    order = np.random.default_rng(options.seed).permutation(count)
    held = max(1, round(count * options.test_fraction))
    if held >= count:
        raise DataError(f"{path}: expected at least 2 rows of data, got {count}")
    return order[held:], order[:held]


def _numbers(path: Path, header: Sequence[str], rows: Sequence[_Row], columns: list[int]) -> Array:
    """The chosen columns as float64 ``(n, len(columns))``."""
    values = np.empty((len(rows), len(columns)))
    for i, (line, row) in enumerate(rows):
        for j, column in enumerate(columns):
            if not _is_number(row[column]) or not np.isfinite(float(row[column])):
                raise DataError(
                    f"{path}, line {line}, column {header[column]!r}: expected a finite number, "
                    f"got {row[column]!r}; fill or drop that row"
                )
            values[i, j] = float(row[column])
    return values


def _labels(path: Path, words: list[str]) -> tuple[Tensor, list[str]]:
    """Class numbers ``(n,)``, and the labels, sorted with numbers before words."""
    names = sorted(set(words), key=lambda w: (0, float(w), w) if _is_number(w) else (1, 0.0, w))
    if "" in names:
        raise DataError(f"{path}: a class label is empty; fill or drop that row")
    if len(names) < 2:
        raise DataError(f"{path}: expected at least 2 classes in the target, got {len(names)}")
    if len(names) > max(2, len(words) // 2):
        raise DataError(
            f"{path}: the target has {len(names)} different values in {len(words)} rows, too many "
            "for classes; use task regression, or name the target column"
        )
    number = {name: k for k, name in enumerate(names)}
    return torch.tensor([number[w] for w in words]), names


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
