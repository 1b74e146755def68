"""The training data as one stream of batches that can be entered at any step.

A run that was stopped in the middle of an epoch continues with the very batches it would have
seen: the order depends on the seed and the epoch alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

Batch = tuple[Tensor, Tensor]


class Batches(Protocol):
    """What the training loop needs of its data."""

    def __len__(self) -> int:
        """Batches per epoch."""
        ...

    def epoch(self, seed: int, start: int) -> Iterator[Batch]:
        """The batches of one epoch from number ``start`` on, in the order that ``seed`` gives."""
        ...

    def rows(self, seed: int, start: int) -> Iterator[Tensor | None]:
        """For each of those batches the numbers of its samples, ``None`` where nobody knows.

        At least as many as there are batches.
        """
        ...


@dataclass(frozen=True, eq=False)
class TensorBatches:
    """Batches cut from two tensors in memory (no per-sample Python)."""

    inputs: Tensor
    targets: Tensor
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def epoch(self, seed: int, start: int) -> Iterator[Batch]:
        """Seeded permutation, cut into batches."""
        for rows in self.rows(seed, start):
            index = rows.to(self.inputs.device)
            yield self.inputs[index], self.targets[index]

    def rows(self, seed: int, start: int) -> Iterator[Tensor]:
        """The pieces of that permutation, int64 on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.inputs), generator=generator)
        yield from torch.split(order, self.batch_size)[start:]


@dataclass(frozen=True, eq=False)
class LoaderBatches:
    """A user's DataLoader: its own sampler and collation, its random draws seeded per epoch."""

    loader: DataLoader[Any]

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, seed: int, start: int) -> Iterator[Batch]:
        """Iterate the loader under a seed of its own; skipped batches are drawn and dropped."""
        if self.loader.generator is not None:
            self.loader.generator.manual_seed(seed)
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        iterator = iter(self.loader)
        for _ in range(start):
            next(iterator, None)
        first = list(islice(iterator, 1))  # the order is drawn by now
        torch.set_rng_state(state)
        for batch in first:
            yield _pair(batch)
        for batch in iterator:
            yield _pair(batch)

    def rows(self, seed: int, start: int) -> Iterator[None]:
        """``None`` without end: a loader hands over samples without their numbers."""
        return repeat(None)


def as_batches(data: Any, batch_size: int) -> Batches:
    """The stream of ``data``: a DataLoader, a Dataset, or a pair of tensors.

    Raises:
        ValueError: empty data, inputs and targets of different length, NaN or infinite values.
        TypeError: anything else.
    """
    if isinstance(data, DataLoader):
        _check_not_empty(len(cast(Sized, data)))
        return LoaderBatches(data)
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        data = data.tensors
    if isinstance(data, Dataset):
        _check_not_empty(len(cast(Sized, data)))
        return LoaderBatches(DataLoader(data, batch_size=batch_size, shuffle=True))
    if isinstance(data, (tuple, list)) and len(data) == 2:
        inputs, targets = torch.as_tensor(data[0]), torch.as_tensor(data[1])
        check_pair(inputs, targets)
        return TensorBatches(inputs, targets, batch_size)
    raise TypeError(
        "data: expected a DataLoader, a Dataset or a pair (inputs, targets), "
        f"got {type(data).__name__}"
    )


def check_pair(inputs: Tensor, targets: Tensor) -> None:
    """Raise ``ValueError`` unless the pair is non-empty, of equal length and finite."""
    if inputs.ndim == 0 or targets.ndim == 0:
        raise ValueError("data: expected tensors whose first axis counts samples, got a scalar")
    _check_not_empty(len(inputs))
    if len(inputs) != len(targets):
        raise ValueError(
            f"data: expected as many targets as inputs, got {len(targets)} and {len(inputs)}"
        )
    for name, values in (("inputs", inputs), ("targets", targets)):
        if values.is_floating_point() and not _all_finite(values):
            raise ValueError(
                f"data: the {name} hold a value that is NaN or infinite; "
                "clean or impute the data before training"
            )


def _all_finite(values: Tensor) -> bool:
    """The sum says it in one pass, unless it overflows."""
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def check_labels(targets: Tensor, n_classes: int) -> None:
    """Raise ``ValueError`` unless integer labels lie in ``0 .. n_classes - 1``."""
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= n_classes:
        raise ValueError(
            f"data: expected class labels in 0..{n_classes - 1} (the model has {n_classes} "
            f"outputs), got labels from {low} to {high}"
        )


def _check_not_empty(count: int) -> None:
    if count == 0:
        raise ValueError("data: expected at least one sample, got none")


def _pair(batch: Any) -> Batch:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(
            f"data: expected each batch to be a pair (inputs, targets), got {type(batch).__name__}"
        )
    inputs, targets = batch
    return inputs, targets
