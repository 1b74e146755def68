"""The method: schedules, warm starts, what it reports, and that it trains."""

from __future__ import annotations

import math

import pytest
import torch
from clipped_nets import ACTIVATIONS, cloud, convnet, mlp
from torch import Tensor, nn

from admm_lip import TrainConfig, train
from admm_lip.data import load_data
from admm_lip.errors import UnsupportedModule
from admm_lip.local import LocalConfig, certify_local, local_radii, verify_local
from admm_lip.research.comparators import METHODS
from admm_lip.research.comparators.local import LocalLipschitz

SURROGATES = ["bcp", "gloro", "lmt"]


def batch(shape: tuple[int, ...] = (5,), classes: int = 3, count: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return (
        torch.rand(count, *shape, generator=g, dtype=torch.float64),
        torch.randint(0, classes, (count,), generator=g),
    )


def value(method: LocalLipschitz, model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    x, y = pair
    method.begin_batch(model, torch.arange(len(x)))
    return method.objective(model, x, y, nn.functional.cross_entropy, 0.9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("bound", ["local", "global"])
def test_the_gradient_is_that_of_differences(activation: str, surrogate: str, bound: str) -> None:
    """With the masks held: a small step leaves them as they are."""
    method = LocalLipschitz(
        eps=0.1, surrogate=surrogate, bound=bound, iterations=200, ramp=0.0, box_gradient=True
    )
    model = method.prepare(mlp(activation).double())
    pair = batch()
    value(method, model, pair)
    loss = value(method, model, pair)
    weights = list(model.parameters())
    gradient = torch.autograd.grad(loss, weights)
    way = [torch.randn_like(w) for w in weights]
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, way, strict=True))
    step, ends = 1e-6, []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for w, d in zip(weights, way, strict=True):
                w.add_(d, alpha=sign * step)
            ends.append(float(value(method, model, pair).detach()))
            for w, d in zip(weights, way, strict=True):
                w.sub_(d, alpha=sign * step)
    difference = (ends[0] - ends[1]) / (2 * step)
    if surrogate == "bcp":  # the radius of the boxes is held
        assert slope == pytest.approx(difference, rel=0.3)
    else:
        assert slope == pytest.approx(difference, rel=2e-3)


@pytest.mark.parametrize("surrogate", [*SURROGATES, "quadratic"])
def test_the_local_loss_is_at_most_the_global_one(surrogate: str) -> None:
    pair = batch()
    losses = []
    for bound in ("local", "global"):
        method = LocalLipschitz(
            eps=0.02, surrogate=surrogate, bound=bound, iterations=100, ramp=0.0
        )
        model = method.prepare(mlp("clipped_relu", (5, 20, 20, 3), theta=0.3).double())
        losses.append(float(value(method, model, pair).detach()))
    assert losses[0] < losses[1]


def test_schedules() -> None:
    method = LocalLipschitz(eps=2.0, warmup=0.2, ramp=0.4, kappa_end=0.5)
    assert [method.schedule(p) for p in (0.0, 0.2)] == [(0.0, 1.0)] * 2
    assert method.schedule(0.4) == pytest.approx((1.0, 0.75))
    assert method.schedule(0.99) == (2.0, 0.5)
    assert LocalLipschitz(eps=1.0, ramp=0.0).schedule(0.0) == (1.0, 0.0)


def test_before_the_ramp_the_loss_is_the_plain_one() -> None:
    method = LocalLipschitz(warmup=0.5)
    model = method.prepare(mlp("relu").double())
    x, y = batch()
    loss = method.objective(model, x, y, nn.functional.cross_entropy, 0.3)
    assert torch.equal(loss, nn.functional.cross_entropy(model(x), y))
    assert method.report(model) == {}


@pytest.mark.parametrize("activation", ["relu", "clipped_relu", "clipped_max_min"])
@pytest.mark.parametrize("sparsity", [0.0, 0.05])
def test_it_trains_a_convolutional_chain(activation: str, sparsity: float) -> None:
    x, y = batch((1, 8, 8), 4, 64)
    y %= 2
    x[:, :, :4] = 0.5 * x[:, :, :4] + 0.5 * y[:, None, None, None]
    method = LocalLipschitz(eps=0.1, ramp=0.3, sparsity=sparsity, data_range=(0, 1))
    config = TrainConfig(epochs=12, batch_size=16, lr=5e-3)
    result = train(
        convnet(activation, theta=2.0), (x.float(), y), config, method=method, progress=False
    )
    assert type(result.model) is nn.Sequential
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < losses[0]
    last = result.history[-1]
    assert 0.0 < last["varying"] <= 1.0
    assert 0.0 < last["local_ratio"] <= 1.1
    found = certify_local(result.model, x, 0.01, y, config=LocalConfig("masked", decide=True))
    assert float(found.correct.double().mean()) > 0.7


def test_training_for_a_bound_certifies_more_than_plain_training() -> None:
    data = load_data("digits")
    x, y = data.test
    certified = {}
    for name in ("nominal", "local"):
        method = METHODS[name](**({"eps": 0.5} if name == "local" else {}))
        config = TrainConfig(epochs=15, batch_size=64, lr=5e-3)
        model = mlp("clipped_relu", (64, 32, 32, 10), theta=1.0)
        result = train(model, data.train, config, method=method, progress=False)
        config_ = LocalConfig("masked", decide=True)
        certified[name] = certify_local(result.model, x, 0.3, y, config=config_).to_record()
    shares = [certified[name]["certified_accuracy"] for name in ("local", "nominal")]
    assert shares[0] > shares[1] + 0.2
    assert certified["local"]["clean_accuracy"] > 0.8


def test_local_certificates_of_lipsdp_take_the_trained_network() -> None:
    data = load_data("digits")
    config = TrainConfig(epochs=8, batch_size=64, lr=5e-3)
    method = LocalLipschitz(eps=0.3)
    model = train(
        mlp("relu", (64, 16, 16, 10)), data.train, config, method=method, progress=False
    ).model
    x, y = (part[:40] for part in data.test)
    norms = certify_local(model, x, 0.3, y, config=LocalConfig("masked")).robust
    radii = local_radii(model, x, y, config=LocalConfig(rounds=6)).radius
    assert int((radii >= 0.3).sum()) >= int(norms.sum()) > 0


@pytest.mark.parametrize("level", ["masked", "norms", "tuned"])
@pytest.mark.parametrize("activation", ["clipped_relu", "clipped_max_min"])
def test_thresholds_are_bounded_by_norms_and_by_lines(activation: str, level: str) -> None:
    x, _ = batch()
    model = mlp(activation).double()
    y = model(x).argmax(1)
    found = local_radii(model, x, y, config=LocalConfig(level, rounds=5))
    assert bool((found.radius > 0.0).all())
    verify_local(found, model)
    for points in cloud(x, 1.0, 100):
        assert bool((model(x + found.radius[:, None] * (points - x)).argmax(1) == y).all())


def test_warm_starts_survive_a_checkpoint_and_nothing_else_does() -> None:
    method = LocalLipschitz(eps=0.1, ramp=0.0)
    pair = batch()
    model, again = (method.prepare(mlp("relu").double()) for _ in range(2))
    for _ in range(3):
        value(method, model, pair)
    state = method.state(model)
    assert state["warm_table"].dtype == torch.float16
    method.restore(again, state)
    assert torch.equal(value(method, again, pair), value(method, model, pair))
    other = method.prepare(mlp("relu", (5, 8, 3)).double())
    method.restore(other, state)
    with pytest.raises(ValueError, match="of another architecture"):
        value(method, other, pair)


def test_without_row_numbers_it_trains_all_the_same() -> None:
    method = LocalLipschitz(eps=0.1, ramp=0.0)
    model = method.prepare(mlp("relu").double())
    x, y = batch()
    method.begin_batch(model, None)
    loss = method.objective(model, x, y, nn.functional.cross_entropy, 0.9)
    assert math.isfinite(float(loss.detach()))
    assert len(method.state(model)["warm_table"]) == 0


def test_thresholds_stay_above_zero() -> None:
    method = LocalLipschitz()
    model = method.prepare(mlp("clipped_relu"))
    threshold = dict(model.named_parameters())["network.1.threshold"].detach()
    threshold -= 9.0
    method.after_step(model)
    assert threshold.min() == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": -1.0}, "eps: expected a finite number >= 0, got -1.0"),
        ({"surrogate": "cap"}, "surrogate: expected one of bcp, gloro, lmt, quadratic, got 'cap'"),
        ({"bound": "tight"}, "bound: expected one of local, global, got 'tight'"),
        ({"iterations": 0}, "iterations: expected a finite number >= 1"),
        ({"kappa_end": 1.5}, "kappa_end: expected at most 1"),
        ({"sparsity": -0.1}, "sparsity: expected"),
        ({"data_range": (1.0, 0.0)}, "data_range: expected two finite ends"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalLipschitz(**settings)  # type: ignore[arg-type]


def test_inputs_outside_the_stated_range_are_refused() -> None:
    method = LocalLipschitz(data_range=(0.0, 1.0))
    model = method.prepare(mlp("relu").double())
    x, y = batch()
    with pytest.raises(ValueError, match=r"x: expected inputs inside the data_range"):
        value(method, model, (x + 0.5, y))


def test_unsupported_layers_are_refused_by_name() -> None:
    method = LocalLipschitz()
    model = method.prepare(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    with pytest.raises(UnsupportedModule, match=r"1 \(Tanh\)"):
        value(method, model, batch())
