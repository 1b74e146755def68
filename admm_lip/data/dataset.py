"""The frozen data set every loader returns, and the checks that make it trustworthy."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..units import Units
from .options import DataError as DataError
from .options import Task as Task

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Training and test tensors with what the rest of the package must know of them.

    Attributes:
        train: ``(x, y)``: float32 ``(n, d)``, rows flattened in torch's c, h, w order; int64
            ``(n,)`` class labels, or float32 ``(n, m)`` regression targets.
        test: the same for the test set; never used in training.
        name: the name it was asked for by.
        task: ``"classification"`` or ``"regression"``.
        n_classes: number of classes, 0 for regression.
        input_range: smallest and largest value an input can take (for images the pixel range; for
            tables the range seen in training, in standardised units).
        shape: shape of one input before flattening, ``(d,)`` or ``(channels, height, width)``.
        units: of a table's file: its standardisation, and the names of columns and classes; else
            ``None``.
        dropped: columns of a table that are no features.

    Raises:
        DataError: on empty data, NaN or infinite values, labels out of range, wrong shapes, and
            pixels outside ``input_range``.

    Example:
        >>> from admm_lip.data import load_data
        >>> digits = load_data("digits")
        >>> digits.n_features, digits.n_classes, digits.input_range
        (64, 10, (0.0, 1.0))
    """

    train: Pair
    test: Pair
    name: str
    task: Task
    n_classes: int
    input_range: tuple[float, float]
    shape: tuple[int, ...]
    units: Units | None = None
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part, pair in (("train", self.train), ("test", self.test)):
            where = f"data set {self.name!r}, {part}"
            check_pair(where, pair, self.task, self.n_classes)
            if pair[0][0].numel() != math.prod(self.shape):
                raise DataError(
                    f"{where}: expected inputs of shape {self.shape}, "
                    f"got {tuple(pair[0].shape[1:])}"
                )
            if len(self.shape) == 3:
                _check_range(where, pair[0], self.input_range)

    @property
    def n_features(self) -> int:
        """Number of input features ``d``."""
        return math.prod(self.shape)

    @property
    def n_outputs(self) -> int:
        """Width of the output a network needs: classes, or regression targets."""
        return self.n_classes or int(self.train[1].shape[1])

    def as_images(self) -> DataSet:
        """The same data with inputs of shape ``(n, *shape)``, as convolutions want them."""
        return replace(
            self,
            train=(self.train[0].reshape(-1, *self.shape), self.train[1]),
            test=(self.test[0].reshape(-1, *self.shape), self.test[1]),
        )

    def split(self, validation: float, seed: int = 0) -> DataSet:
        """Hold out a shuffled part of the training set, for tuning that never sees the test set.

        Args:
            validation: fraction of the training rows to hold out, in (0, 1).
            seed: of the shuffle; files are often sorted by label.

        Returns:
            A data set whose ``test`` is the held-out part.  The original test set is not in it.

        Raises:
            DataError: if either side would be empty.

        Example:
            >>> from admm_lip.data import load_data
            >>> part = load_data("digits").split(validation=0.2)
            >>> len(part.train[1]) + len(part.test[1])
            1437
        """
        count = len(self.train[1])
        held = round(count * validation) if 0.0 < validation < 1.0 else 0
        if not 0 < held < count:
            raise DataError(
                f"validation: expected a fraction in (0, 1) that leaves rows on both sides of "
                f"{count}, got {validation!r}"
            )
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        x, y = self.train
        return replace(
            self,
            train=(x[order[held:]], y[order[held:]]),
            test=(x[order[:held]], y[order[:held]]),
        )


def check_pair(where: str, pair: Pair, task: Task, n_classes: int) -> None:
    """Raise :class:`DataError` unless ``pair`` is usable: rows, dtypes, finite values, labels.

    Args:
        where: what to call the pair in an error, for example ``"data set 'digits', train"``.
        pair: ``(x, y)``; ``x`` has one row per example.
        task: decides what ``y`` must be.
        n_classes: labels must lie in ``0 .. n_classes - 1``.
    """
    x, y = pair
    if len(x) == 0:
        raise DataError(f"{where}: expected at least one row, got none")
    if len(x) != len(y):
        raise DataError(f"{where}: expected as many targets as inputs, got {len(y)} and {len(x)}")
    if x.dtype != torch.float32 or x.ndim < 2:
        raise DataError(
            f"{where}: expected float32 inputs with one row per example, "
            f"got {x.dtype} of shape {tuple(x.shape)}"
        )
    _check_finite(f"{where}: inputs", x)
    if task == "classification":
        _check_labels(where, y, n_classes)
    else:
        _check_targets(where, y)


def _check_labels(where: str, y: Tensor, n_classes: int) -> None:
    if n_classes < 2:
        raise DataError(
            f"{where}: n_classes: expected at least 2 for classification, got {n_classes}"
        )
    if y.dtype != torch.int64 or y.ndim != 1:
        raise DataError(
            f"{where}: expected int64 class labels of shape (n,), "
            f"got {y.dtype} of shape {tuple(y.shape)}"
        )
    outside = ((y < 0) | (y >= n_classes)).nonzero()
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"{where}: labels: expected integers in 0..{n_classes - 1}, "
            f"got {int(y[row])} in row {row} ({len(outside)} such rows); fix or drop those rows"
        )


def _check_targets(where: str, y: Tensor) -> None:
    if y.dtype != torch.float32 or y.ndim != 2:
        raise DataError(
            f"{where}: expected float32 regression targets of shape (n, m), "
            f"got {y.dtype} of shape {tuple(y.shape)}"
        )
    _check_finite(f"{where}: targets", y)


def _check_range(where: str, x: Tensor, input_range: tuple[float, float]) -> None:
    low, high = input_range
    outside = ((x < low) | (x > high)).flatten(1).any(dim=1).nonzero()
    if len(outside):
        row = x[int(outside[0])]
        raise DataError(
            f"{where}: expected pixels in [{low:g}, {high:g}], got values from "
            f"{float(row.min()):g} to {float(row.max()):g} in row {int(outside[0])} "
            f"({len(outside)} such rows); scale them, or state their range"
        )


def _check_finite(where: str, values: Tensor) -> None:
    bad = (~torch.isfinite(values)).flatten(1).any(dim=1).nonzero()
    if len(bad):
        raise DataError(
            f"{where}: expected finite numbers, got NaN or infinity in row {int(bad[0])} "
            f"({len(bad)} such rows); fill or drop those rows"
        )
