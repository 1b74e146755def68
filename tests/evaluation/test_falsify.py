"""Attacks on certified radii: in the certificate's norm and units."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from admm_lip import certified_radii, certify
from admm_lip.evaluation.attacks import AttackConfig
from admm_lip.evaluation.falsify import SoundnessError, broken, falsify, falsify_local
from admm_lip.local import LocalConfig, certify_local, local_radii
from admm_lip.networks.models import ModelConfig, build_mlp

QUICK = AttackConfig(steps=15, restarts=2, directions=8)


def plane(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    return layer


def points(n: int = 30, width: int = 2) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_linear_classifier_is_broken_exactly_at_its_boundary(norm: str) -> None:
    model, x = plane([[1.0, 2.0], [-1.0, -2.0]]), points()
    y = model(x).argmax(1)
    proof = certify(model, kind="pairwise", norm=norm, progress=False)
    radii = certified_radii(model, x, y, certificate=proof)
    found = falsify(model, radii, x, y, certificate=proof, config=QUICK)
    assert found.norm == norm
    assert found.samples == 30
    assert found.attacks == 30 * 4
    dual = 1 if norm == "linf" else 2
    exact = (x @ torch.tensor([1.0, 2.0])).abs() / torch.tensor([1.0, 2.0]).norm(p=dual)
    torch.testing.assert_close(found.distance, exact.double(), rtol=1e-3, atol=1e-6)
    assert 1.0 - 1e-6 <= found.smallest_ratio <= found.median_ratio <= 1.01


def test_radii_in_raw_units_are_attacked_in_raw_units() -> None:
    model, x = plane([[1.0, 2.0], [-1.0, -2.0]]), points()
    y = model(x).argmax(1)
    proof = certify(model, kind="pairwise", input_scale=[10.0, 0.1], progress=False)
    radii = certified_radii(model, x, y, certificate=proof)
    found = falsify(model, radii, x, y, certificate=proof, config=QUICK)
    assert found.smallest_ratio == pytest.approx(1.0, abs=0.01)
    with pytest.raises(SoundnessError, match=r"row \d+: certified up to radius .* pgd found"):
        falsify(model, 1.05 * radii, x, y, certificate=proof, config=QUICK)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("activation", ["relu", "max_min"])
def test_certified_radii_withstand_and_larger_ones_do_not(norm: str, activation: str) -> None:
    model = build_mlp(6, 4, ModelConfig((12, 8), activation), seed=1)
    x = points(40, 6)
    y = model(x).argmax(1)
    proof = certify(model, kind="pairwise", norm=norm, progress=False)
    radii = certified_radii(model, x, y, certificate=proof)
    found = falsify(model, radii, x, y, certificate=proof, config=QUICK)
    assert found.samples == 40
    assert 1.0 <= found.smallest_ratio < math.inf
    with pytest.raises(SoundnessError, match="certified up to radius"):
        falsify(model, found.distance * 1.01, x, y, certificate=proof, config=QUICK)


def test_local_radii_withstand() -> None:
    model = build_mlp(6, 4, ModelConfig((12, 8)), seed=1).double()
    x = points(20, 6).double()
    y = model(x).argmax(1)
    found = falsify(model, local_radii(model, x, y).radius, x, y, config=QUICK)
    assert 1.0 <= found.smallest_ratio < 2.0


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
def test_local_certificates_are_attacked_in_their_norm_and_box(norm: str, box: object) -> None:
    model = build_mlp(4, 3, ModelConfig((10, 8)), seed=3).double()
    x = torch.rand(20, 4, generator=torch.Generator().manual_seed(1)).double()
    config = LocalConfig(norm=norm, box=box)  # type: ignore[arg-type]
    found = local_radii(model, x, model(x).argmax(1), config=config)
    attacked = falsify_local(model, found, config=QUICK)
    assert (attacked.norm, attacked.samples) == (norm, 20)
    assert attacked.smallest_ratio >= 1.0
    reached = torch.isfinite(attacked.distance)
    larger = torch.where(reached, 1.01 * attacked.distance, found.radius)
    false = dataclasses.replace(found, radius=larger, margin=found.center)
    assert int(reached.sum()) >= 3
    with pytest.raises(SoundnessError, match="certified up to radius"):
        falsify_local(model, false, config=QUICK)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_slope_bounds_are_attacked(norm: str) -> None:
    model = build_mlp(4, 3, ModelConfig((10, 8)), seed=3).double()
    x = torch.rand(20, 4, generator=torch.Generator().manual_seed(1)).double()
    found = certify_local(model, x, 0.01, config=LocalConfig(norm=norm))
    attacked = falsify_local(model, found, config=QUICK)
    assert 1.0 - 1e-9 <= attacked.smallest_ratio <= attacked.median_ratio < 2.0
    lip = found.lip / (1.01 * attacked.smallest_ratio)
    with pytest.raises(SoundnessError, match=r"a Lipschitz bound of .* a slope of"):
        falsify_local(model, dataclasses.replace(found, lip=lip), config=QUICK)


def test_a_box_in_raw_units_is_refused() -> None:
    model, x = plane([[1.0, 0.0], [0.0, 1.0]]), torch.rand(3, 2)
    found = certify_local(model, x, 0.1, config=LocalConfig(box=(0.0, 1.0), input_scale=2.0))
    with pytest.raises(ValueError, match="found: expected a box or an input_scale"):
        falsify_local(model, found)


def test_broken_says_which() -> None:
    model, x = plane([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    radii = torch.tensor([1.1, 1.9, 0.0])
    assert broken(model, x, torch.zeros(3).long(), radii, QUICK).tolist() == [True, False, False]


def test_without_radii_there_is_nothing_to_attack() -> None:
    model, x = plane([[1.0, 0.0], [0.0, 1.0]]), points()
    found = falsify(model, torch.zeros(30), x, torch.zeros(30).long(), config=QUICK)
    assert (found.samples, found.attacks, found.smallest_ratio) == (0, 0, math.inf)
    assert bool(torch.isinf(found.distance).all())


def test_radii_of_other_inputs_are_refused() -> None:
    model, x = plane([[1.0, 0.0], [0.0, 1.0]]), points()
    with pytest.raises(ValueError, match=r"radii: expected one per input, \(30,\), got \(3,\)"):
        falsify(model, torch.ones(3), x, torch.zeros(30).long())
