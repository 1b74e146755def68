"""The stream of batches: complete, reproducible, enterable anywhere; and what it refuses."""

from itertools import chain

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from admm_lip.training.batches import Batches, as_batches

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


MODEL = torch.nn.Linear(1, 10)


def batches_of(data: object, loss: object = "auto", **more: object) -> Batches:
    return as_batches(data, 3, MODEL, loss, **more)


def labels(batches, seed: int, start: int = 0) -> list[list[int]]:
    return [y.tolist() for _, y in batches.epoch(seed, start)]


@pytest.mark.parametrize("source", SOURCES)
def test_an_epoch_sees_every_sample_once_in_an_order_the_seed_gives(source: str) -> None:
    batches = batches_of(SOURCES[source])
    first = labels(batches, 5)
    assert sorted(chain.from_iterable(first)) == list(range(10))
    assert len(first) == len(batches) == 4
    torch.rand(7)  # what else draws random numbers does not matter
    assert labels(batches, 5) == first
    assert labels(batches, 6) != first


@pytest.mark.parametrize("source", SOURCES)
def test_an_epoch_entered_late_continues_where_it_was_left(source: str) -> None:
    batches = batches_of(SOURCES[source])
    assert labels(batches, 5, start=2) == labels(batches, 5)[2:]


@pytest.mark.parametrize("source", SOURCES)
def test_drawing_batches_leaves_the_global_random_state_alone(source: str) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    labels(batches_of(SOURCES[source]), 5)
    assert torch.equal(torch.rand(1), expected)


def test_tensors_come_with_their_row_numbers_and_a_loader_with_none() -> None:
    known = batches_of((X, Y))
    assert [rows.tolist() for rows in known.rows(5, 1)] == labels(known, 5, start=1)
    unknown = batches_of(SOURCES["loader"])
    pairs = list(zip(unknown.epoch(5, 0), unknown.rows(5, 0), strict=False))
    assert [rows for _, rows in pairs] == [None] * 4


def test_inputs_and_targets_stay_together() -> None:
    for x, y in batches_of((X, Y)).epoch(1, 0):
        assert torch.equal(x[:, 0].long(), y)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X[:0], Y[:0]), "expected at least one sample, got none"),
        ((X, Y[:4]), "expected as many targets as inputs, got 4 and 10"),
        ((X / 0.0, Y), "data, inputs: expected finite numbers, got .* in row 0"),
        ((X, X * float("nan")), "data, targets: expected finite numbers, got .* in row 0"),
        ((X, 2 * Y.clamp(min=1)), "data, targets: expected 10 classes, .* got 9 different labels"),
    ],
)
def test_bad_data_is_refused(data, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches_of(data)


def test_data_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a DataLoader, a Dataset or a pair"):
        batches_of("digits")
