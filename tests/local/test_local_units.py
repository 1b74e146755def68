"""Local bounds for linf balls and in raw units: sampled points, restated networks, the check."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from local_nets import inside, network
from torch import Tensor, nn

from admm_lip import CertificateError, certified_radii, certify, verify
from admm_lip.evaluation.attacks import AttackConfig
from admm_lip.evaluation.falsify import falsify
from admm_lip.local import LocalCertificate, LocalConfig, certify_local, local_radii, verify_local

SCALE = (10.0, 0.3, 2.5, 1.0)


def samples(count: int = 10, seed: int = 1) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).double()


def corners(x: Tensor, radius: Tensor, count: int) -> Tensor:
    """Points of the linf balls, half of them corners, ``(count, batch, n)``."""
    generator = torch.Generator().manual_seed(3)
    way = 2.0 * torch.rand(count, *x.shape, generator=generator).double() - 1.0
    way[::2] = way[::2].sign()
    return x + way * radius[:, None]


def in_raw_units(model: nn.Sequential) -> nn.Sequential:
    """The same network as a function of raw inputs."""
    raw = nn.Sequential(*(nn.Linear(4, len(model[0].bias)).double(), *list(model)[1:]))
    raw[0].weight.data = model[0].weight.detach() / torch.tensor(SCALE).double()
    raw[0].bias.data = model[0].bias.detach().clone()
    return raw


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh", "max_min"])
@pytest.mark.parametrize("level", ["norms", "closed", "optimised"])
@pytest.mark.parametrize("scale", [None, SCALE])
def test_linf_balls_hold_every_sampled_point(
    activation: str, level: str, scale: tuple[float, ...] | None
) -> None:
    model, x = network(activation, seed=4), samples()
    y = model(x).argmax(1)
    radius = torch.logspace(-3, 0, len(x), dtype=torch.float64)
    config = LocalConfig(level=level, norm="linf", input_scale=scale)
    found = certify_local(model, x, radius, y, config=config)
    whole = certify_local(model, x, radius, config=config)
    verify_local(found, model)
    factor = 1.0 if scale is None else torch.tensor(scale).double()
    logits = model(x).detach()
    for cloud in corners(x * factor, radius, 60):
        there = model(cloud / factor).detach()
        gap = (there - logits).norm(dim=1)
        assert bool((gap <= whole.lip[:, 0] * radius * (1 + 1e-9)).all())
        margins = there.gather(1, y[:, None]) - there
        others = torch.arange(3) != y[:, None]
        assert bool((margins >= found.margin - 1e-9)[others].all())
        assert bool((margins[found.robust] > 0)[others[found.robust]].all())


@pytest.mark.parametrize("activation", ["relu", "gelu", "max_min"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_raw_units_are_those_of_the_restated_network(activation: str, norm: str) -> None:
    model, x = network(activation, seed=4), samples()
    raw, points = in_raw_units(model), x * torch.tensor(SCALE).double()
    y = model(x).argmax(1)
    mine = certify_local(model, x, 0.2, y, config=LocalConfig(norm=norm, input_scale=SCALE))
    theirs = certify_local(raw, points, 0.2, y, config=LocalConfig(norm=norm))
    torch.testing.assert_close(mine.lip, theirs.lip, rtol=1e-5, atol=1e-6)
    # A search carries roundings on.
    torch.testing.assert_close(mine.margin, theirs.margin, rtol=1e-5, atol=1e-5)
    assert torch.equal(mine.robust, theirs.robust)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_box_in_raw_units_only_tightens(norm: str) -> None:
    model, x = network("relu", seed=4), samples().clamp(-1.0, 1.0)
    y = model(x).argmax(1)
    config = LocalConfig(norm=norm, input_scale=SCALE)
    free = certify_local(model, x, 1.0, y, config=config)
    cut = certify_local(model, x, 1.0, y, config=dataclasses.replace(config, box=(-1.0, 1.0)))
    verify_local(cut, model)
    finite = torch.isfinite(free.margin)
    assert bool((cut.margin >= free.margin - 1e-9)[finite].all())
    assert float((cut.margin - free.margin)[finite].max()) > 1e-3


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_radii_start_from_the_certificate_of_the_same_norm_and_withstand(norm: str) -> None:
    model, x = network("relu", seed=4), samples(16)
    y = model(x).argmax(1)
    pairs = certify(model, kind="pairwise", norm=norm, input_scale=SCALE, progress=False)
    config = LocalConfig(norm=norm, input_scale=SCALE, level="optimised")
    found = local_radii(model, x, y, certificate=pairs, config=config)
    verify_local(found, model, pairs)
    floor = certified_radii(model, x, y, certificate=pairs)
    assert bool((found.radius >= floor * (1.0 - 1e-9)).all())
    assert float((found.radius / floor).mean()) > 1.1
    attack = AttackConfig(steps=20, restarts=3)
    held = falsify(model, found.radius, x, y, certificate=pairs, config=attack)
    assert 1.0 <= held.smallest_ratio < math.inf


def test_a_single_map_is_measured_in_the_balls_norm() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    model[0].weight.data = torch.tensor([[3.0, -4.0]]).double()
    x = torch.ones(1, 2).double()
    for norm, scale, exact in (("l2", None, 5.0), ("l2", (3.0, 4.0), 2**0.5), ("linf", None, 7.0)):
        config = LocalConfig(norm=norm, input_scale=scale)
        lip = float(certify_local(model, x, 0.5, config=config).lip[0, 0])
        assert exact <= lip <= exact * (1.0 + 1e-3)


def test_norm_and_scale_are_stored_and_belong_to_the_claim(tmp_path: Path) -> None:
    model, x = network("relu", seed=4), samples()
    config = LocalConfig(norm="linf", input_scale=2.0)
    found = certify_local(model, x, 0.1, config=config)
    assert (found.norm, found.input_scale) == ("linf", (2.0,) * 4)
    verify(found, model)
    found.save(tmp_path / "local.safetensors")
    again = LocalCertificate.load(tmp_path / "local.safetensors")
    assert (again.norm, again.input_scale) == ("linf", (2.0,) * 4)
    verify(again, model)
    with pytest.raises(CertificateError, match="lip: the claim for input"):
        verify(dataclasses.replace(again, input_scale=(1.0,) * 4), model)


def test_norms_and_units_that_do_not_fit_are_named() -> None:
    model, x = network("relu", seed=4), samples()
    with pytest.raises(ValueError, match="norm: expected one of l2, linf, got 'l1'"):
        LocalConfig(norm="l1")
    with pytest.raises(CertificateError, match=r"units.input_scale: expected 4 entries"):
        certify_local(model, x, 0.1, config=LocalConfig(input_scale=(1.0, 2.0)))
    whole = certify(model, norm="linf")
    with pytest.raises(CertificateError, match="norm / units: expected a certificate of l2 in"):
        certify_local(model, x, 0.1, certificate=whole)


def test_l2_balls_in_raw_units_hold_every_sampled_point() -> None:
    model, x = network("gelu", seed=4), samples()
    radius = torch.logspace(-3, 0, len(x), dtype=torch.float64)
    factor = torch.tensor(SCALE).double()
    found = certify_local(model, x, radius, config=LocalConfig(input_scale=SCALE))
    for cloud in inside(x * factor, radius, 60):
        gap = (model(cloud / factor) - model(x)).detach().norm(dim=1)
        assert bool((gap <= found.lip[:, 0] * radius * (1 + 1e-9)).all())
