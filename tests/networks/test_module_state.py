"""What counts as a change of a module, and that what is run gets values of its own."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from admm_lip.networks.chain import read_network
from admm_lip.networks.live_check import _inputs
from admm_lip.networks.module_state import _frozen

UNLIKE: list[Any] = [
    *(True, 1, 1.0, -1.0, 0.0, -0.0, 1j, float("nan"), None, "", "1", b"1", (), [], {}, set()),
    *(OrderedDict(), (1,), [1], [1.0], {1: 2}, {1: 2.0}, [[]], [()], np.ones(1), np.ones((1, 1))),
]


@pytest.mark.parametrize("k", range(len(UNLIKE)))
def test_a_value_equals_itself_and_nothing_else(k: int) -> None:
    frozen = [_frozen(value) for value in UNLIKE]
    assert [j for j, other in enumerate(frozen) if other == _frozen(UNLIKE[k])] == [k]


def test_what_is_put_into_an_empty_list_is_seen() -> None:
    held: list[Any] = []
    before = _frozen(held)
    held.append(0)
    assert _frozen(held) != before


def test_layers_that_work_in_place_leave_the_inputs_that_are_kept() -> None:
    before = [x.clone() for x in _inputs((3,))]
    for _ in range(2):
        model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2), nn.ReLU(inplace=True))
        network = read_network(model.double())
        assert [spec.kind for spec in network.layers] == ["relu", "linear", "relu"]
        assert all(map(torch.equal, _inputs((3,)), before))
