"""Random networks of awkward shapes and scales: no claim is broken, every claim verifies."""

from __future__ import annotations

import pytest
import torch
from local_nets import ACTIVATIONS, inside
from torch import Tensor, nn

from admm_lip.local import LocalConfig, certify_local, local_radii, verify_local

NAMES = [name for name in ACTIVATIONS if name not in ("max_min", "group_sort")]


def fuzzed(seed: int) -> tuple[nn.Sequential, Tensor]:
    """A network with dead, duplicate and idle neurons, and inputs to match its scale."""
    g = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=g))

    depth = draw(0, 6)
    widths = [draw(1, 8), *(draw(1, 10) for _ in range(depth)), draw(1, 5)]
    layers: list[nn.Module] = []
    for k in range(depth + 1):
        layer = nn.Linear(widths[k], widths[k + 1], dtype=torch.float64)
        layer.weight.data = torch.randn(layer.weight.shape, generator=g).double()
        layer.bias.data = torch.randn(layer.bias.shape, generator=g).double()
        layer.weight.data *= 10.0 ** draw(-2, 3)
        if draw(0, 3) == 0:
            layer.weight.data[0] = 0.0
        if draw(0, 3) == 0:
            layer.weight.data[:, -1] = 0.0
        layer.weight.data[-1] = layer.weight.data[0]
        layers += [layer, ACTIVATIONS[NAMES[draw(0, len(NAMES))]]()]
    scale = 10.0 ** draw(-6, 7)
    layers[0].weight.data /= scale  # type: ignore[operator, union-attr]
    return nn.Sequential(*layers[:-1]), scale * torch.randn(5, widths[0], generator=g).double()


@pytest.mark.parametrize("seed", range(60))
def test_no_claim_is_broken(seed: int) -> None:
    model, x = fuzzed(seed)
    radius = x.abs().amax() * torch.logspace(-4, 0.3, len(x), dtype=torch.float64)
    whole = certify_local(model, x, radius, config=LocalConfig(level="optimised"))
    verify_local(whole, model)
    logits = model(x).detach()
    outputs = logits.shape[1]
    y = logits.argmax(1) if outputs > 1 else (logits[:, 0] > 0).long()
    found = local_radii(model, x, y, config=LocalConfig(rounds=6))
    verify_local(found, model)
    noise = 1e-12 * (1.0 + float(logits.abs().max()))
    for cloud in inside(x, radius, 30, seed):
        rise = (model(cloud) - logits).detach().norm(dim=1)
        step = (cloud - x).norm(dim=1)
        assert bool((rise <= whole.lip[:, 0] * step * (1.0 + 1e-9) + noise).all())
    for cloud in inside(x, found.radius.clamp(max=1e9), 30, seed):
        near = model(cloud).detach()
        kept = near.argmax(1) == y if outputs > 1 else (near[:, 0] > 0).long() == y
        assert bool(kept[found.radius > 0].all())


@pytest.mark.parametrize("scale", [1e30, 1e100])
def test_what_overflows_proves_nothing(scale: float) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(12):
        layers += [nn.Linear(6, 6), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(6, 2)).double()
    for p in model.parameters():
        p.data *= scale
    found = certify_local(model, torch.ones(2, 6), 1.0)
    assert bool((found.lip > 1e100).all())
    verify_local(found, model)
    radii = local_radii(model, torch.ones(2, 6), torch.tensor([0, 1]))
    assert radii.radius.tolist() == [0.0, 0.0]
    assert not bool(radii.robust.any())


def test_weights_beyond_squaring_are_bounded_all_the_same() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).double()
    model[0].weight.data.fill_(1e200)
    assert certify_local(model, torch.ones(1, 2), 1.0).lip.item() == pytest.approx(2e200)
