"""Every number of a run reaches a logger, whatever the logger is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from admm_lip import LogTo, TrainConfig, TrainResult, train
from admm_lip.research.comparators.nominal import Nominal

Rows = list[tuple[str, float, int]]


class Writer:
    """A stand-in for TensorBoard's writer."""

    def __init__(self) -> None:
        self.rows: Rows = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        assert type(scalar_value) is float
        self.rows.append((tag, scalar_value, global_step))


def trained(logger: LogTo, *, enforced: bool = True) -> TrainResult:
    x = torch.rand(64, 4)
    data = (x, (x[:, 0] > 0.5).long())
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    bound, method = (1.0, None) if enforced else (None, Nominal())
    config = TrainConfig(bound=bound, epochs=3)
    return train(
        net, data, config, method=method, validation=data, callbacks=[logger], progress=False
    )


def stated(result: TrainResult, prefix: str = "") -> Rows:
    return [
        (prefix + name, value, row["step"])
        for row in result.history
        for name, value in row.items()
        if not isinstance(value, str) and name != "step"
    ]


@pytest.mark.parametrize("enforced", [True, False])
def test_a_writer_gets_the_history(enforced: bool) -> None:
    writer = Writer()
    result = trained(LogTo(writer, prefix="train/"), enforced=enforced)
    assert writer.rows == stated(result, "train/")
    names = {tag for tag, _, _ in writer.rows}
    assert {"train/loss", "train/validation_loss", "train/validation_accuracy"} <= names
    assert ("train/lip" in names) == enforced


def test_a_function_does_too() -> None:
    rows: Rows = []
    result = trained(LogTo(lambda name, value, step: rows.append((name, value, step))))
    assert rows == stated(result)


def test_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^logger: expected a function .*, got str$"):
        LogTo("runs/")
