"""Boxes, local bounds and certificates on fuzzed networks: nothing sampled breaks them."""

from __future__ import annotations

import math

import pytest
import torch
from clipped_nets import ACTIVATIONS, cloud, convnet, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from admm_lip.errors import NetworkError, UnsupportedModule
from admm_lip.evaluation.attacks import AttackConfig, fooled, gradient_free, pgd
from admm_lip.local_training import LocalReport, certify_samples
from admm_lip.local_training.boxes import Masks
from admm_lip.local_training.passage import Norm, NormOf, Passage, Settings, passage
from admm_lip.local_training.proven_norms import ProvenNorms
from admm_lip.local_training.report import LEVELS
from admm_lip.local_training.stages import Stage, read_stages

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
seeds = st.integers(0, 100_000)
radii = st.sampled_from([0.0, 1e-3, 0.05, 0.3, 2.0])


def inputs(shape: tuple[int, ...], seed: int, count: int = 4) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(count, *shape, generator=g, dtype=torch.float64)


def proven(norms: ProvenNorms, running: bool) -> NormOf:
    def norm(k: int, stage: Stage, masks: Masks) -> Norm:
        whole = torch.tensor([norms.whole[k]], dtype=torch.float64)
        if masks.rows is None and masks.columns is None:
            return Norm(whole, whole)
        masked = norms.masked(k, masks)
        return Norm(masked, masked if running else whole)

    return norm


def passed(model: nn.Module, x: Tensor, eps: float, running: bool = True) -> list[Passage]:
    """What is known in front of every affine layer but the first."""
    stages = read_stages(model, tuple(x.shape[1:]))
    norms = ProvenNorms(stages)
    parts = [stages[: k + 1] for k in range(1, len(stages))]
    rule = proven(norms, running)
    return [passage(part, x, eps, rule, Settings(rounding=True)) for part in parts]


def network(activation: str, seed: int) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A chain of linear layers or of convolutions, in float64."""
    theta = 0.1 + (seed % 7) / 5
    if seed % 3:
        return mlp(activation, seed=seed, theta=theta).double().requires_grad_(False), (5,)
    return convnet(activation, seed=seed, theta=theta).double().requires_grad_(False), (1, 8, 8)


@every_activation
@settings(max_examples=6)
@given(seed=seeds, eps=radii, running=st.booleans())
def test_boxes_hold_every_sampled_value_and_constants_are_constant(
    activation: str, seed: int, eps: float, running: bool
) -> None:
    model, shape = network(activation, seed)
    x = inputs(shape, seed)
    stages = read_stages(model, shape)
    known = passed(model, x, eps, running)
    for points in cloud(x, eps, 12, seed):
        value, center = points, x
        for stage, found in zip(stages, known, strict=False):
            value, center = (stage.activate(stage.affine(v)) for v in (value, center))
            flat, middle = value.flatten(1), center.flatten(1)
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
    stages = read_stages(model, shape)
    whole = math.prod(ProvenNorms(stages).whole[:-1])
    running, fixed = (passed(model, x, eps, kind)[-1].lip for kind in (True, False))
    assert bool((running <= fixed * (1 + 1e-9)).all() and (fixed <= whole * (1 + 1e-9)).all())
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
        whole = math.prod(ProvenNorms(read_stages(model, (5,))).whole[:-1])
        near, far = (float(passed(model, x, eps)[-1].lip.mean()) / whole for eps in (0.01, 0.5))
        assert near <= far
        ratios[activation] = near
    assert ratios["max_min"] == pytest.approx(1.0)
    assert ratios["clipped_max_min"] < 0.98
    assert ratios["clipped_relu"] < ratios["relu"] < 0.95


@every_activation
@pytest.mark.parametrize("bound", ["local", "global"])
@settings(max_examples=6)
@given(seed=seeds, eps=st.sampled_from([0.01, 0.05, 0.15]))
def test_no_attack_breaks_a_certificate(activation: str, bound: str, seed: int, eps: float) -> None:
    model, shape = network(activation, seed)
    x = inputs(shape, seed, count=40)
    y = model(x).argmax(1)
    y[::9] = (y[::9] + 1) % 3
    found = certify_samples(model, x, y, eps, bound=bound, progress=False)
    assert torch.equal(found.predicted, model(x).argmax(1))
    assert bool((found.correct | ~found.certified).all())
    assert torch.equal(found.certified, found.margin > 0.0)
    sure = found.certified
    for attack in (pgd, gradient_free):
        near = attack(model, x[sure], y[sure], eps, AttackConfig(steps=20, restarts=3))
        assert not bool(fooled(model, near, y[sure]).any())


@every_activation
def test_every_further_means_certifies_more(activation: str) -> None:
    model = mlp(activation, (5, 40, 40, 3), theta=0.2)
    x = inputs((5,), 3, count=200)
    y = model(x.float()).argmax(1)
    eps = {"relu": 0.08, "clipped_relu": 0.08}.get(activation, 0.04)
    certified: list[set[int]] = []
    for bound, box in (("global", False), ("global", True), ("local", True)):
        found = certify_samples(model, x, y, eps, bound=bound, box=box, progress=False)
        certified.append(set(found.certified.nonzero()[:, 0].tolist()))
    assert certified[0] <= certified[1] <= certified[2]
    everything = certify_samples(model, x, y, eps, everything=True, progress=False)
    assert set(everything.certified.nonzero()[:, 0].tolist()) == certified[2]
    if activation != "max_min":
        assert len(certified[0]) < len(certified[2])
        assert everything.mean_ratio < 0.95
        assert 0.0 < everything.mean_varying < 1.0


def test_a_range_of_the_data_helps_and_is_believed() -> None:
    model = mlp("relu", (5, 30, 30, 3), seed=4)
    x = inputs((5,), 4, count=100).round()  # corners of the unit box
    y = model(x.float()).argmax(1)
    free, cut = (
        certify_samples(model, x, y, 0.2, data_range=r, everything=True, progress=False)
        for r in (None, (0.0, 1.0))
    )
    assert bool((cut.margin[cut.correct] >= free.margin[cut.correct] - 1e-12).all())
    assert cut.mean_varying < free.mean_varying
    double = model.double()
    near = pgd(double, x, y, 0.2, AttackConfig(clip=(0.0, 1.0)))
    assert not bool((fooled(double, near, y) & cut.certified).any())


def identity(outputs: int = 2) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(outputs, outputs, bias=False))
    model[0].weight.data = torch.eye(outputs)
    return model


def test_a_linear_network_is_certified_up_to_its_boundary() -> None:
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    distance = 1.0 / math.sqrt(2.0)
    for share, proven_there in ((0.999999, True), (1.000001, False)):
        found = certify_samples(identity(), x, y, share * distance, progress=False)
        assert found.certified.tolist() == [proven_there]
        assert LEVELS[int(found.level)] == ("global" if proven_there else "open")


def test_ties_and_values_that_are_not_finite_certify_nothing() -> None:
    x = torch.tensor([[1.0, 1.0], [math.nan, 0.0], [math.inf, 0.0], [2.0, 1.0], [1e30, 0.0]])
    x = x.double()
    y = torch.zeros(5, dtype=torch.int64)
    found = certify_samples(identity(), x, y, 0.0, progress=False)
    assert found.certified.tolist() == [False, False, False, True, True]
    assert bool((found.margin[:3] <= 0.0).all())
    for value in (math.nan, math.inf):
        for layer in (0, 2):
            model = mlp("relu", (2, 4, 3))
            model[layer].weight.data[0, 0] = value
            with pytest.raises(NetworkError, match=f"{layer}.weight: holds a value that is NaN"):
                certify_samples(model, x, y, 0.1, progress=False)


def test_no_samples_give_an_empty_report() -> None:
    none = certify_samples(
        identity(), torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 0.1, progress=False
    )
    assert len(none) == 0
    assert none.certified_accuracy == 0.0
    assert "varying" not in none.to_record()


def test_the_record_counts_what_decided() -> None:
    model = mlp("relu", (5, 40, 40, 3))
    x = inputs((5,), 3, count=60)
    y = model(x.float()).argmax(1)
    found = certify_samples(model, x, y, 0.004, progress=False)
    record = found.to_record()
    assert sum(v for k, v in record.items() if k.startswith("decided_")) == 60  # type: ignore[misc]
    assert record["certified_accuracy"] == found.certified.double().mean()
    assert isinstance(found, LocalReport)


def test_the_model_stays_as_it_was() -> None:
    model = mlp("clipped_relu").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    certify_samples(model, inputs((5,), 0), torch.zeros(4, dtype=torch.int64), 0.1, progress=False)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"eps": -0.1}, "eps: expected a finite radius >= 0, got -0.1"),
        ({"eps": math.nan}, "eps: expected a finite radius"),
        ({"bound": "tight"}, "bound: expected one of local, global, got 'tight'"),
        ({"y": torch.tensor([0, 7])}, r"y: expected class labels in 0\.\.2"),
        ({"y": torch.tensor([0.0, 1.0])}, "y: expected integer class labels"),
        ({"x": torch.zeros(2)}, r"x: expected inputs of shape \(batch, \*\), got \(2,\)"),
        ({"data_range": (0.0, 0.5)}, r"x: expected inputs in the stated data_range \(0.0, 0.5\)"),
        ({"data_range": (1.0, 0.0)}, "data_range: expected two finite ends, the lower first"),
        ({"x": torch.full((2, 5), math.nan), "data_range": (0, 1)}, "x: expected inputs in"),
    ],
)
def test_bad_arguments_are_named(settings_: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"x": torch.ones(2, 5), "y": torch.tensor([0, 1]), "eps": 0.1}
    with pytest.raises(ValueError, match=message):
        certify_samples(mlp("relu"), **{**arguments, **settings_}, progress=False)  # type: ignore[arg-type]


def test_other_layers_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Sigmoid(), nn.Linear(4, 2))
    with pytest.raises(UnsupportedModule, match=r"1 \(Sigmoid\): local bounds handle"):
        certify_samples(model, torch.ones(1, 2), torch.tensor([0]), 0.1, progress=False)
