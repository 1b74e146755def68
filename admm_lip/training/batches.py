"""The training data as one stream of batches that can be entered at any step.

A run that was stopped in the middle of an epoch continues with the very batches it would have
seen: the order depends on the seed and the epoch alone.  Whatever form the data have, a batch is a
pair of tensors as the network and its loss take them (``reading.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from ..settings import COUNT
from .reading import Batch, Reading, reading_of

# From a batch of any kind, with what to call it in errors, to its inputs and targets.
Unpack = Callable[[str, Any], tuple[Any, Any]]


class Batches(Protocol):
    """What the training loop needs of its data."""

    @property
    def reading(self) -> Reading:
        """How inputs and targets were read."""
        ...

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
    reading: Reading

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
    """A user's DataLoader: its own sampler and collation, its random draws seeded per epoch.

    Attributes:
        loader: of the user.
        unpack: from its batches to pairs.
        steps: batches of an epoch.
        reading: of every pair.
    """

    loader: DataLoader[Any]
    unpack: Unpack
    steps: int
    reading: Reading

    def __len__(self) -> int:
        return self.steps

    def epoch(self, seed: int, start: int) -> Iterator[Batch]:
        """The loader's batches, read and checked, each under its number in the epoch.

        Raises:
            ValueError, TypeError: naming the batch that cannot be read, or that is missing.
        """
        number = start
        for raw in islice(draws(self.loader, seed, start), self.steps - start):
            number += 1
            name = _batch_name(number)
            yield self.reading.pair(name, *self.unpack(name, raw))
        if number < self.steps:
            raise ValueError(
                f"data: expected {self.steps} batches in an epoch, got {number}; give steps=, the "
                "number of batches there are"
            )

    def rows(self, seed: int, start: int) -> Iterator[None]:
        """``None`` without end: a loader hands over samples without their numbers."""
        return repeat(None)


def draws(loader: DataLoader[Any], seed: int, start: int) -> Iterator[Any]:
    """Iterate the loader under a seed of its own; skipped batches are drawn and dropped."""
    if loader.generator is not None:
        loader.generator.manual_seed(seed)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    iterator = iter(loader)
    for _ in range(start):
        next(iterator, None)
    first = list(islice(iterator, 1))  # the order is drawn by now
    torch.set_rng_state(state)
    yield from first
    yield from iterator


def as_batches(
    data: Any,
    batch_size: int,
    model: nn.Module,
    loss: Any = "auto",
    *,
    batch: Callable[[Any], Any] | None = None,
    steps: int | None = None,
    classes: Sequence[Any] | None = None,
) -> Batches:
    """The stream of ``data``, read as ``model`` and ``loss`` take them.

    Args:
        data: a DataLoader, a Dataset, or a pair ``(inputs, targets)`` of tensors, NumPy arrays,
            data frames, series or lists.  What is a stream already stays as it is.
        batch_size: of everything but a DataLoader.
        model: that is trained; it is run once on two rows.
        loss: as in ``TrainConfig`` or a callable: whether targets are classes or numbers.
        batch: ``batch(item) -> (inputs, targets)`` for what a DataLoader yields, where that is
            something else than such a pair.
        steps: batches of an epoch, needed where a DataLoader does not know its length.
        classes: labels in the order of the outputs; ``None`` finds them in data in memory.

    Raises:
        ValueError, TypeError: naming what cannot be read, and what to do.
    """
    if isinstance(data, (TensorBatches, LoaderBatches)):
        return data
    if batch is not None and not callable(batch):
        raise TypeError(f"batch: expected a function of a batch, got {type(batch).__name__}")
    if type(data) is TensorDataset and len(data.tensors) == 2 and batch is None and steps is None:
        data = data.tensors
    if isinstance(data, Dataset):
        data = _loader(data, batch_size)
    if isinstance(data, DataLoader):
        return _loader_batches(data, _unpacked_by(batch), steps, model, loss, classes)
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise TypeError(
            "data: expected a DataLoader, a Dataset or a pair (inputs, targets) of arrays, "
            f"got {_described(data)}; {_HINT}"
        )
    if batch is not None or steps is not None:
        raise TypeError("batch, steps: go with a Dataset or a DataLoader, got a pair of arrays")
    inputs, targets = data
    reading = reading_of("data", model, inputs, targets, loss, classes, whole=True)
    return TensorBatches(*reading.pair("data", inputs, targets), batch_size, reading)


_HINT = (
    "take both from a data frame by (df[features], df[target]), from a dict of arrays by their "
    "keys, and put other streams into a DataLoader"
)


def _loader(data: Dataset[Any], batch_size: int) -> DataLoader[Any]:
    streamed = isinstance(data, IterableDataset)
    if isinstance(data, Sized) and not streamed:
        _check_not_empty(len(data))
    return DataLoader(data, batch_size=batch_size, shuffle=not streamed)


def _loader_batches(
    loader: DataLoader[Any],
    unpack: Unpack,
    steps: int | None,
    model: nn.Module,
    loss: Any,
    classes: Sequence[Any] | None,
) -> LoaderBatches:
    _check_whole(loader)
    count = _batches_of(loader) if steps is None else COUNT.read("steps", steps)
    _check_not_empty(count)
    first = list(islice(draws(loader, 0, 0), 1))
    _check_not_empty(len(first))
    name = _batch_name(1)
    inputs, targets = unpack(name, first[0])
    reading = reading_of(name, model, inputs, targets, loss, classes, whole=False)
    return LoaderBatches(loader, unpack, count, reading)


def _check_whole(loader: DataLoader[Any]) -> None:
    """Refuse what hands a process a part of the rows: every batch is shared out among them here."""
    for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
        if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
            raise ValueError(
                f"data: expected a DataLoader of all rows, got the part of a {_described(sampler)} "
                f"(rank {sampler.rank} of {sampler.num_replicas}); under DistributedDataParallel "
                "each process takes its rows of every batch by itself: give all of them the loader "
                "without it, shuffle=True, its batch size that of all processes together"
            )


def _batches_of(loader: DataLoader[Any]) -> int:
    try:
        return len(loader)
    except TypeError:
        raise ValueError(
            "steps: expected the number of batches in an epoch, since the stream does not know its "
            "length, got None; give steps=, or the dataset a __len__"
        ) from None


def _unpacked_by(batch: Callable[[Any], Any] | None) -> Unpack:
    """A batch as a pair: by the user's function, or as it is."""

    def unpack(name: str, item: Any) -> tuple[Any, Any]:
        pair = item if batch is None else batch(item)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            by = "" if batch is None else " from batch(...)"
            raise TypeError(
                f"{name}: expected a pair (inputs, targets), got {_described(pair)}{by}; give "
                "batch=, a function from such a batch to the pair"
            )
        return pair[0], pair[1]

    return unpack


def _described(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(repr, list(value)[:8]))}"
    return type(value).__name__


def _batch_name(number: int) -> str:
    return f"data, batch {number}"


def _check_not_empty(count: int) -> None:
    if count == 0:
        raise ValueError("data: expected at least one sample, got none; check where they come from")
