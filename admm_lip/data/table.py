"""A user's own CSV file, for regression or classification."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .dataset import DataSet, Scaling
from .options import DataError, TableOptions

Array = NDArray[np.float64]


def load_table(path: Path, options: TableOptions) -> DataSet:
    """A CSV file as a data set, features (and regression targets) standardised on training rows.

    The first line may be a header.  Fields are separated by commas, semicolons or tabs; every
    feature must be a number in every row.

    Raises:
        DataError: naming the file, and the line and column of what cannot be used.
    """
    header, rows = _read_rows(path)
    target = _target_column(path, header, options.target)
    features = [c for c in range(len(header)) if c != target]
    if not features:
        raise DataError(f"{path}: expected a feature column beside the target, got one column")
    x = _numbers(path, header, rows, features)
    order = np.random.default_rng(options.seed).permutation(len(rows))
    held = max(1, round(len(rows) * options.test_fraction))
    if held >= len(rows):
        raise DataError(f"{path}: expected at least 2 rows of data, got {len(rows)}")
    test, train = order[:held], order[held:]
    if options.task == "classification":
        y, classes = _labels(path, [row[target] for _, row in rows])
        y_mean, y_std = torch.zeros(1), torch.ones(1)
    else:
        targets = _numbers(path, header, rows, [target])
        y, y_mean, y_std = _standardise(targets, train)
        classes = 0
    scaled, x_mean, x_std = _standardise(x, train)
    return DataSet(
        train=(scaled[train], y[train]),
        test=(scaled[test], y[test]),
        name=f"csv:{path}",
        task=options.task,
        n_classes=classes,
        input_range=(float(scaled[train].min()), float(scaled[train].max())),
        shape=(len(features),),
        scaling=Scaling(x_mean, x_std, y_mean, y_std),
    )


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
        return lines[0][1], lines[1:]
    return [str(c) for c in range(width)], lines


def _target_column(path: Path, header: Sequence[str], target: str | int | None) -> int:
    if target is None:
        return len(header) - 1
    if str(target) in header:
        return header.index(str(target))
    number = int(target) if str(target).lstrip("-").isdigit() else None
    if number is not None and -len(header) <= number < len(header):
        return number % len(header)
    raise DataError(
        f"target: expected one of the columns of {path} ({', '.join(header)}) or a number "
        f"below {len(header)}, got {target!r}"
    )


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


def _labels(path: Path, words: list[str]) -> tuple[Tensor, int]:
    """Class numbers ``(n,)``, labels sorted with numbers before words, and how many there are."""
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
    return torch.tensor([number[w] for w in words]), len(names)


def _standardise(values: Array, train: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """``(values - mean) / std`` in float32 with mean and std of the training rows."""
    mean, std = values[train].mean(axis=0), values[train].std(axis=0)
    # A constant column (up to rounding) becomes 0 and carries no information.
    std = np.where(std > 1e-12 * np.abs(mean), std, 1.0)
    scaled = ((values - mean) / std).astype(np.float32)
    return (
        torch.from_numpy(scaled),
        torch.from_numpy(mean.astype(np.float32)),
        torch.from_numpy(std.astype(np.float32)),
    )


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
