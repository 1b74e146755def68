"""Data, losses and models with no reading, or two.

The error names the argument, what was expected, what came, and what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from odd_data import CLASSES, CONFIG, FEATURES, ROWS, WORDS, Rows, X, Y, network
from torch import nn
from torch.utils.data import DataLoader

from admm_lip import TrainConfig, train
from admm_lip.research.comparators import METHODS


def late(change: Callable[[Any, Any], tuple[Any, Any]]) -> DataLoader[Any]:
    """Three batches of which the last one is spoilt."""

    def item(row: int) -> tuple[Any, Any]:
        x, y = X[row], int(Y[row])
        return change(x, y) if row == ROWS - 1 else (x, y)

    return DataLoader(Rows(item), batch_size=8)


FRAME = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})
# data, what the error says: argument, expectation, what came, what to do
REFUSED: dict[str, tuple[Any, str]] = {
    "a lone frame": (
        pd.DataFrame(X),
        r"data: expected .* pair \(inputs, targets\).*got DataFrame; .*df\[features\]",
    ),
    "a dict": ({"x": X, "y": Y}, r"data: expected .* got a dict with the keys 'x', 'y'; "),
    "three parts": ((X, X, Y), r"data: expected .* got a tuple of 3; "),
    "a generator": ((b for b in [(X, Y)]), "data: expected .* got generator; .*DataLoader"),
    "too narrow": ((X[:, :3], Y), r"data, inputs: expected .* of 4 .* got .*\(3,\).*; reshape"),
    "one column": ((X[:, 0], Y), r"data, inputs: expected .* rows of 4 .* got .*\(1,\).*; reshape"),
    "words as inputs": (
        (np.full((ROWS, FEATURES), "a"), Y),
        "data, inputs: expected numbers, got words .*; encode",
    ),
    "a column of words": (
        (FRAME, [0, 1]),
        "data, inputs: expected numbers throughout, got 'x' in row 0, column b; drop",
    ),
    "ragged rows": (([[1.0] * 4, [1.0] * 3], [0, 1]), "data, inputs: expected .* got .*; pad"),
    "complex inputs": ((X + 1j, Y), "data, inputs: expected real .* got .*complex.*; convert"),
    "too large for float32": (
        (X.astype(float) * 1e300 + 1e300, Y),
        r"data, inputs in the model's torch.float32: expected finite .* got .*; fill or drop",
    ),
    "NaN": (
        (np.where(X.max() == X, np.nan, X), Y),
        "data, inputs: expected finite .* got .* row .*; fill or drop",
    ),
    "no rows": ((X[:0], Y[:0]), "data, inputs: expected at least one sample, got none"),
    "fewer labels": ((X, Y[:4]), "data: expected as many targets as inputs, got 4 and 24; check"),
    "float labels": (
        (X, Y.astype(float)),
        r"data, targets: expected 3 numbers a row.* got shape \(24,\); .*\.astype\(int\)",
    ),
    "float one-hot": (
        (X, np.eye(CLASSES)[Y]),
        "data, targets: one-hot floats can be classes or numbers; give loss=",
    ),
    "two ones in a row": (
        (X, np.ones((ROWS, CLASSES), dtype=int)),
        r"data, targets: expected one class label per row.* got shape \(24, 3\)",
    ),
    "more classes": (
        (X, np.arange(ROWS) % 4),
        "data, targets: expected 3 classes.* got 4 .*; give the model 4 outputs",
    ),
    "words and numbers": (
        (X, ["cat", 1] * 12),
        "data, targets: expected .* got 1 in row 1|data, targets: expected words .* got 1 .*; make",
    ),
    "a missing label": (
        (X, [None, *Y[1:].tolist()]),
        "data, targets: expected .* got a missing value in row 0; drop",
    ),
    "a dict batch": (
        Rows(lambda i: {"x": X[i], "y": Y[i]}),
        "data, batch 1: expected a pair .* got a dict with the keys 'x', 'y'; give batch=",
    ),
    "a longer batch": (
        Rows(lambda i: (X[i], Y[i], i)),
        "data, batch 1: expected a pair .* got a list of 3; give batch=",
    ),
    "no dataset rows": (Rows(lambda i: X[i], rows=0), "data: expected at least one sample, got"),
    "a late label": (
        late(lambda x, y: (x, 9)),
        r"data, batch 3, targets: expected class labels in 0\.\.2 .* got 9 in row 7 .*; number",
    ),
    "a late NaN": (
        late(lambda x, y: (x * np.nan, y)),
        "data, batch 3, inputs: expected finite .* row 7 .*; fill or drop",
    ),
    "words in a loader": (
        Rows(lambda i: (X[i], str(WORDS[Y[i]]))),
        "data, batch 1, targets: expected numbers of the classes, got words .*; give classes=",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_in_four_parts(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=message):
        train(network(), data, CONFIG, progress=False)


@pytest.mark.parametrize(
    ("targets", "loss", "message"),
    [
        (Y.astype(float), "cross_entropy", r"expected integer class labels, got .*float64.*\.long"),
        (Y % 2, "auto", "integers.* one output can be classes or numbers; give floats"),
        (Y % 2, nn.BCEWithLogitsLoss(), "can be classes or numbers; give floats"),
        (Y % 2, "margin", "loss: 'margin' needs a model of two outputs"),
        (WORDS[Y], "squared_error", "data, targets: expected numbers, got words"),
    ],
)
def test_targets_of_two_readings_are_refused_for_one_output(
    targets: Any, loss: Any, message: str
) -> None:
    outputs = CLASSES if loss == "cross_entropy" else 1
    with pytest.raises((TypeError, ValueError), match=message):
        train(network(outputs), (X, targets), CONFIG, loss, progress=False)


BAD_LOSSES: dict[str, tuple[Any, str]] = {
    "a vector": (lambda o, t: o.square().sum(1), r"loss: expected a scalar, .*\(8,\); return its"),
    "an int": (lambda o, t: 3, "loss: expected a scalar tensor of floats, got int; compute"),
    "nothing": (lambda o, t: None, "loss: expected a scalar tensor of floats, got NoneType; comp"),
    "detached": (lambda o, t: o.mean().detach(), "loss: expected a value with a gradient, got a"),
    "one argument": (lambda o: o.mean(), r"loss: expected a function loss\(outputs, targets\)"),
    "three arguments": (lambda o, t, w: o.mean(), r"got one of \(o, t, w\); fix the other"),
    "another's shape": (nn.MSELoss(), "loss: expected a value for outputs .* and targets"),
    "no such name": ("hinge", "loss: expected one of auto, cross_entropy, .* got 'hinge'"),
    "a number": (3.0, "loss: expected a name or a callable, got float; names are auto"),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("case", BAD_LOSSES)
def test_a_loss_that_cannot_be_minimised_is_named(case: str) -> None:
    loss, message = BAD_LOSSES[case]
    with pytest.raises((TypeError, ValueError), match=message):
        train(network(), (X, Y), CONFIG, loss, progress=False)
    with pytest.raises((TypeError, ValueError), match=message):
        data, method = (X, Y), METHODS["nominal"]()
        train(
            network(),
            data,
            TrainConfig(epochs=1, batch_size=8),
            loss,
            method=method,
            progress=False,
        )


def one_bias() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].bias = model[0].bias
    return model


def two_dtypes() -> nn.Module:
    model = network()
    model[2].double()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (one_bias, "layers 0 and 1 .* share one bias; .*give each its own"),
        (two_dtypes, r"model: expected one dtype, got .*float32 in 0\.weight and .*float64 in 2"),
    ],
)
def test_parameters_that_cannot_move_freely_are_named(
    make: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(make(), (X, Y), CONFIG, progress=False)


def test_an_unknown_optimizer_is_named() -> None:
    config = TrainConfig(bound=1.0, epochs=1, optimizer="adamax")
    with pytest.raises(ValueError, match=r"optimizer: expected one of adam, .* got 'adamax'"):
        train(network(), (X, Y), config, progress=False)
