"""The log-det barrier: its value, its gradient, and that no iterate leaves the set."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.research.comparators.barrier import Barrier, BarrierNet, lmi_logdet
from admm_lip.solvers.lmi import assemble, implied_bound, lmi_blocks
from admm_lip.solvers.problem import unit_slopes
from admm_lip.training.losses import cross_entropy


def planted(hidden: tuple[int, ...], norm: float) -> tuple[list[Tensor], list[Tensor]]:
    """Random weights of that spectral norm, random multipliers near 1."""
    torch.manual_seed(0)
    sizes = [6, *hidden, 4]
    weights = []
    for n_in, n_out in itertools.pairwise(sizes):
        w = torch.randn(n_out, n_in, dtype=torch.float64)
        weights.append(norm * w / torch.linalg.matrix_norm(w, 2))
    return weights, [1.0 + 0.1 * torch.rand(n, dtype=torch.float64) for n in hidden]


@pytest.mark.parametrize("hidden", [(), (7,), (9, 5, 6)])
def test_the_logdet_is_that_of_the_assembled_matrix(hidden: tuple[int, ...]) -> None:
    weights, multiplier = planted(hidden, 0.8)
    dense = assemble(*lmi_blocks(weights, unit_slopes(weights), multiplier, 1.3**2))
    got = lmi_logdet(weights, multiplier, 1.3)
    assert got is not None
    torch.testing.assert_close(got, torch.logdet(dense))


@pytest.mark.parametrize("hidden", [(), (7,), (9, 5, 6)])
def test_it_is_none_exactly_where_the_matrix_is_not_positive_definite(
    hidden: tuple[int, ...],
) -> None:
    weights, multiplier = planted(hidden, 0.8)
    edge = (
        implied_bound(weights, unit_slopes(weights), multiplier)
        if hidden
        else float(torch.linalg.matrix_norm(weights[0], 2))
    )
    assert math.isfinite(edge)
    assert lmi_logdet(weights, multiplier, edge * (1 + 1e-6)) is not None
    assert lmi_logdet(weights, multiplier, edge * (1 - 1e-6)) is None
    weights[0][0, 0] = math.nan
    assert lmi_logdet(weights, multiplier, 1e9) is None


def test_its_gradient_passes_a_check() -> None:
    weights, multiplier = planted((4, 3), 0.8)
    variables = [v.requires_grad_(True) for v in (*weights, *multiplier)]
    assert torch.autograd.gradcheck(lambda *v: lmi_logdet(v[:3], v[3:], 1.3), variables)


def minimum_eigenvalue(net: BarrierNet) -> float:
    weights = [layer.weight.detach().double() for layer in net.linears]
    multiplier = [t.detach().double().exp() for t in net.log_multiplier]
    return float(
        torch.linalg.eigvalsh(
            assemble(*lmi_blocks(weights, unit_slopes(weights), multiplier, net.bound**2))
        )[0]
    )


@pytest.mark.parametrize("hidden", [(), (7,), (9, 5)])
@pytest.mark.parametrize("bound", [0.05, 1.0, 40.0])
def test_it_starts_inside_and_scales_relu_networks_without_changing_their_shape(
    hidden: tuple[int, ...], bound: float
) -> None:
    model = build_mlp(6, 4, ModelConfig(hidden=hidden, init="torch"), seed=1)
    x = torch.randn(30, 6)
    before = model(x).detach()
    net = Barrier(bound).prepare(model)
    assert isinstance(net, BarrierNet)
    assert minimum_eigenvalue(net) > 0.0
    after = net(x).detach()
    factor = after.norm() / before.norm()
    torch.testing.assert_close(after, factor * before, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("train_multiplier", [True, False])
@pytest.mark.parametrize("lr", [1e-3, 0.3])
def test_no_iterate_leaves_the_set(lr: float, train_multiplier: bool) -> None:
    method = Barrier(bound=2.0, gamma=1e-4, train_multiplier=train_multiplier)
    net = method.prepare(build_mlp(6, 4, ModelConfig(hidden=(9, 5)), seed=1))
    assert isinstance(net, BarrierNet)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=lr)
    torch.manual_seed(0)
    moved = 0
    start = [w.clone() for w in net.safe]
    for step in range(60):
        x, y = torch.randn(32, 6), torch.randint(0, 4, (32,))
        optimizer.zero_grad()
        # Growing logits are what the loss wants and the bound forbids.
        loss = method.objective(net, x, y, lambda f, t: -f.square().mean(), step / 60)
        loss.backward()
        optimizer.step()
        moved += net.logdet() is None
        method.after_step(net)
        assert minimum_eigenvalue(net) > 0.0
    if lr == 0.3:
        assert moved > 0, "the test should meet the boundary"
    assert any(not torch.equal(a, b) for a, b in zip(start, net.safe, strict=True))
    frozen = [not t.requires_grad for t in net.log_multiplier]
    assert all(frozen) != train_multiplier


def test_a_step_that_never_comes_inside_is_undone() -> None:
    method = Barrier(bound=2.0)
    net = method.prepare(build_mlp(6, 4, ModelConfig(hidden=(5,)), seed=1))
    assert isinstance(net, BarrierNet)
    before = [w.clone() for w in net.safe]
    with torch.no_grad():
        net.linears[0].weight.fill_(math.nan)
    method.after_step(net)
    for old, new in zip(before, net.moving, strict=True):
        assert torch.equal(old, new.detach())


def test_gamma_falls_in_stages() -> None:
    method = Barrier(bound=2.0, gamma=0.1, decay=0.5, stages=4)
    net = method.prepare(build_mlp(6, 4, ModelConfig(hidden=(5,)), seed=1))
    assert isinstance(net, BarrierNet)
    x, y = torch.randn(8, 6), torch.randint(0, 4, (8,))
    plain = lambda f, t: cross_entropy(f, t, 1.0)  # noqa: E731
    logdet = net.logdet()
    assert logdet is not None
    for progress, gamma in ((0.0, 0.1), (0.24, 0.1), (0.25, 0.05), (0.99, 0.0125)):
        value = method.objective(net, x, y, plain, progress) - plain(net(x), y)
        assert value.item() == pytest.approx(-gamma * logdet.item(), rel=1e-4, abs=1e-6)


def test_finish_gives_the_plain_chain() -> None:
    method = Barrier(bound=2.0)
    model = build_mlp(6, 4, ModelConfig(hidden=(5,)), seed=1)
    net = method.prepare(model)
    x = torch.randn(8, 6)
    plain = method.finish(net)
    assert isinstance(plain, nn.Sequential)
    assert torch.equal(plain(x), net(x))
    assert method.lipschitz(plain) == 2.0
    with pytest.raises(ValueError, match=r"start: expected a share in \(0, 1\), got 1\.0"):
        Barrier(start=1.0)
