"""Optimizers and schedules by name."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from admm_lip.training.optimize import (
    OPTIMIZERS,
    SCHEDULES,
    make_optimizer,
    reads_value,
    schedule_of,
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends_a_quadratic(name: str) -> None:
    x = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make_optimizer(name, [x], 0.05)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = x.square().sum()
        value.backward()
        return value

    for _ in range(20):
        optimizer.step(closure)
    assert float(x.detach().square().sum()) < 5.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_start_at_one_and_never_rise(name: str) -> None:
    factors = [schedule_of(name)(k / 100) for k in range(100)]
    assert factors[0] == 1.0
    assert all(a >= b > 0 for a, b in pairwise(factors))


def test_the_schedules_have_the_corners_they_state() -> None:
    for progress, factor in ((0.39, 1.0), (0.7, (1 + 1 / 400) / 2), (1.0, 1 / 400)):
        assert schedule_of("hold_then_linear")(progress) == pytest.approx(factor)
    for progress, factor in ((0.39, 1.0), (0.8, 1 / 20), (0.6, (1 + 1 / 20) / 2)):
        assert schedule_of("hold_then_decay")(progress) == pytest.approx(factor)
    assert schedule_of("hold_then_decay")(1.0) == pytest.approx(1 / 400)


def test_only_a_line_search_reads_the_value_of_its_closure() -> None:
    weight = nn.Parameter(torch.ones(2))
    reading = {name for name in OPTIMIZERS if reads_value(make_optimizer(name, [weight], 0.1))}
    assert reading == {"lbfgs"}


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="optimizer: expected one of adam, adamw"):
        make_optimizer("lion", [], 0.1)
    with pytest.raises(
        ValueError, match="schedule: expected one of hold_then_decay, hold_then_linear"
    ):
        schedule_of("cosine")(0.1)
