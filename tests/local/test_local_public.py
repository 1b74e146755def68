"""The public names: ``certify_local``, and ``certified_radii`` and ``verify`` for what it is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from local_nets import network
from torch import nn

from admm_lip import (
    CertificateError,
    LocalConfig,
    certified_radii,
    certify,
    certify_local,
    verify,
)
from admm_lip.local import local_radii


def test_the_public_functions_do_what_the_package_does() -> None:
    model = network("relu", (5, 16, 12, 4), seed=2)
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)).double()
    y = model(x).argmax(1)
    found = certify_local(model, x, 0.2, y)
    with pytest.warns(DeprecationWarning, match="certify_local"):
        older = certify(model, x, kind="local", radius=0.2, y=y)
    assert torch.equal(found.lip, older.lip)
    verify(found, model)
    pairs = certify(model, kind="pairwise", progress=False)
    config = LocalConfig(rounds=6)
    radii = certified_radii(model, x, y, certificate=pairs, kind="local", config=config)
    expected = local_radii(model, x, y, certificate=pairs, config=config).radius
    assert torch.equal(radii, expected)
    assert bool((radii >= certified_radii(model, x, y, certificate=pairs)).all())
    assert bool((certified_radii(model, x, y, kind="local") > 0.0).all())


def test_convolutions_take_their_shape_from_the_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2), nn.GELU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(3, 3)
    ).double()
    x = torch.randn(6, 1, 8, 8).double()
    found = certify_local(model, x, radius=0.3)
    assert found.input_shape == (1, 8, 8)
    step = 0.3 * torch.nn.functional.normalize(torch.randn(6, 64).double()).view_as(x)
    rise = (model(x + step) - model(x)).detach().norm(dim=1)
    assert bool((rise <= found.lip[:, 0] * 0.3).all())
    verify(found, model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": 0.1}, "radius: goes with kind='local' only, got 'global'"),
        ({"kind": "nearby"}, "kind: expected one of global, .*, local, got 'nearby'"),
    ],
)
def test_arguments_that_do_not_go_together_are_named(settings: Any, message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        certify(network("relu"), **settings)


def test_a_local_certificate_is_verified_by_the_path_of_its_file(tmp_path: Path) -> None:
    model = network("relu")
    found = certify_local(model, torch.zeros(2, 4).double(), 0.1)
    found.save(tmp_path / "local.safetensors")
    verify(tmp_path / "local.safetensors", model)
    with pytest.raises(CertificateError, match="digest"):
        verify(tmp_path / "local.safetensors", network("relu", seed=7))


def test_bounds_with_multipliers_per_channel_serve_local_ones() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    ).double()
    whole = certify(model, (1, 4, 4), structure="torus")
    x = torch.randn(3, 1, 4, 4).double()
    found = certify_local(model, x, 0.1, certificate=whole, config=LocalConfig(level="implied"))
    assert bool((found.lip <= whole.lip).all())


def test_radii_need_a_certificate_or_the_local_kind() -> None:
    x, y = torch.zeros(1, 4), torch.zeros(1).long()
    with pytest.raises(CertificateError, match="certificate, kind: expected a certificate, or kin"):
        certified_radii(network("relu"), x, y)
