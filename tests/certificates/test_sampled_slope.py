"""The search for steep points: a true lower bound, of any batch size, and seeded."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from admm_lip.certificates import sampled_slope as module
from admm_lip.certificates.sampled_slope import sampled_slope
from admm_lip.networks.chain import read_network


def test_an_affine_map_has_its_norm() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(7, 4)
    network = read_network(nn.Sequential(layer))
    norm = float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
    assert norm * (1.0 - 2e-9) <= sampled_slope(network, network.chain()) <= norm


def test_the_steep_piece_of_a_line_is_found() -> None:
    # slope 1 left of 0, -4 on [0, 0.1], 6 beyond: found by moving, not by luck
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    model[0].weight.data = torch.tensor([[-1.0], [1.0], [1.0]])
    model[0].bias.data = torch.tensor([0.0, 0.0, -0.1])
    model[2].weight.data = torch.tensor([[-1.0, -4.0, 10.0]])
    network = read_network(model)
    assert sampled_slope(network, network.chain()) == pytest.approx(6.0, rel=1e-6)


@pytest.mark.parametrize("entries", [1, 200, 5_000, 2**23])
def test_every_batch_size_gives_a_lower_bound_and_the_same_one_again(
    entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_BATCH_ENTRIES", entries)
    torch.manual_seed(1)
    network = read_network(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)))
    chain = network.chain()
    found = sampled_slope(network, chain)
    product = math.prod(
        float(torch.linalg.matrix_norm(torch.from_numpy(w), 2)) for w in chain.weights
    )
    assert 0.2 * product < found <= product
    assert sampled_slope(network, chain) == found
