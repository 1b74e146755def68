"""Training and projecting under a bound in raw units: what it is about, what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip import TrainConfig, Units, certify, project, train, verify
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.networks.sorting_torch import MaxMin
from admm_lip.solvers import SolverConfig, unit_slopes
from admm_lip.training.metric import Metric

exponents = st.lists(st.floats(-6.0, 6.0), min_size=4, max_size=4)


def weights(seed: int = 0, sizes: tuple[int, ...] = (4, 6, 5, 3)) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(sizes[1:], sizes[:-1], strict=True)
    return tuple(torch.randn(m, n, generator=generator).double() for m, n in pairs)


def units_of(log: list[float], outputs: int) -> Units:
    scale = 10.0 ** np.array(log)
    return Units(input_scale=tuple(scale), output_scale=tuple(scale[::-1][:outputs]))


@settings(max_examples=25, deadline=None)
@given(log=exponents, seed=st.integers(0, 100), deep=st.booleans())
def test_distances_are_those_of_the_weights(log: list[float], seed: int, deep: bool) -> None:
    sizes = (4, 6, 5, 3) if deep else (4, 3)
    one, other = weights(seed, sizes), weights(seed + 1, sizes)
    metric = Metric.of(units_of(log, 3), one)
    plain = sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True))
    weighed = sum(
        float(((a - b).square() * (1.0 if s.metric is None else s.metric)).sum())
        for a, b, s in zip(metric.seen(one), metric.seen(other), metric.structure(one), strict=True)
    )
    assert weighed == pytest.approx(plain, rel=1e-9)
    assert all(
        torch.allclose(a, b) for a, b in zip(one, metric.back(metric.seen(one)), strict=True)
    )


@settings(max_examples=15, deadline=None)
@given(log=exponents, seed=st.integers(0, 100))
def test_columns_are_shrunk_to_the_bound_and_no_further(log: list[float], seed: int) -> None:
    own, units = weights(seed), units_of(log, 3)
    model = stacked(own)
    bound = 0.3 * certify(model, units=units).lip
    found = Metric.of(units, own).admitted(own, unit_slopes(own), bound, SolverConfig())
    assert certify(stacked(found), units=units).lip <= bound * (1.0 + 1e-5)
    share = (found[0] / own[0])[0]
    assert float(share.max()) <= 1.0
    assert torch.equal(share.argsort(), torch.tensor(units.input_scale).argsort()) or (
        float(share.max()) == 1.0
    )


def stacked(matrices: tuple[torch.Tensor, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for w in matrices:
        layer = nn.Linear(w.shape[1], w.shape[0]).double()
        layer.weight.data = w
        layer.bias.data.zero_()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_one_scale_for_all_is_the_plain_projection() -> None:
    model = stacked(weights(3))
    lip = certify(model).lip
    plain = project(model, bound=0.5 * lip)
    units = Units(input_scale=1e-3, output_scale=50.0)
    scaled = project(model, bound=0.5 * lip * 50.0 / 1e-3, units=units)
    assert scaled.distance == pytest.approx(plain.distance, rel=1e-2)
    assert scaled.certificate.units == units
    verify(scaled.certificate, scaled.model)


@settings(max_examples=4, deadline=None)
@given(log=exponents, seed=st.integers(0, 100))
def test_a_projection_meets_the_raw_bound_nearby(log: list[float], seed: int) -> None:
    own, units = weights(seed, (4, 6, 3)), units_of(log, 3)
    model = stacked(own)
    bound = 0.5 * certify(model, units=units).lip
    found = project(model, bound=bound, units=units)
    assert found.certificate.lip <= bound
    verify(found.certificate, found.model)
    # Half of the last layer is one way to meet it.
    assert found.distance <= 0.5 * float(own[-1].norm()) * (1.0 + 1e-6)


def table(scale: Any) -> tuple[torch.Tensor, torch.Tensor, Units]:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(256, 4))
    y = (z[:, :1] + np.sin(2.0 * z[:, 1:2])) * 1e4
    units = Units.standardising(z * scale, y)
    x, t = units.to_model(z * scale), units.target_to_model(y)
    return torch.from_numpy(x).float(), torch.from_numpy(t).float(), units


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("form", ["bound", "mu"])
def test_training_keeps_the_raw_bound(activation: str, form: str) -> None:
    x, y, units = table((1e6, 1e-6, 1.0, 1e3))
    model = build_mlp(4, 1, ModelConfig(hidden=(8,), activation=activation))
    bound = 0.3 * certify(model, units=units).lip
    asked: dict[str, Any] = {"bound": bound} if form == "bound" else {"mu": 1e-2 / bound**2}
    config = TrainConfig(epochs=5, batch_size=32, **asked)
    result = train(model, (x, y), config, units=units, progress=False)
    verify(result.certificate, result.model)
    assert result.certificate.units == units
    assert all(row["ball_norm"] <= 1.0 for row in result.history)
    if form == "bound":
        assert result.certificate.lip <= bound
        assert all(row["lip"] <= bound for row in result.history)
    # The columns of large scale are free under this bound, and are used.
    first = result.model[0].weight.detach()
    assert float(first[:, 0].norm()) > 0.1


def test_units_that_cannot_be_trained_in_are_refused() -> None:
    x, y, units = table((1.0, 1.0, 1.0, 1.0))
    sorting = nn.Sequential(nn.Linear(4, 8), MaxMin(), nn.Linear(8, 1))
    said = "units: a network that sorts pairs, or of convolutions or skips, is trained by one"
    with pytest.raises(ValueError, match=said):
        train(sorting, (x, y), TrainConfig(bound=1.0, epochs=1), units=units, progress=False)
    relu = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    with pytest.raises(ValueError, match="units: go with a projection alone"):
        project(relu, bound=1.0, units=units, finetune=(x, y))
