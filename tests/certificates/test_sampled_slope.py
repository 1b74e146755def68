"""The search for steep points: a true lower bound, of any batch size, and seeded."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from admm_lip import certify
from admm_lip.certificates import sampled_slope as module
from admm_lip.certificates.jacobian_field import JacobianField
from admm_lip.certificates.sampled_slope import Sampled, sampled_slope, sampled_slopes
from admm_lip.networks.chain import read_network
from admm_lip.networks.sorting_torch import MaxMin


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


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_side_by_side_every_network_gets_what_it_gets_alone(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TOGETHER", 2**15)  # two of them at a time
    torch.manual_seed(3)
    acts = [
        nn.Tanh(),
        nn.ReLU(),
        nn.Tanh(),
        nn.PReLU(5),
        MaxMin(),
        nn.Tanh(),
        nn.PReLU(5),
        MaxMin(),
    ]
    sampled = []
    for k, act in enumerate(acts):
        width = 6 if isinstance(act, MaxMin) else 5
        model = nn.Sequential(nn.Linear(3, width), act, nn.Linear(width, 2))
        if isinstance(act, nn.PReLU):
            act.weight.data.fill_(0.1 * k)
        network = read_network(model)
        sampled.append(Sampled(network, network.chain()))
    found = sampled_slopes(sampled, norm=norm)
    assert found == pytest.approx([sampled_slope(*one, norm=norm) for one in sampled], rel=1e-9)
    assert len(set(found)) == len(found)


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


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("widths", [(20, 6, 5, 3), (4, 6, 5, 3), (9, 1, 4)])
def test_the_jacobian_of_a_reduced_point_is_that_of_an_input(
    norm: str, widths: tuple[int, ...]
) -> None:
    torch.manual_seed(2)
    layers = [nn.Linear(a, b).double() for a, b in pairwise(widths)]
    model = nn.Sequential(*(part for w in layers for part in (w, nn.Tanh())))[:-1]
    network = read_network(model)
    raw = [w.copy() for w in network.chain().weights]
    raw[0] = raw[0] * np.geomspace(1e-3, 1e3, widths[0])
    field = JacobianField.of(network, network.chain(), raw, norm)
    assert field.points == min(widths[:2])
    point = torch.randn(1, field.points, dtype=torch.float64)
    x = torch.linalg.lstsq(layers[0].weight.detach(), field.weights[0] @ point[0]).solution
    own = torch.autograd.functional.jacobian(model, x) @ torch.diag(
        torch.from_numpy(np.geomspace(1e-3, 1e3, widths[0]))
    )
    found = field.back(torch.eye(widths[-1], dtype=torch.float64), field.slopes(point))
    found = torch.ldexp(found, torch.tensor(field.power))
    if norm == "linf":
        torch.testing.assert_close(found, own)
    torch.testing.assert_close(found @ found.T, own @ own.T)


def test_single_precision_finds_points_that_double_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed, widths in enumerate([(3, 9, 9, 2), (2, 30, 1), (6, 6, 6, 6, 6)]):
        torch.manual_seed(seed)
        parts = [(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(widths)]
        network = read_network(nn.Sequential(*(x for pair in parts for x in pair))[:-1])
        found = sampled_slope(network, network.chain())
        assert 0.0 < found <= certify(network).lip
        with monkeypatch.context() as patch:
            patch.setattr(JacobianField, "rounded", lambda field: field)
            assert found >= 0.9 * sampled_slope(network, network.chain())


@pytest.mark.parametrize("power", [-200, -40, 40, 200])
def test_what_single_precision_cannot_hold_is_searched_in_double(power: int) -> None:
    torch.manual_seed(1)
    widths = (3, 8, 8, 2)
    parts = [(nn.Linear(a, b, bias=False), nn.ReLU()) for a, b in pairwise(widths)]
    model = nn.Sequential(*(x for pair in parts for x in pair))[:-1].double()
    plain = read_network(model)
    for layer in (model[0], model[2]):
        layer.weight.data *= 2.0**power
    network = read_network(model)
    far, near = (JacobianField.of(n, n.chain(), None, "l2") for n in (network, plain))
    assert far.rounded() is far
    assert near.rounded().unit[0].dtype == torch.float32
    found = sampled_slope(network, network.chain()) * 2.0**-power * 2.0**-power
    assert found == pytest.approx(sampled_slope(plain, plain.chain()), rel=0.05)
