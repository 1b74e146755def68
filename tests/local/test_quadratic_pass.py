"""Quadratic bounds of margins: parabolas, samples, exact minima, what a check accepts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from activation_cases import SCALAR, spec_of
from local_nets import inside, network
from torch import Tensor, nn

from admm_lip import CertificateError
from admm_lip.local import LocalConfig, certify_local, verify_local
from admm_lip.local.activations import Curved
from admm_lip.local.curves import Range, curve_of
from admm_lip.local.parabolas import Point, Quadratic, least_values
from admm_lip.local.seen import Seen
from admm_lip.local.tasks import Prepared, Task, functionals_for
from admm_lip.networks.chain import read_network

BENT = ("relu", "leaky", "steep_leaky", "max_min")
TURNING = ("clipped", "tanh", "sigmoid", "hardtanh", "gelu", "steep_elu", "falling_softplus")


@pytest.mark.parametrize("name", SCALAR)
def test_a_least_value_stays_below_and_touches(name: str) -> None:
    """Closely where the activation is made of lines, else by the gap between them."""
    rng, spec, n = torch.Generator().manual_seed(0), spec_of(name), 400

    def numbers(low: float = -2.0, high: float = 2.0) -> Tensor:
        return low + (high - low) * torch.rand(1, n, generator=rng, dtype=torch.float64)

    ends = Range(*torch.stack([numbers(-4.0, 4.0), numbers(-4.0, 4.0)]).sort(dim=0).values)
    at = ends.low + (ends.high - ends.low) * numbers(0.0, 1.0)
    activation = Curved(spec)
    found = activation.bend(at, ends)
    c, g, d, m = (numbers()[:, None] for _ in range(4))
    given = Quadratic(c, m.abs(), g, d.abs())
    z = ends.low + (ends.high - ends.low) * torch.linspace(0.0, 1.0, 4001).double()[:, None]
    knots = [knot.at for knot in curve_of(spec).knots(spec.options)]
    z = torch.cat([z, *(torch.full((1, n), at).double().clamp(*ends) for at in knots)])
    phi, out = activation.apply(z), activation.apply(at)
    point = Point(at, out)
    lower, doubt = least_values(found.pieces, ends, phi.abs().amax(0)[None], point, given)
    seen = c[0] * phi - 0.5 * given.m[0] * (phi - out) ** 2
    seen = seen - g[0] * z + 0.5 * given.d[0] * (z - at) ** 2
    least = seen.amin(dim=0)
    assert bool((lower - doubt <= least + 1e-14).all())
    straight = not any(curve_of(spec).signs(spec.options))
    assert float((least - lower).max()) < (1e-5 if straight else 1.0)
    assert float((least - lower).mean()) < (1e-6 if straight else 0.05)
    assert float(doubt.max()) < 1e-12
    assert bool(((found.slope >= found.slopes.low) & (found.slope <= found.slopes.high)).all())
    assert bool(((found.bending == 0.0) | (found.slopes.high > found.slopes.low)).all())


def margins(model: nn.Module, x: Tensor, radius: Tensor, config: LocalConfig) -> tuple[Seen, Any]:
    """What is seen of every pair of classes."""
    prepared = Prepared(read_network(model, x.shape[1:]), config, None)
    classes = prepared.curved.layers[-1].operator.size_out
    flat, eye = x.flatten(1), torch.eye(classes).double()
    task = Task(prepared, flat, None, *functionals_for(None, len(x), classes), None)
    rows = (eye[:, None] - eye).reshape(-1, classes).expand(len(x), -1, -1)
    return Seen.of(task, radius), rows


def quadratic(seen: Seen, rows: Tensor) -> Tensor:
    """The bounds in closed form of all rows."""
    passing = seen.open_pass(torch.ones(len(rows), dtype=torch.bool))
    assert passing is not None
    return passing.closed(rows, torch.ones(rows.shape[:2], dtype=torch.bool))


@pytest.mark.parametrize("activation", [*BENT, *TURNING])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("box", [None, (-1.0, 1.0)])
def test_no_sampled_margin_is_below_it(
    activation: str, norm: str, box: tuple[float, float] | None
) -> None:
    model = network(activation, (4, 8, 6, 6, 3), seed=3)
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(1)).double().clamp(-1.0, 1.0)
    radius = torch.logspace(-2, 0.3, len(x), dtype=torch.float64)
    seen, rows = margins(model, x, radius, LocalConfig(box=box, norm=norm))
    lower = quadratic(seen, rows)
    assert bool(torch.isfinite(lower).all())
    scale = 1.0 if norm == "l2" else 4.0**0.5
    for cloud in inside(x, radius * scale, 60):
        if norm == "linf":
            cloud = torch.minimum(torch.maximum(cloud, x - radius[:, None]), x + radius[:, None])
        cloud = cloud if box is None else cloud.clamp(*box)
        found = (rows @ model(cloud).detach()[:, :, None])[..., 0]
        assert bool((found >= lower - 1e-11).all())


def test_convolutions_and_their_matrices_have_equal_bounds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 3),
    ).double()  # fmt: skip
    x = torch.rand(4, 1, 8, 8).double()
    dense: list[nn.Module] = [nn.Flatten()]
    shape: tuple[int, ...] = (1, 8, 8)
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            zero = torch.zeros(1, *shape).double()
            size = zero.numel()
            bias = layer(zero).flatten()
            eye = torch.eye(size).double().reshape(size, *shape)
            made = nn.Linear(size, len(bias)).double()
            made.weight.data = (layer(eye).flatten(1) - bias).T.contiguous()
            made.bias.data = bias
            shape = tuple(layer(zero).shape[1:])
            dense.append(made)
        elif not isinstance(layer, nn.Flatten):
            dense.append(layer)
    radius = torch.full((4,), 0.2).double()
    found = []
    for one in (model, nn.Sequential(*dense)):
        seen, rows = margins(one, x, radius, LocalConfig(box=(0.0, 1.0)))
        found.append(quadratic(seen, rows))
    assert torch.allclose(*found, rtol=0.0, atol=1e-5)


def folded() -> nn.Sequential:
    """``1 - |x_1| - ... `` rotated twice: lines lose at every kink, one ball serves all."""
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(4)))[0]
    model = nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2)
    ).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.cat([turn, -turn]))
        fold = torch.cat([torch.eye(6), torch.eye(6)], dim=1).double()
        model[2].weight.copy_(torch.cat([turn.double() @ fold, -turn.double() @ fold]))
        model[4].weight.copy_(torch.cat([fold.sum(0, keepdim=True) * -0.2, fold[:1] * 0.0]))
        for k in (0, 2, 4):
            model[k].bias.zero_()
        model[4].bias.copy_(torch.tensor([1.0, 0.0]))
    return model


def test_it_proves_what_lines_leave_open_and_a_check_agrees() -> None:
    model, x = folded(), torch.zeros(1, 6).double()
    y = torch.zeros(1, dtype=torch.int64)
    lines = certify_local(model, x, 1.0, y, config=LocalConfig("norms"))
    found = certify_local(model, x, 1.0, y, config=LocalConfig("quadratic"))
    # The exact minimum is 1 - .2 times the greatest l1 norm on the unit sphere.
    exact = 1.0 - 0.2 * 6.0**0.5
    assert lines.margin[0, 1] < 0.0 < found.margin[0, 1] <= exact
    verify_local(found, model)
    margin = found.margin.clone()
    margin[0, 1] += 1e-3
    with pytest.raises(CertificateError, match="margin: the claim for input 0, functional 1"):
        verify_local(dataclasses.replace(found, margin=margin), model)


@pytest.mark.parametrize("activation", [*BENT, "clipped", "tanh", "gelu"])
def test_it_never_lowers_a_margin(activation: str) -> None:
    model = network(activation, (4, 8, 6, 3), seed=5)
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(2)).double()
    y = model(x).argmax(dim=1)
    levels = map(LocalConfig, ("norms", "quadratic"))
    radius = torch.logspace(-1, 0.5, len(x), dtype=torch.float64)
    by_lines, by_both = (certify_local(model, x, radius, y, config=c) for c in levels)
    assert bool((by_both.margin >= by_lines.margin).all())
    assert bool((by_both.margin > by_lines.margin).any())
    verify_local(by_both, model)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_at_every_scale(scale: float) -> None:
    model = network("relu", (4, 8, 6, 3), seed=6)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(3)).double()
    radius = torch.full((6,), 0.1).double()
    seen, rows = margins(model, x, radius, LocalConfig())
    plain = quadratic(seen, rows)
    with torch.no_grad():
        model[-1].weight.mul_(scale)
        model[-1].bias.mul_(scale)
    scaled = quadratic(margins(model, x, radius, LocalConfig())[0], rows)
    close = (scaled / scale - plain).abs() <= 1e-6 * (1.0 + plain.abs())
    assert bool((close | torch.isneginf(scaled)).all())
