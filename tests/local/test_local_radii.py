"""Local radii: attacks inside fail, never below the global radius, shrinking proofs hold."""

from __future__ import annotations

import math

import pytest
import torch
from local_nets import ACTIVATIONS, network
from torch import nn

from admm_lip import certified_radii, certify
from admm_lip.evaluation.falsify import assert_sound
from admm_lip.local import LocalConfig, certify_local, local_radii, verify_local


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_attack_succeeds_inside_and_none_is_below_the_global_radius(activation: str) -> None:
    model = network(activation, (5, 16, 12, 4), seed=1)
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).double()
    y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 4
    whole = certify(model)
    found = local_radii(model, x, y, certificate=whole)
    floor = certified_radii(model, x, y, certificate=whole)
    assert bool((found.radius >= floor * (1.0 - 1e-9)).all())
    assert found.radius[:3].tolist() == [0.0] * 3
    assert float((found.radius[3:] / floor[3:]).median()) > 1.2
    assert found.robust[3:].all()
    assert not found.robust[:3].any()
    assert_sound(model, x, y, found.radius)
    verify_local(found, model, whole)


def test_a_proof_at_a_radius_holds_at_every_smaller_one() -> None:
    model = network("relu", (5, 16, 12, 4), seed=2)
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)).double()
    y = model(x).argmax(1)
    counts = [
        int(certify_local(model, x, radius, y).robust.sum()) for radius in (0.01, 0.1, 0.3, 0.6)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    found = local_radii(model, x, y)
    for share in (0.9, 0.5, 0.1):
        assert bool(certify_local(model, x, share * found.radius, y).robust[found.radius > 0].all())


def test_a_margin_without_curvature_is_found_to_the_tolerance() -> None:
    """In one dimension, away from every kink, the distance to the boundary is known."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    model[0].weight.data = torch.eye(2, dtype=torch.float64)
    x = torch.tensor([[3.0, 1.0], [1.0, 4.0], [1.0, 1.0]])
    y = torch.tensor([0, 1, 0])
    config = LocalConfig(tol=1e-4, rounds=30)
    radii = local_radii(model, x, y, config=config).radius
    exact = [2.0 / math.sqrt(2.0), 3.0 / math.sqrt(2.0)]
    assert radii[:2].tolist() == pytest.approx(exact, rel=2e-4)
    assert bool((radii[:2] < torch.tensor(exact)).all())
    assert float(radii[2]) == 0.0


def test_more_effort_and_a_box_give_larger_radii() -> None:
    model = network("relu", (8, 24, 16, 4), seed=4, scale=2.0)
    x = torch.rand(30, 8, generator=torch.Generator().manual_seed(0)).double()
    y = model(x).argmax(1)
    radii = {
        name: local_radii(model, x, y, config=config).radius
        for name, config in {
            "norms": LocalConfig(level="norms"),
            "closed": LocalConfig(),
            "box": LocalConfig(box=(0.0, 1.0)),
        }.items()
    }
    assert float(radii["closed"].mean()) > 1.0001 * float(radii["norms"].mean())
    assert float(radii["box"].mean()) > 1.02 * float(radii["closed"].mean())


def test_one_output_decides_at_zero() -> None:
    model = network("tanh", (3, 8, 1), seed=5)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
    y = (model(x)[:, 0] > 0).long()
    found = local_radii(model, x, y)
    assert bool((found.radius > 0.0).all())
    assert bool(found.robust.all())
    verify_local(found, model)
    wrong = local_radii(model, x, 1 - y)
    assert wrong.radius.tolist() == [0.0] * 20


def test_no_time_leaves_the_global_radius() -> None:
    model = network("relu", (5, 16, 12, 4), seed=1)
    x = torch.randn(10, 5, generator=torch.Generator().manual_seed(0)).double()
    y = model(x).argmax(1)
    whole = certify(model)
    config = LocalConfig(seconds=0.0)
    found = local_radii(model, x, y, certificate=whole, config=config)
    assert torch.equal(found.radius, certified_radii(model, x, y, certificate=whole))
    assert found.robust[found.radius > 0].all()


def test_bad_labels_are_named() -> None:
    with pytest.raises(ValueError, match=r"y: expected class labels in 0\.\.2 .* got 3 in row 1"):
        local_radii(network("relu"), torch.zeros(1, 4).repeat(2, 1), torch.tensor([0, 3]))
