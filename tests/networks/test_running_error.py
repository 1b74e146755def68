"""Running error bounds of graphs, against rational arithmetic and without any matrix."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from admm_lip import certified_radii, certify
from admm_lip.networks.chain import read_network
from admm_lip.networks.layer_spec import runs_of
from admm_lip.networks.layers import Array
from admm_lip.networks.network import Network
from admm_lip.networks.running_error import FLOAT64, enclosed
from admm_lip.networks.sorting import HALF_ABS
from admm_lip.networks.sorting_torch import MaxMin

PHI: dict[str, Callable[[Fraction], Fraction]] = {
    "relu": lambda v: max(v, Fraction(0)),
    "carried": lambda v: v,
}


class Skips(nn.Module):
    """A convolution, one beside it, their sum and both end to end, a pool and a head."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.activation, self.pool = activation, nn.AvgPool2d(2)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem(x))
        x = torch.cat([x, x + self.branch(x)], dim=1)
        return self.head(self.pool(self.activation(x)).flatten(1))


def exact(network: Network, x: Array) -> list[Fraction]:
    """The chain of the graph in rational arithmetic; short weights leave its matrices exact."""
    chain = network.chain()
    value = [Fraction(v) for v in x.ravel().tolist()]
    for k, (weight, bias) in enumerate(zip(chain.weights, chain.biases, strict=True)):
        rows = zip(weight, bias.tolist(), strict=True)
        value = [
            Fraction(b) + sum(Fraction(w[j]) * value[j] for j in w.nonzero()[0]) for w, b in rows
        ]
        if k < len(chain.activations):
            for run, spec in runs_of(chain.activations[k], len(value)):
                part = value[run]
                if spec.kind == HALF_ABS:
                    half = len(part) // 2
                    value[run] = [*part[:half], *map(abs, part[half:])]
                else:
                    value[run] = [PHI[spec.kind](v) for v in part]
    return value


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("activation", [nn.ReLU(), MaxMin()], ids=str)
def test_enclosures_of_graphs_hold_in_rational_arithmetic(
    activation: nn.Module, scale: float
) -> None:
    torch.manual_seed(0)
    # Weights of 12 bits, whose products and sums in the chain's matrices nothing rounds.
    model = Skips(activation)
    for p in model.parameters():
        p.data = torch.round(p.data * 4096.0) / 4096.0
    network = read_network(model, (2, 4, 4))
    x = scale * torch.randn(3, 2, 4, 4, dtype=torch.float64).numpy()
    off = np.full_like(x, 1e-12 * scale)
    value, error = enclosed(network, x)
    moved, further = enclosed(network, x + off, off)
    assert 0.0 < error.max() < 1e-13 * max(1.0, scale)
    for k in range(len(x)):
        for j, true in enumerate(exact(network, x[k])):
            assert abs(Fraction(value[k, j]) - true) <= Fraction(error[k, j])
            assert abs(Fraction(moved[k, j]) - true) <= Fraction(further[k, j])


def test_what_is_evaluated_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network = read_network(Skips(nn.ReLU()), (2, 4, 4))
    x = np.random.default_rng(0).standard_normal((5, 2, 4, 4))
    whole = enclosed(network, x)
    monkeypatch.setattr("admm_lip.networks.running_error._TOGETHER", 1)
    for one, other in zip(whole, enclosed(network, x), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
    assert [len(part) for part in enclosed(network, x[:0])] == [0, 0]


def test_no_matrix_of_a_convolution_is_formed() -> None:
    """Pairs of 12,800 neurons are sorted, which as a dense matrix would take 1.2 GiB."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 2, 3, padding=1), MaxMin(), nn.AvgPool2d(40), nn.Flatten())
    model = nn.Sequential(*layers, nn.Linear(8, 4))
    certificate = certify(model, (1, 80, 80), structure="torus")
    x = torch.randn(4, 1, 80, 80)
    top = model.double()(x.double()).detach().topk(2, dim=1)
    radii = certified_radii(model, x, top.indices[:, 0], certificate=certificate)
    margin = (top.values[:, 0] - top.values[:, 1]) / (2.0**0.5 * certificate.lip)
    assert bool((radii <= margin * (1.0 + 1e-12)).all())
    torch.testing.assert_close(radii, margin, rtol=1e-9, atol=0.0)


def test_a_stored_number_known_to_an_error_moves_the_outputs() -> None:
    """Batch normalisation's scale is rounded, and the bound covers the exact one."""
    norm = nn.BatchNorm1d(3).eval()
    assert isinstance(norm.running_var, Tensor)
    norm.running_var.data = torch.tensor([3.0, 5.0, 7.0])
    network = read_network(nn.Sequential(norm, nn.Linear(3, 2)).double())
    value, error = enclosed(network, [[1.0, 2.0, 3.0]])
    without = {k: v for k, v in network.arrays.items() if not k.endswith("error")}
    assert len(without) < len(network.arrays)
    _, less = enclosed(Network(network.layers, without, network.input_shape), [[1.0, 2.0, 3.0]])
    assert (error > less + 0.1 * FLOAT64.unit * abs(value)).all()
