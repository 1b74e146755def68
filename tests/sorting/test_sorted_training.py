"""Training and projection of networks that sort: the clip, the penalised optimum, whole runs."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from admm_lip import TrainConfig, certify, project, train, verify
from admm_lip.commands.train import run as train_command
from admm_lip.errors import UnsupportedModule
from admm_lip.lipschitz import Lipschitz
from admm_lip.networks.chain import read_network
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.networks.sorting_torch import GroupSort2, MaxMin
from admm_lip.training import constraint
from admm_lip.training.admm_state import AdmmState, Matrices
from admm_lip.training.config import AdmmConfig
from admm_lip.training.layer_norms import best_norm, layer_start, project_layers
from admm_lip.training.matrix_ball import (
    DENSE,
    clipped,
    is_inside,
    spectral_norm,
    spectrum,
)
from admm_lip.training.pair_rotation import Frame
from admm_lip.training.terms import LayerNorms, Terms

SHAPES = ((6, 9), (4, 6), (3, 4))


def matrices(seed: int, scale: float = 1.0) -> Matrices:
    generator = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(s, generator=generator).double() for s in SHAPES)


def state_of(weights: Matrices, lip: float, rho: float = 0.7) -> AdmmState:
    zero = tuple(torch.zeros_like(w) for w in weights)
    return AdmmState(weights, zero, (), rho, lip**2, lip**2)


def net(kind: str = "max_min", seed: int = 0, scale: float = 2.0) -> nn.Sequential:
    model = build_mlp(6, 3, ModelConfig((8, 6), kind, init="torch"), seed=seed)
    for p in model.parameters():
        p.data *= scale
    return model


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(192, 6, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    seed=st.integers(0, 500),
    radius=st.sampled_from([1e-3, 0.5, 1.0, 2.0, 100.0]),
)
def test_clipping_is_the_projection(rows: int, columns: int, seed: int, radius: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    w = clipped(spectrum(v), radius)
    left, values, right = torch.linalg.svd(v, full_matrices=False)
    assert torch.allclose(w, left @ torch.diag(values.clamp(max=radius)) @ right, atol=1e-9)
    assert spectral_norm(w) <= radius * (1.0 + 1e-9)
    # The variational inequality of a projection onto a convex set.
    other = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    other *= radius / spectral_norm(other)
    assert ((v - w) * (other - w)).sum() <= 1e-9 * (1.0 + radius**2)
    if is_inside(v, radius):
        assert torch.equal(w, v)


@pytest.mark.parametrize("shape", [(120, 150), (150, 120)])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_a_wide_layer_is_clipped_in_single_precision(shape: tuple[int, int], scale: float) -> None:
    v = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact, radius = clipped(spectrum(v), 9.0 * scale), 9.0 * scale
    rough = DENSE.nearest(v, radius, 1e-3)[0]
    assert spectral_norm(rough) <= radius
    moved = torch.linalg.matrix_norm(v - exact)
    assert 0.0 < torch.linalg.matrix_norm(rough - exact) <= 1e-3 * moved
    assert torch.equal(DENSE.nearest(v, radius, 1e-7)[0], exact)
    assert torch.equal(DENSE.nearest(rough, radius, 1e-3)[0], rough)


@pytest.mark.parametrize("shape", [(130, 150), (150, 130), (140, 140)])
def test_a_wide_layer_is_clipped_near_what_was_clipped_before(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(shape, generator=generator, dtype=torch.float64)
    radius, warm = 0.9 * spectral_norm(v), None
    for step in range(6):
        v = v + 0.02 * torch.randn(shape, generator=generator, dtype=torch.float64)
        if step == 4:  # what no basis of the round before can show
            v = v + 3.0 * radius / math.prod(shape) ** 0.5
        near, warm, _ = DENSE.nearest(v, radius, 1e-3, warm)
        exact = clipped(spectrum(v), radius)
        assert torch.linalg.matrix_norm(near, 2) <= radius
        assert warm is not None
        assert warm.shape[1] < 60
        moved = torch.linalg.matrix_norm(v - exact)
        assert torch.linalg.matrix_norm(near - exact) <= 0.03 * moved
    other = torch.linalg.qr(torch.randn(min(shape), 20, generator=generator))[0]
    assert torch.linalg.matrix_norm(DENSE.nearest(v, radius, 1e-3, other)[0], 2) <= radius


def test_the_enforced_step_clips_every_layer() -> None:
    anchor = matrices(1)
    solution = project_layers(anchor, state_of(anchor, 2.0), None)
    for w, v in zip(solution.weights, anchor, strict=True):
        assert spectral_norm(w) == pytest.approx(min(2.0 ** (1 / 3), spectral_norm(v)), rel=1e-9)
    assert solution.lip_sq == pytest.approx(4.0)
    feasible = tuple(1e-3 * v for v in anchor)
    inside = project_layers(feasible, state_of(feasible, 2.0), None)
    assert all(torch.equal(w, v) for w, v in zip(inside.weights, feasible, strict=True))


@pytest.mark.parametrize("mu", [1e-6, 1e-3, 1.0, 1e3])
def test_the_penalised_step_is_optimal_in_the_bound_too(mu: float) -> None:
    anchor, rho = matrices(2), 0.7
    solution = project_layers(anchor, state_of(anchor, 1.0, rho), mu)
    s = solution.lip_sq
    # mu s = rho/2 <V_k - W_k, W_k>, averaged over the layers.
    pairs = zip(anchor, solution.weights, strict=True)
    pull = sum(float(((v - w) * w).sum()) for v, w in pairs) / len(anchor)
    assert mu * s == pytest.approx(0.5 * rho * pull, rel=1e-6)
    distance = sum(
        float((v - w).square().sum()) for v, w in zip(anchor, solution.weights, strict=True)
    )
    assert solution.objective == pytest.approx(mu * s + 0.5 * rho * distance)
    for factor in (0.5, 0.9, 1.1, 2.0):
        moved = project_layers(anchor, state_of(anchor, factor * s**0.5, rho), None)
        other = mu * moved.lip_sq + 0.5 * rho * moved.distance**2
        assert other >= solution.objective * (1.0 - 1e-9)


def test_the_best_norm_solves_its_equation() -> None:
    values = [0.1, 0.5, 2.0, 3.0]
    for weight in (1e-9, 1e-2, 1.0, 1e9):
        c = best_norm(values, weight, 4)
        above = sum(max(v - c, 0.0) for v in values)
        assert 8 * weight * c**7 == pytest.approx(above, rel=1e-6)


def terms_of(bound: float) -> Terms:
    return Terms(Lipschitz(bound), LayerNorms(), AdmmConfig())


@pytest.mark.parametrize("kind", ["max_min", "group_sort2"])
def test_the_start_balances_the_norms_and_keeps_the_function(kind: str) -> None:
    model = net(kind).double()
    layers = [m for m in model if isinstance(m, nn.Linear)]
    for factor, layer in zip((20.0, 0.1, 0.3), layers, strict=True):
        layer.weight.data *= factor
    weights = tuple(layer.weight.detach().clone() for layer in layers)
    product = math.prod(spectral_norm(w) for w in weights)
    x = data()[0].double()
    before = model(x).detach()
    begun = layer_start(weights, terms_of(10.0 * product), torch.float64, 0.1)
    for layer, w, f in zip(layers, begun.state.consensus, begun.bias_factors, strict=True):
        layer.weight.data.copy_(w)
        layer.bias.data *= f
    assert torch.allclose(model(x), before, rtol=1e-10, atol=1e-10)
    norms = [spectral_norm(w) for w in begun.state.consensus]
    assert norms == pytest.approx([product ** (1 / 3)] * 3)
    tight = layer_start(weights, terms_of(0.1 * product), torch.float64, 0.1)
    norms = [spectral_norm(w) for w in tight.state.consensus]
    assert math.prod(norms) == pytest.approx(0.1 * product, rel=1e-6)


@pytest.mark.parametrize("kind", ["max_min", "group_sort2"])
def test_a_run_ends_under_its_bound(kind: str) -> None:
    x, y = data()
    model = net(kind)
    before = copy.deepcopy(model.state_dict())
    config = TrainConfig(bound=1.5, epochs=12, batch_size=32, loss="margin", eps=0.1)
    result = train(model, (x, y), config, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert result.certificate.lip <= 1.5
    assert result.certificate.lip > 1.0
    verify(result.certificate, result.model)
    assert [type(m) for m in result.model] == [type(m) for m in model]
    for w in result.state.consensus:
        assert spectral_norm(w) <= 1.5 ** (1 / 3)
    assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]
    assert {r["backend"] for r in result.history} == {"layer_norms"}
    with torch.no_grad():
        assert float((result.model(x).argmax(1) == y).float().mean()) > 0.75


def test_a_larger_penalty_gives_a_smaller_bound() -> None:
    bounds = []
    for mu in (1e-4, 1e-2, 1.0):
        config = TrainConfig(mu=mu, epochs=10, batch_size=32)
        result = train(net(), data(), config, progress=False)
        assert result.certificate.lip <= result.history[-1]["lip"] * (1.0 + 1e-6)
        bounds.append(result.certificate.lip)
    assert bounds[0] > 1.5 * bounds[1] > 2.25 * bounds[2]


def test_regression() -> None:
    x = torch.linspace(-2, 2, 128)[:, None]
    config = TrainConfig(bound=1.0, epochs=80, batch_size=32)
    model = build_mlp(1, 1, ModelConfig((16, 16), "max_min"))
    result = train(model, (x, x.abs()), config, progress=False)
    assert result.certificate.lip <= 1.0
    with torch.no_grad():
        assert float((result.model(x) - x.abs()).square().mean()) < 0.02


def test_an_interrupted_run_resumes_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(bound=1.0, epochs=3, batch_size=32, checkpoint_seconds=0.0)
    whole = train(net(), data(), config, progress=False)

    class Stop(Exception):
        pass

    rounds, inner = itertools.count(1), constraint.next_round

    def stopping(*arguments: Any) -> Any:
        if next(rounds) == 3:
            raise Stop
        return inner(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(constraint, "next_round", stopping)
        with pytest.raises(Stop):
            train(net(), data(), config, run_dir=tmp_path, progress=False)
    resumed = train(net(), data(), config, run_dir=tmp_path, resume=True, progress=False)
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_mixed_networks_are_not_trained() -> None:
    model = nn.Sequential(nn.Linear(6, 4), MaxMin(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(
        UnsupportedModule, match=r"1 sorts pairs and 3 \(relu\) does not: such a mi"
    ):
        train(model, data(), TrainConfig(bound=1.0, epochs=1), progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multiplier_step": "lipsdp"}, "multiplier_step: a network that sorts .* got 'lipsdp'"),
        ({"multiplier_step": "sensitivity"}, "expected 'auto' or 'fixed', got 'sensitivity'"),
    ],
)
def test_settings_that_make_no_sense_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(net(), data(), TrainConfig(bound=1.0, epochs=1, **change), progress=False)


def test_a_network_that_is_constant_cannot_be_scaled() -> None:
    model = net(scale=0.0)
    with pytest.raises(ValueError, match="model: its Lipschitz bound is 0"):
        train(model, data(), TrainConfig(bound=1.0, epochs=1), progress=False)


def test_the_frame_is_orthogonal_and_turns_back() -> None:
    model = nn.Sequential(
        nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 6), GroupSort2(), nn.Linear(6, 2)
    ).double()
    frame = Frame.of(read_network(model))
    weights = tuple(m.weight.detach() for m in model if isinstance(m, nn.Linear))
    turned = frame.into(weights)
    assert frame.turned == (False, True)
    for w, t, b in zip(weights, turned, frame.back(turned), strict=True):
        assert torch.allclose(w, b, atol=1e-15)
        assert w.norm() == pytest.approx(t.norm())
    chain = read_network(model).chain().weights
    assert torch.allclose(turned[1] * 2**0.5, torch.from_numpy(chain[1]), atol=1e-14)


PROJECTED = {
    "max_min": net(),
    "group_sort2": net("group_sort2", seed=1),
    "mixed": nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), MaxMin(), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("name", PROJECTED)
def test_the_nearest_network_is_certified_and_near(name: str) -> None:
    model = PROJECTED[name]
    lip = certify(model).lip
    result = project(model, 0.6 * lip)
    assert 0.5 * lip <= result.certificate.lip <= 0.6 * lip
    verify(result.certificate, result.model)
    weights = [p.detach().double() for p in model.parameters() if p.ndim == 2]
    moved = [p.detach().double() for p in result.model.parameters() if p.ndim == 2]
    distance = math.sqrt(
        sum(float((a - b).square().sum()) for a, b in zip(weights, moved, strict=True))
    )
    assert result.distance == pytest.approx(distance, rel=1e-5)
    size = math.sqrt(sum(float(w.square().sum()) for w in weights))
    assert distance < 0.8 * (1.0 - 0.6 ** (1.0 / 3.0)) * size


def test_a_network_under_the_bound_stays() -> None:
    model = net()
    result = project(model, 1.01 * certify(model).lip)
    assert result.distance == 0.0


def test_the_command_line_trains_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "digits", "--model.activation", "max_min", "--epochs", "2"]
    outcome = train_command([*arguments, "--run-dir", str(tmp_path / "run")])
    assert outcome.code == 0
    assert "certif" in capsys.readouterr().out.lower()
