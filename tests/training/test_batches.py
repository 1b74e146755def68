"""The stream of batches: complete, reproducible, enterable anywhere; and what it refuses."""

from itertools import chain

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from admm_lip.training.batches import as_batches, check_labels

X = torch.arange(10, dtype=torch.float32)[:, None]
Y = torch.arange(10)
SOURCES = {
    "tensors": (X, Y),
    "dataset": TensorDataset(X, Y),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True),
    "seeded loader": DataLoader(
        TensorDataset(X, Y), batch_size=3, shuffle=True, generator=torch.Generator()
    ),
}


def labels(batches, seed: int, start: int = 0) -> list[list[int]]:
    return [y.tolist() for _, y in batches.epoch(seed, start)]


@pytest.mark.parametrize("source", SOURCES)
def test_an_epoch_sees_every_sample_once_in_an_order_the_seed_gives(source: str) -> None:
    batches = as_batches(SOURCES[source], 3)
    first = labels(batches, 5)
    assert sorted(chain.from_iterable(first)) == list(range(10))
    assert len(first) == len(batches) == 4
    torch.rand(7)  # what else draws random numbers does not matter
    assert labels(batches, 5) == first
    assert labels(batches, 6) != first


@pytest.mark.parametrize("source", SOURCES)
def test_an_epoch_entered_late_continues_where_it_was_left(source: str) -> None:
    batches = as_batches(SOURCES[source], 3)
    assert labels(batches, 5, start=2) == labels(batches, 5)[2:]


@pytest.mark.parametrize("source", SOURCES)
def test_drawing_batches_leaves_the_global_random_state_alone(source: str) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    labels(as_batches(SOURCES[source], 3), 5)
    assert torch.equal(torch.rand(1), expected)


def test_tensors_come_with_their_row_numbers_and_a_loader_with_none() -> None:
    known = as_batches((X, Y), 3)
    assert [rows.tolist() for rows in known.rows(5, 1)] == labels(known, 5, start=1)
    unknown = as_batches(SOURCES["loader"], 3)
    pairs = list(zip(unknown.epoch(5, 0), unknown.rows(5, 0), strict=False))
    assert [rows for _, rows in pairs] == [None] * 4


def test_inputs_and_targets_stay_together() -> None:
    for x, y in as_batches((X, Y), 3).epoch(1, 0):
        assert torch.equal(x[:, 0].long(), y)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X[:0], Y[:0]), "expected at least one sample, got none"),
        ((X, Y[:4]), "expected as many targets as inputs, got 4 and 10"),
        ((X / 0.0, Y), "the inputs hold a value that is NaN or infinite"),
        ((X, X * float("nan")), "the targets hold a value that is NaN or infinite"),
    ],
)
def test_bad_data_is_refused(data, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_batches(data, 3)


def test_data_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a DataLoader, a Dataset or a pair"):
        as_batches("digits", 3)


def test_labels_outside_the_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"class labels in 0..4 .* got labels from 0 to 9"):
        check_labels(Y, 5)
    with pytest.raises(ValueError, match="got labels from -1 to 1"):
        check_labels(torch.tensor([-1, 1]), 5)
