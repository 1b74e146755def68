"""Quadratic bounds of networks with skips, sums, concatenations and batch normalisation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local_nets import ACTIVATIONS, OF_WIDTH
from test_quadratic_search import open_pass
from torch import Tensor, nn

from admm_lip.local import LocalConfig, certify_local, verify_local
from admm_lip.local.curved_layers import curved_layers
from admm_lip.local.layers import Layer
from admm_lip.local.metric_search import refined
from admm_lip.local.quadratic_proof import Witness
from admm_lip.local.quadratic_search import searched
from admm_lip.networks.chain import read_network

KINDS = ("relu", "leaky", "tanh", "hardtanh", "clipped", "gelu_tanh")


class Graph(nn.Module):
    """Blocks that add to what they take, or stand beside it."""

    def __init__(self, joins: str, kind: str, inputs: int = 2) -> None:
        super().__init__()
        own, width = OF_WIDTH.get(kind), 4
        self.joins, self.first = joins, nn.Linear(inputs, width)
        self.second, self.third, self.acts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for join in joins:
            self.acts.append(own(width) if own else ACTIVATIONS[kind]())
            self.second.append(nn.Linear(width, width))
            self.third.append(nn.BatchNorm1d(width) if join == "n" else nn.Identity())
            width += width if join == "c" else 0
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Sums ``+`` and ``n`` (normalised), concatenations ``c``."""
        x = self.first(x)
        blocks = zip(self.joins, self.acts, self.second, self.third, strict=True)
        for join, act, second, third in blocks:
            y = third(second(act(x)))
            x = torch.cat([x, y], dim=1) if join == "c" else x + y
        return self.last(x)


def graph(joins: str, kind: str, seed: int, inputs: int = 2) -> Graph:
    torch.manual_seed(seed)
    model = Graph(joins, kind, inputs).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
        if isinstance(module, nn.Linear):
            module.weight.data *= 1.5
    return model.eval()


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    joins=st.text("+nc", min_size=1, max_size=3),
    kind=st.sampled_from(KINDS),
)
def test_nothing_is_proven_above_the_least_value_on_a_grid(
    seed: int, joins: str, kind: str
) -> None:
    random, model = torch.Generator().manual_seed(seed), graph(joins, kind, seed % 97)
    x = (2.0 * torch.rand(3, 2, generator=random) - 1.0).double()
    radius = 10.0 ** (-1.5 * torch.rand(3, generator=random).double())
    passing, rows = open_pass(model, x, radius, LocalConfig())
    items, neurons = torch.tensor([[False, True]] * 3), sum(passing.own.widths)
    witness, found, _ = searched(passing, rows, items, 8)
    _, higher = refined(passing, rows, witness, 4, torch.inf)
    sizes = 10.0 ** (4.0 * torch.rand(2, 3, neurons, generator=random) - 2.0)
    slopes = torch.rand(3, neurons, generator=random) * 2.0 - 0.5
    forged = passing.proven(rows, Witness(items, slopes, *sizes), torch.inf)
    line = torch.linspace(-1.0, 1.0, 61).double()
    grid = torch.cartesian_prod(line, line)
    cloud = x + grid[grid.norm(dim=1) <= 1.0][:, None] * radius[:, None]
    out = model(cloud.flatten(0, 1)).detach().view(-1, 3, 2)
    least = (out[..., 0] - out[..., 1]).amin(dim=0)
    for lower in (passing.closed(rows, items)[:, 1], found, higher, forged):
        assert bool((lower <= least + 1e-12).all())
    assert bool(torch.isfinite(higher).all())


@pytest.mark.parametrize("kind", ["relu", "tanh"])
def test_what_lines_leave_open_is_proven_and_checked(kind: str) -> None:
    model = graph("+n", kind, 1, inputs=6)
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)).double()
    y = model(x).argmax(1)
    radius = torch.logspace(-1.0, 0.0, 16).double()
    levels = ("norms", "tuned")
    lines, tuned = (certify_local(model, x, radius, y, config=LocalConfig(n)) for n in levels)
    assert bool((tuned.margin > lines.margin + 1e-3).any())
    assert bool((tuned.margin >= lines.margin).all())
    verify_local(tuned, model)


def test_what_is_carried_keeps_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines back to the input say no more of a copy than is known of what is copied."""
    model = graph("+cn", "relu", 3, inputs=6)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).double()
    radius = torch.logspace(-1.0, 0.0, 5).double()

    def intervals() -> list[Tensor]:
        known = open_pass(model, x, radius, LocalConfig())[0].own.hidden
        return [torch.stack(h.known.interval) for h in known]

    found = intervals()
    copies = [layer.copies.sum() for layer in curved_layers(read_network(model, (6,)))]
    assert sum(copies) > 0
    monkeypatch.setattr(
        Layer, "copies", property(lambda self: torch.zeros(self.operator.size_out).bool())
    )
    for mine, all_rows in zip(found, intervals(), strict=True):
        torch.testing.assert_close(mine, all_rows, rtol=1e-7, atol=1e-7)
