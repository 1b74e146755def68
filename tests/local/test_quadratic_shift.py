"""Quadratic bounds in training: above every fall that is met, a gradient that leads down."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional
from clipped_nets import cloud, convnet, mlp
from torch import Tensor, nn

from admm_lip import TrainConfig, train
from admm_lip.data import load_data
from admm_lip.errors import UnsupportedModule
from admm_lip.local import LocalConfig, certify_local
from admm_lip.local.layers import live_layers
from admm_lip.local.training_loss import Plan, robust_loss
from admm_lip.local.warm_starts import WarmStarts
from admm_lip.research.comparators.local import LocalLipschitz


def shift(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """What the loss moves the logits by, norms as good as exact."""
    seen: list[Tensor] = []

    def loss(logits: Tensor, labels: Tensor, moved: Tensor, kappa: float) -> Tensor:
        seen.append(moved.detach())
        return moved.sum()

    monkeypatch.setattr("admm_lip.local.training_loss.LOSSES", {"quadratic": loss})
    layers = live_layers(model, tuple(x.shape[1:]))
    warm = WarmStarts([layer.operator for layer in layers])
    plan = Plan("quadratic", True, 300, True, 0.0, None, False)
    robust_loss(layers, warm, None, (x, y), eps, 0.0, plan)
    return seen[0]


@pytest.mark.parametrize("activation", ["relu", "clipped_relu"])
@pytest.mark.parametrize("build", [mlp, convnet])
def test_no_margin_falls_further(
    activation: str, build: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(activation).double()
    shape = (5,) if build is mlp else (1, 8, 8)
    g = torch.Generator().manual_seed(0)
    x = torch.rand(6, *shape, generator=g, dtype=torch.float64)
    logits = model(x).detach()
    y = logits.argmax(1)
    for eps in (1e-4, 0.1, 1.0):
        found = shift(model, x, y, eps, monkeypatch)
        assert found.gather(1, y[:, None]).abs().max() < 1e-9
        worst = torch.full_like(found, -torch.inf)
        for points in cloud(x, eps, 100):
            moved = model(points).detach()
            gap = (moved - moved.gather(1, y[:, None])) - (logits - logits.gather(1, y[:, None]))
            worst = torch.maximum(worst, gap)
        assert bool((worst <= found + 1e-9).all())
        if eps == 1e-4:  # where hardly anything bends, it is the slope
            x_ = x.clone().requires_grad_(True)
            one = model(x_)[0]
            (slope,) = torch.autograd.grad(one[(y[0] + 1) % len(one)] - one[y[0]], x_)
            assert float(found[0, (y[0] + 1) % len(one)]) == pytest.approx(
                eps * float(slope[0].norm()), rel=0.05
            )


def test_the_gradient_leads_down() -> None:
    method = LocalLipschitz(eps=0.2, surrogate="quadratic", iterations=50, ramp=0.0)
    model = method.prepare(mlp("clipped_relu").double())
    x = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)).double()
    y = model(x).argmax(1)

    def loss() -> Tensor:
        return method.objective(model, x, y, functional.cross_entropy, 1.0)

    loss()
    parameters, before = list(model.parameters()), loss()
    gradient = torch.autograd.grad(before, parameters)
    size = sum(float(g.square().sum()) for g in gradient)
    with torch.no_grad():
        for p, g in zip(parameters, gradient, strict=True):
            p.sub_(g, alpha=1e-5)
    fallen = float((before - loss()).detach()) / (1e-5 * size)
    assert fallen == pytest.approx(1.0, abs=0.3)  # slopes and intervals are held


def test_sorts_are_refused_by_name() -> None:
    method = LocalLipschitz(eps=0.2, surrogate="quadratic", ramp=0.0)
    model = method.prepare(mlp("max_min"))
    x, y = torch.rand(2, 5), torch.tensor([0, 1])
    with pytest.raises(UnsupportedModule, match=r"2 \(max_min behind it\).* use 'bcp' or 'gloro'"):
        method.objective(model, x, y, functional.cross_entropy, 1.0)


def test_two_activations_behind_one_layer_are_refused_and_not_read_as_the_last() -> None:
    method = LocalLipschitz(eps=0.2, surrogate="quadratic", ramp=0.0)
    plain = mlp("relu")
    model = method.prepare(nn.Sequential(plain[0], nn.ReLU(), *plain[1:]))
    x, y = torch.rand(2, 5), torch.tensor([0, 1])
    with pytest.raises(UnsupportedModule, match="one activation behind a layer, got 2"):
        method.objective(model, x, y, functional.cross_entropy, 1.0)


def test_it_certifies_more_than_plain_training() -> None:
    data = load_data("digits")
    x, y = data.test
    certified = []
    for eps in (0.0, 0.5):
        method = LocalLipschitz(eps=eps, surrogate="quadratic")
        config = TrainConfig(epochs=4, batch_size=64, lr=5e-3)
        model = mlp("relu", (64, 16, 16, 10))
        result = train(model, data.train, config, method=method, progress=False)
        judge = LocalConfig("quadratic", decide=True)
        certified.append(certify_local(result.model, x, 0.4, y, config=judge).to_record())
    plain, robust = (record["certified_accuracy"] for record in certified)
    assert robust > plain + 0.1
