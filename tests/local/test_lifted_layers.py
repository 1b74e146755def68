"""Graphs of convolutions as chains of wired operators: against matrices, and against samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from local_nets import inside
from torch import Tensor, nn

from admm_lip.foreign.open import network_of
from admm_lip.local import LocalConfig, certify_local, curved_layers, verify_local
from admm_lip.local.wired_operator import Wired
from admm_lip.networks.network import Network
from admm_lip.networks.sorting_torch import MaxMin

SHAPE = 2, 6, 6
QUICK = [Phase.explicit, Phase.reuse, Phase.generate]
ACTS = {"relu": nn.ReLU, "leaky": nn.LeakyReLU, "max_min": MaxMin, "tanh": nn.Tanh}


class Block(nn.Module):
    """How a value x goes on: ``norm(W_1 x)``, an activation but for ``2``, ``W_2``, and a join.

    ``+`` adds x, ``d`` adds it twice, ``c`` stands it beside, ``s`` and ``2`` have stride 2 and add
    a shortcut of stride 2, ``p`` adds an average.
    """

    def __init__(self, join: str, width: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        stride = 2 if join in "s2p" else 1
        self.join, self.out = join, 4 + (width if join == "c" else 0)
        self.one, self.two = (
            nn.Conv2d(width, 4, 3, stride, 1),
            nn.Conv2d(4, 4, (3, 1), padding=(1, 0)),
        )
        self.norm, self.act = nn.BatchNorm2d(4), nn.Identity() if join == "2" else act()
        self.shortcut: nn.Module = nn.Identity()
        if join == "p":
            self.shortcut = nn.AvgPool2d(2)
        if join in "s2p" or (width != 4 and join != "c"):
            plain = nn.Conv2d(width, 4, 1, 1 if join == "p" else stride)
            self.shortcut = nn.Sequential(self.shortcut, plain) if join == "p" else plain

    def forward(self, x: Tensor) -> Tensor:
        y, short = self.two(self.act(self.norm(self.one(x)))), self.shortcut(x)
        if self.join == "c":
            return torch.cat([short, y], dim=1)
        return y + short + short if self.join == "d" else y + short


def graph(joins: str, kind: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    width, size = 4, SHAPE[1]
    layers: list[nn.Module] = [nn.Conv2d(SHAPE[0], width, 3, padding=1), ACTS[kind]()]
    for join in joins:
        block = Block(join if size % 2 == 0 or join not in "s2p" else "+", width, ACTS[kind])
        width, size = block.out, size // 2 if block.join in "s2p" else size
        layers += [block, ACTS[kind]()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size**2, 3)).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
    return model.eval().requires_grad_(False)


def read(model: nn.Module, formed: bool, monkeypatch: pytest.MonkeyPatch) -> Network:
    monkeypatch.setattr(curved_layers, "_FORMED", 10**9 if formed else 0)
    return network_of(model, SHAPE)


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


GRAPHS = {"joins": st.text("+dcs2p", min_size=1, max_size=2), "kind": st.sampled_from([*ACTS])}


@settings(max_examples=8, deadline=None, phases=QUICK)
@given(seed=st.integers(0, 10**6), **GRAPHS)
def test_layers_compute_the_graph_and_are_its_matrices(
    seed: int, joins: str, kind: str, patch: pytest.MonkeyPatch
) -> None:
    model = graph(joins, kind, seed % 97)
    network = read(model, False, patch)
    layers, x = curved_layers.curved_layers(network), torch.randn(3, *SHAPE).double()
    value, chain = x, network.chain()
    assert any(isinstance(layer.operator, Wired) for layer in layers)
    for layer, matrix, bias in zip(layers, chain.weights, chain.biases, strict=True):
        operator, exact = layer.operator, torch.from_numpy(np.asarray(matrix))
        scale = float(exact.abs().max())
        assert torch.allclose(operator.dense(), exact, atol=1e-13 * scale)
        assert torch.allclose(layer.bias, torch.from_numpy(bias), atol=1e-13)
        v = torch.randn(2, operator.size_in).double()
        u = torch.randn(2, operator.size_out).double()
        assert torch.allclose(layer.rows_back(u[None])[0], u @ exact, atol=1e-12 * scale)
        product = operator.forward(v.view(-1, *operator.shape_in)).flatten(1)
        assert torch.allclose(product, v @ exact.T, atol=1e-12 * scale)
        assert bool((layer.absolute(v.abs()) >= v.abs() @ exact.abs().T * (1.0 - 1e-12)).all())
        marks = (torch.rand(2, operator.size_in) < 0.7).double()
        lengths = (exact * marks[:, None]).norm(dim=2)
        assert bool((layer.row_lengths(marks) >= lengths * (1.0 - 1e-14)).all())
        assert torch.allclose(layer.row_lengths(marks), lengths, rtol=1e-7, atol=1e-9)
        value = layer.affine(value)
        value = value if layer.activation is None else layer.activation.apply(value)
    assert torch.allclose(value, model(x), atol=1e-12)


@settings(max_examples=6, deadline=None, phases=QUICK)
@given(seed=st.integers(0, 10**6), **GRAPHS)
def test_bounds_are_those_of_matrices_and_never_above_samples(
    seed: int, joins: str, kind: str, patch: pytest.MonkeyPatch
) -> None:
    model = graph(joins, kind, seed % 97)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, *SHAPE, generator=generator).double()
    y, radius = model(x).argmax(1), 10.0 ** (-2.0 * torch.rand(3, generator=generator).double())
    config = LocalConfig("quadratic", norm="l2" if seed % 2 else "linf", input_scale=0.5)
    margins = [
        certify_local(read(model, formed, patch), x, radius, y, config=config).margin
        for formed in (False, True)
    ]
    assert torch.allclose(*margins, rtol=1e-5, atol=1e-7)
    directions = inside(torch.zeros_like(x).flatten(1), torch.ones(3), 300, seed).double()
    if config.norm == "linf":
        directions = directions.sign()
    moved = x + 2.0 * (directions * radius[:, None]).view(-1, *x.shape)
    out = model(moved.flatten(0, 1)).view(-1, 3, 3)
    least = (out.gather(2, y.expand(len(out), 3)[..., None]) - out).amin(dim=0)
    asked = torch.arange(3) != y[:, None]
    assert bool((margins[0] <= least + 1e-12)[asked].all())


@pytest.mark.parametrize("kind", ["relu", "max_min"])
def test_what_is_claimed_of_a_residual_network_is_checked(kind: str) -> None:
    model = graph("+s", kind, 3)
    x = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    y, radius = model(x).argmax(1), torch.logspace(-2.0, 0.0, 6).double()
    found = certify_local(model, x, radius, y, config=LocalConfig("tuned", steps=5))
    assert bool(found.robust[0]) and not bool(found.robust[-1])
    verify_local(found, model)
