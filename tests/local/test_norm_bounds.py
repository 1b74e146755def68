"""Intervals, norms and certificates by norms on fuzzed networks: nothing sampled breaks them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from clipped_nets import ACTIVATIONS, cloud, convnet, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from admm_lip.errors import CertificateError, NetworkError
from admm_lip.evaluation.attacks import AttackConfig, fooled, gradient_free, pgd
from admm_lip.local import (
    LocalCertificate,
    LocalConfig,
    certify_local,
    certify_samples,
    verify_local,
)
from admm_lip.local.forward_bounds import Arithmetic, Ball, Forward, by_masked_norms, forward
from admm_lip.local.layers import Layer, stored_layers
from admm_lip.local.norm_margins import NormMargins
from admm_lip.local.tasks import functionals_for
from admm_lip.networks.chain import read_network

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
seeds = st.integers(0, 100_000)
radii = st.sampled_from([0.0, 1e-3, 0.05, 0.3, 2.0])


def inputs(shape: tuple[int, ...], seed: int, count: int = 4) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(count, *shape, generator=g, dtype=torch.float64)


def layers_of(model: nn.Module, shape: tuple[int, ...]) -> tuple[Layer, ...]:
    return stored_layers(read_network(model, shape))


def passed(model: nn.Module, x: Tensor, eps: float) -> list[Forward]:
    """What is known in front of every affine layer but the first."""
    layers = layers_of(model, tuple(x.shape[1:]))
    rule, ball = by_masked_norms(layers), Ball(torch.full((len(x),), eps, dtype=torch.float64))
    parts = [layers[: k + 1] for k in range(1, len(layers))]
    return [forward(part, x, ball, rule, Arithmetic(rounding=True)) for part in parts]


def certified(model: nn.Module, x: Tensor, y: Tensor, eps: float, **more: Any) -> LocalCertificate:
    settings: Any = {"level": "masked", "decide": True, **more}
    return certify_local(model, x, eps, y, config=LocalConfig(**settings))


def network(activation: str, seed: int) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A chain of linear layers or of convolutions, in float64."""
    theta = 0.1 + (seed % 7) / 5
    if seed % 3:
        return mlp(activation, seed=seed, theta=theta).double().requires_grad_(False), (5,)
    return convnet(activation, seed=seed, theta=theta).double().requires_grad_(False), (1, 8, 8)


@every_activation
@settings(max_examples=6)
@given(seed=seeds, eps=radii)
def test_boxes_hold_every_sampled_value_and_constants_are_constant(
    activation: str, seed: int, eps: float
) -> None:
    model, shape = network(activation, seed)
    x = inputs(shape, seed)
    layers = layers_of(model, shape)
    known = passed(model, x, eps)
    for points in cloud(x, eps, 12, seed):
        flat, middle = points, x
        for layer, found in zip(layers, known, strict=False):
            assert layer.activation is not None
            flat, middle = (layer.activation.apply(layer.affine(v)) for v in (flat, middle))
            assert found.box is not None
            assert bool((flat >= found.box.low - 1e-12).all())
            assert bool((flat <= found.box.high + 1e-12).all())
            assert bool((middle >= found.center.low).all() and (middle <= found.center.high).all())
            moved = (flat - middle).norm(dim=1)
            assert bool((moved <= found.lip * eps * (1 + 1e-9) + 1e-12).all())
            if found.columns is not None:
                still = (flat - middle).abs() * (1.0 - found.columns)
                assert float(still.max()) <= 1e-12


@every_activation
@settings(max_examples=6)
@given(seed=seeds, eps=radii)
def test_the_local_bound_lies_between_sampled_slopes_and_the_global_one(
    activation: str, seed: int, eps: float
) -> None:
    model, shape = network(activation, seed)
    x = inputs(shape, seed, count=2)
    whole = NormMargins(layers_of(model, shape), None).whole
    running = passed(model, x, eps)[-1].lip
    assert bool((running <= whole * (1 + 1e-9)).all())
    inner = model[:-1]
    for points in cloud(x, eps, 4, seed):
        for k, point in enumerate(points):
            jacobian = torch.autograd.functional.jacobian(inner, point[None]).flatten(2)
            slope = float(torch.linalg.matrix_norm(jacobian.flatten(0, 1), 2))
            assert slope <= float(running.expand(2)[k]) * (1 + 1e-9)


def test_clipping_and_small_balls_make_the_local_bound_smaller() -> None:
    x = inputs((5,), 0, count=20)
    ratios = {}
    for activation in ACTIVATIONS:
        model = mlp(activation, (5, 40, 40, 3), theta=0.1).double().requires_grad_(False)
        whole = NormMargins(layers_of(model, (5,)), None).whole
        near, far = (float(passed(model, x, eps)[-1].lip.mean()) / whole for eps in (0.01, 0.5))
        assert near <= far
        ratios[activation] = near
    assert ratios["max_min"] == pytest.approx(1.0)
    assert ratios["clipped_max_min"] < 0.98
    assert ratios["clipped_relu"] < ratios["relu"] < 0.95


@every_activation
@pytest.mark.parametrize("level", ["masked", "product"])
@settings(max_examples=6)
@given(seed=seeds, eps=st.sampled_from([0.01, 0.05, 0.15]))
def test_no_attack_breaks_a_certificate(activation: str, level: str, seed: int, eps: float) -> None:
    model, shape = network(activation, seed)
    x = inputs(shape, seed, count=40)
    y = model(x).argmax(1)
    y[::9] = (y[::9] + 1) % 3
    found = certified(model, x, y, eps, level=level)
    assert torch.equal(found.predicted, model(x).argmax(1))
    assert bool((found.correct | ~found.robust).all())
    assert torch.equal(found.robust, found.least_margin > 0.0)
    verify_local(found, model)
    sure = found.robust
    for attack in (pgd, gradient_free):
        near = attack(model, x[sure], y[sure], eps, AttackConfig(steps=20, restarts=3))
        assert not bool(fooled(model, near, y[sure]).any())


@every_activation
def test_every_further_means_certifies_more(activation: str) -> None:
    model = mlp(activation, (5, 40, 40, 3), theta=0.2)
    x = inputs((5,), 3, count=200)
    y = model(x.float()).argmax(1)
    eps = {"relu": 0.08, "clipped_relu": 0.08}.get(activation, 0.04)
    margins = NormMargins(layers_of(model, (5,)), None)
    functionals, _ = functionals_for(y, len(x), 3)
    reach = margins.by_product(functionals).lip * eps
    by_product = (certified(model, x, y, eps).center > reach).sum(dim=1) == 2
    held = [
        by_product,
        *(certified(model, x, y, eps, level=n).robust for n in ("product", "masked")),
    ]
    assert not bool((held[0] & ~held[1]).any() or (held[1] & ~held[2]).any())
    everything = certified(model, x, y, eps, decide=False)
    assert torch.equal(everything.robust, held[2])
    if activation != "max_min":
        assert int(held[0].sum()) < int(held[2].sum())
        record = everything.to_record()
        assert record["ratio"] < 0.95
        assert 0.0 < record["varying"] < 1.0


def test_a_range_of_the_data_helps_and_is_believed() -> None:
    model = mlp("relu", (5, 30, 30, 3), seed=4)
    x = inputs((5,), 4, count=100).round()  # corners of the unit box
    y = model(x.float()).argmax(1)
    free, cut = (certified(model, x, y, 0.2, box=r, decide=False) for r in (None, (0.0, 1.0)))
    assert bool((cut.least_margin >= free.least_margin - 1e-8)[cut.correct].all())
    assert cut.to_record()["varying"] < free.to_record()["varying"]
    double = model.double()
    near = pgd(double, x, y, 0.2, AttackConfig(clip=(0.0, 1.0)))
    assert not bool((fooled(double, near, y) & cut.robust).any())


def identity(outputs: int = 2) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(outputs, outputs, bias=False))
    model[0].weight.data = torch.eye(outputs)
    return model


def test_a_linear_network_is_certified_up_to_its_boundary() -> None:
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    distance = 1.0 / math.sqrt(2.0)
    for share, proven_there in ((0.999999, True), (1.000001, False)):
        found = certified(identity(), x, y, share * distance)
        assert found.robust.tolist() == [proven_there]
        assert found.decided == ["product" if proven_there else "open"]


def test_ties_certify_nothing_and_values_that_are_not_finite_are_refused() -> None:
    x = torch.tensor([[1.0, 1.0], [0.0, 1.0], [2.0, 1.0], [1e30, 0.0]]).double()
    y = torch.zeros(4, dtype=torch.int64)
    found = certified(identity(), x, y, 0.0)
    assert found.robust.tolist() == [False, False, True, True]
    assert found.decided == ["wrong", "wrong", "product", "product"]
    assert bool((found.least_margin[:2] <= 0.0).all())
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="x: expected finite inputs, got a NaN or inf"):
            certified(identity(), x * value, y, 0.1)
        for layer in (0, 2):
            model = mlp("relu", (2, 4, 3))
            model[layer].weight.data[0, 0] = value
            with pytest.raises(NetworkError, match=f"{layer}.weight: holds a value that is NaN"):
                certified(model, x, y, 0.1)


def test_no_samples_give_an_empty_record() -> None:
    none = certified(identity(), torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 0.1)
    assert len(none) == 0
    assert none.to_record()["certified_accuracy"] == 0.0
    assert "varying" not in none.to_record()


def test_the_record_counts_what_decided() -> None:
    model = mlp("relu", (5, 40, 40, 3))
    x = inputs((5,), 3, count=60)
    y = model(x.float()).argmax(1)
    record = certified(model, x, y, 0.004).to_record()
    assert sum(v for k, v in record.items() if k.startswith("decided_")) == 60
    shares = certified(model, x, y, 0.004).robust.double().mean()
    assert record["certified_accuracy"] == shares


@pytest.mark.parametrize("level", ["product", "masked"])
@pytest.mark.parametrize("decide", [True, False])
def test_a_file_of_it_verifies_and_an_edited_one_does_not(
    level: str, decide: bool, tmp_path: Path
) -> None:
    model, x = convnet("clipped_max_min").double(), inputs((1, 8, 8), 0, count=8)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    found = certified(model, x, y, 0.02, level=level, decide=decide, box=(0.0, 1.0))
    found.save(tmp_path / "found.safetensors")
    again = LocalCertificate.load(tmp_path / "found.safetensors")
    assert torch.equal(found.robust, again.robust)
    assert bool(again.robust.any())
    verify_local(again, model)
    finite = torch.isfinite(again.margin) & (again.margin != 0.0)
    raised = torch.where(finite, again.margin + 0.1, again.margin)
    for change in ({"lip": 0.9 * again.lip}, {"radius": 3.0 * again.radius}, {"margin": raised}):
        if not decide:  # what was decided by less than its level allows is proven by that
            with pytest.raises(CertificateError, match="the claim for input"):
                verify_local(dataclasses.replace(again, **change), model)


@pytest.mark.parametrize("level", ["product", "masked"])
@pytest.mark.parametrize("kind", ["tanh", "graph", "leaky"])
def test_any_network_is_bounded_by_norms(kind: str, level: str) -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self.a(x))
            return self.c(hidden + torch.relu(self.b(hidden)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    smooth = nn.Tanh() if kind == "tanh" else nn.LeakyReLU(-1.4)
    chain = nn.Sequential(nn.Linear(5, 8), smooth, nn.Linear(8, 8), smooth, nn.Linear(8, 3))
    model = (Skip() if kind == "graph" else chain).double()
    x = inputs((5,), 0, count=6)
    y = model(x).argmax(1)
    found = certify_local(model, x, 0.05, y, config=LocalConfig(level))
    whole = certify_local(model, x, 0.05, config=LocalConfig(level))
    for one in (found, whole):
        verify_local(one, model)
    logits = model(x).detach()
    for points in cloud(x, 0.05, 30):
        near = model(points).detach()
        step = (points - x).norm(dim=1)
        assert bool(((near - logits).norm(dim=1) <= whole.lip[:, 0] * step + 1e-12).all())
        gap = near.gather(1, y[:, None]) - near
        rise = (gap - logits.gather(1, y[:, None]) + logits).abs()
        asked = torch.isfinite(found.lip)
        assert bool((rise <= found.lip * step[:, None] + 1e-12)[asked].all())
        assert bool((gap >= found.margin - 1e-12).all())


def test_the_old_name_warns_and_gives_the_same() -> None:
    model, x = mlp("relu"), inputs((5,), 0)
    y = model(x.float()).argmax(1)
    with pytest.warns(DeprecationWarning, match=r'certify_local\(model, x, eps, y.*level="masked"'):
        old = certify_samples(model, x, y, 0.05, data_range=(0.0, 1.0), progress=False)
    new = certified(model, x, y, 0.05, box=(0.0, 1.0))
    assert torch.equal(old.lip, new.lip)
    assert torch.equal(old.margin, new.margin)
    with pytest.raises(ValueError, match="bound: expected one of local, global, got 'tight'"):
        certify_samples(model, x, y, 0.1, bound="tight")


def test_units_and_linf_are_for_the_way_by_lines() -> None:
    model, x = mlp("relu"), inputs((5,), 0)
    for settings_ in ({"norm": "linf"}, {"input_scale": 2.0}):
        with pytest.raises(CertificateError, match="level: masked measures l2 in the units of"):
            certify_local(model, x, 0.1, config=LocalConfig("masked", **settings_))  # type: ignore[arg-type]


def test_the_model_stays_as_it_was() -> None:
    model = mlp("clipped_relu").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    certified(model, inputs((5,), 0), torch.zeros(4, dtype=torch.int64), 0.1)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
