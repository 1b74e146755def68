"""Training end to end: the bound holds, the result is reproducible, and failures are clean."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from scipy.optimize import brentq
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from admm_lip import TrainConfig, certify, train, verify
from admm_lip.errors import TrainingFailed, UnsupportedModule
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.research.comparators.gradient import InputGradient
from admm_lip.research.comparators.sandwich import Sandwich
from admm_lip.research.input_gradients import loss_gradient_norms
from admm_lip.solvers import SolveFailed, SolverConfig
from admm_lip.training import constraint as constraint_module
from admm_lip.training import round as round_module
from admm_lip.training.batches import as_batches
from admm_lip.training.centring import centre, mean_input
from admm_lip.training.checkpoint import CheckpointError

FAST = {"epochs": 3, "batch_size": 16, "lr": 0.02, "round_steps": 4}


def blobs(n: int = 96, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three noisy clusters in the plane."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    centres = torch.tensor([[0.0, 1.0], [0.9, -0.5], [-0.9, -0.5]])
    return centres[y] + 0.2 * torch.randn(n, 2, generator=generator), y


def network(activation: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(2, 12), activation(), nn.Linear(12, 8), activation(), nn.Linear(8, 3)
    )


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def quiet(model: nn.Module, config: TrainConfig, data=None, **more):
    return train(model, data or blobs(), config, progress=False, **more)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.LeakyReLU, nn.Sigmoid, nn.GELU])
@pytest.mark.parametrize("multiplier_step", ["fixed", "sensitivity", "lipsdp"])
def test_the_bound_holds_in_every_round_and_in_the_shipped_weights(
    activation: type[nn.Module], multiplier_step: str
) -> None:
    config = TrainConfig(
        bound=1.5, multiplier_step=multiplier_step, multiplier_every=3, eps=0.1, **FAST
    )
    result = quiet(network(activation), config)
    assert all(row["lip"] <= 1.5 and row["ball_norm"] <= 1 + 1e-9 for row in result.history)
    assert result.certificate.lip <= 1.5
    verify(result.certificate, result.model)


def test_the_penalised_form_settles_where_its_optimality_condition_holds() -> None:
    ends = {}
    for mu in (1e-3, 1e-1):
        config = TrainConfig(mu=mu, **(FAST | {"epochs": 20}))
        result = quiet(network(), config)
        verify(result.certificate, result.model)
        assert all(row["ball_norm"] <= 1 + 1e-9 for row in result.history)
        assert result.certificate.lip <= result.history[-1]["lip"] * (1 + 1e-6)
        ends[mu] = result.certificate.lip
    assert ends[1e-1] < ends[1e-3]


def test_the_exact_penalised_step_runs_too() -> None:
    config = TrainConfig(mu=1e-2, lip_step="exact", **FAST)
    result = quiet(network(), config)
    assert result.certificate.lip <= result.history[-1]["lip"] * (1 + 1e-6)


def test_training_learns_something() -> None:
    config = TrainConfig(bound=4.0, **(FAST | {"epochs": 15}))
    x, y = blobs()
    result = quiet(network(), config)
    assert float((result.model(x).argmax(1) == y).float().mean()) > 0.9
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]


def test_a_method_s_objective_runs_under_the_bound() -> None:
    config = TrainConfig(bound=1.5, **FAST)
    plain = quiet(network(), config)
    nothing = quiet(network(), config, method=InputGradient(total_variation=0.0, largest=0.0))
    penalised = quiet(network(), config, method=InputGradient(total_variation=1.0))
    for row, same in zip(plain.history, nothing.history, strict=True):
        assert row["loss"] == pytest.approx(same["loss"], rel=1e-4)
    assert penalised.certificate.lip <= 1.5
    x, y = blobs()
    sizes = [float(loss_gradient_norms(r.model, x, y).mean()) for r in (plain, penalised)]
    assert sizes[1] < sizes[0]
    with pytest.raises(TypeError, match="method: sandwich changes the network itself"):
        quiet(network(), config, method=Sandwich())


def test_the_model_that_went_in_is_not_touched_and_a_plain_one_comes_out() -> None:
    model = network()
    before = weights_of(model)
    result = quiet(model, TrainConfig(bound=1.0, **FAST))
    assert all(map(torch.equal, before, weights_of(model)))
    assert type(result.model) is nn.Sequential
    assert result.model.state_dict().keys() == model.state_dict().keys()
    copy.deepcopy(result.model)


def test_the_same_seed_gives_the_same_numbers_and_leaves_the_global_state_alone() -> None:
    config = TrainConfig(bound=1.0, **FAST)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = quiet(network(seed=1), config)
    torch.manual_seed(11)
    assert torch.equal(torch.rand(3), expected)
    torch.rand(5)
    second = quiet(network(seed=1), config)
    other = quiet(network(seed=1), dataclasses.replace(config, seed=1))
    assert all(map(torch.equal, weights_of(first.model), weights_of(second.model)))
    assert not all(map(torch.equal, weights_of(first.model), weights_of(other.model)))


def test_a_loader_a_dataset_and_tensors_are_accepted() -> None:
    x, y = blobs()
    config = TrainConfig(bound=1.0, **FAST)
    for data in ((x, y), TensorDataset(x, y), DataLoader(TensorDataset(x, y), batch_size=16)):
        assert quiet(network(), config, data).certificate.lip <= 1.0


def test_regression_with_squared_error_and_a_single_affine_map() -> None:
    # Oracle: least squares under ||w|| <= 1 is w = (C + s I)^{-1} C w*, s such that ||w|| = 1.
    x, _ = blobs()
    free = torch.tensor([2.0, -1.0])
    covariance = torch.cov(x.T)

    def best(s: float) -> torch.Tensor:
        return torch.linalg.solve(covariance + s * torch.eye(2), covariance @ free)

    s = brentq(lambda s: float(best(s).norm()) - 1.0, 0.0, 10.0)
    config = TrainConfig(bound=1.0, rho=1.0, **(FAST | {"epochs": 60}))
    result = quiet(nn.Sequential(nn.Linear(2, 1)), config, (x, x @ free))
    assert result.certificate.lip == pytest.approx(1.0, abs=1e-3)
    found = result.model[0].weight.detach()[0]
    torch.testing.assert_close(found, best(s), atol=0.02, rtol=0)


def test_a_regression_uses_more_of_its_bound_when_multipliers_are_solved_again() -> None:
    x = torch.linspace(-2.0, 2.0, 200)[:, None]
    wave = (torch.sin(3.0 * x) > 0.0).float()
    model = build_mlp(1, 1, ModelConfig((16, 16)), seed=0)
    ends = {}
    for rule in ("auto", "fixed"):
        config = TrainConfig(
            bound=4.0,
            epochs=60,
            batch_size=50,
            multiplier_step=rule,
            multiplier_every=16,
            round_steps=4,
        )
        result = quiet(model, config, (x, wave))
        verify(result.certificate, result.model)
        ends[rule] = result.certificate.lip, result.history[-1]["loss"]
    assert 1.1 * ends["fixed"][0] < ends["auto"][0] <= 4.0
    assert ends["auto"][1] < ends["fixed"][1]


@pytest.mark.parametrize(
    ("optimizer", "lr"), [("adam", 0.02), ("sgd", 0.02), ("momentum", 0.02), ("lbfgs", 0.01)]
)
def test_any_optimizer_works(optimizer: str, lr: float) -> None:
    config = TrainConfig(bound=1.0, optimizer=optimizer, **(FAST | {"lr": lr}))
    result = quiet(network(), config)
    assert result.certificate.lip <= 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_ship_within_the_bound(dtype: torch.dtype) -> None:
    x, y = blobs()
    config = TrainConfig(bound=1.0, start="scratch", **(FAST | {"epochs": 30}))
    result = quiet(network().to(dtype), config, (x.to(dtype), y))
    assert result.model[0].weight.dtype == dtype
    assert 0.9 < result.certificate.lip <= 1.0


def test_the_start_from_scratch_ignores_the_weights_given() -> None:
    config = TrainConfig(bound=1.0, start="scratch", **FAST)
    first, second = quiet(network(seed=1), config), quiet(network(seed=2), config)
    assert all(map(torch.equal, weights_of(first.model), weights_of(second.model)))


class StopAfter:
    """Raises Ctrl-C's signal, or an error, when a round begins."""

    def __init__(self, rounds: int, action) -> None:
        self.left, self.action, self.inner = rounds, action, constraint_module.next_round

    def __call__(self, *arguments):
        self.left -= 1
        if self.left == 0:
            self.action()
        return self.inner(*arguments)


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_ctrl_c_keeps_the_last_round_and_resuming_gives_the_identical_result(
    activation: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(bound=1.5, **FAST)
    model = nn.Sequential(*network(activation)[:2], nn.Dropout(0.2), *network(activation)[2:])
    whole = quiet(model, config)
    with monkeypatch.context() as patch:
        patch.setattr(constraint_module, "next_round", StopAfter(3, ctrl_c))
        first = quiet(model, config, run_dir=tmp_path)
    assert first.stopped == "interrupted"
    assert len(first.history) == 3
    assert first.certificate.lip <= 1.5
    second = quiet(model, config, run_dir=tmp_path, resume=True)
    assert second.stopped == "finished"
    assert all(map(torch.equal, weights_of(whole.model), weights_of(second.model)))
    rows = zip(whole.history, second.history, strict=True)
    assert all(a["loss"] == b["loss"] and a["lip"] == b["lip"] for a, b in rows)


def test_a_killed_run_continues_from_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(bound=1.5, checkpoint_seconds=0.0, **FAST)
    whole = quiet(network(), config)

    def die() -> None:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(constraint_module, "next_round", StopAfter(3, die))
        quiet(network(), config, run_dir=tmp_path)
    resumed = quiet(network(), config, run_dir=tmp_path, resume=True)
    assert all(map(torch.equal, weights_of(whole.model), weights_of(resumed.model)))


def test_interrupts_outside_the_main_thread_are_left_alone() -> None:
    results = []
    worker = threading.Thread(
        target=lambda: results.append(quiet(network(), TrainConfig(bound=1.0, **FAST)))
    )
    worker.start()
    worker.join()
    assert results[0].stopped == "finished"


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    config = TrainConfig(bound=1.0, **FAST)
    quiet(network(), config, run_dir=tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"belongs to a run with another setting lr \(it has 0.02, this one 0.5\)",
    ):
        quiet(network(), dataclasses.replace(config, lr=0.5), run_dir=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="another architecture"):
        quiet(nn.Sequential(nn.Linear(2, 3)), config, run_dir=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="expected a file at"):
        quiet(network(), config, run_dir=tmp_path / "empty", resume=True)
    with pytest.raises(ValueError, match="run_dir: resume=True needs the folder"):
        quiet(network(), config, resume=True)


def test_a_loss_that_leaves_the_numbers_names_the_round() -> None:
    def broken(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.sum() * float("nan")

    with pytest.raises(TrainingFailed, match=r"round 1: loss: expected a finite value, got nan"):
        quiet(network(), TrainConfig(bound=1.0, **FAST), loss=broken)


def test_a_projection_that_fails_names_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments):
        raise SolveFailed("native: broke down; scs: broke down")

    monkeypatch.setattr(round_module, "lipschitz_step", fails)
    with pytest.raises(TrainingFailed, match="round 1: native: broke down; scs: broke down"):
        quiet(network(), TrainConfig(bound=1.0, **FAST))


@pytest.mark.parametrize("backend", ["clarabel", "scs"])
def test_a_generic_backend_trains_to_the_same_bound(backend: str) -> None:
    config = TrainConfig(
        bound=1.0, epochs=1, batch_size=48, solver=SolverConfig(backend, fallback=())
    )
    result = quiet(network(), config)
    assert {row["backend"] for row in result.history} == {backend}
    assert result.certificate.lip <= 1.0


def test_bad_models_and_data_are_refused_before_the_first_step() -> None:
    config = TrainConfig(bound=1.0, **FAST)
    x, y = blobs()
    with pytest.raises(ValueError, match=r"expected 3 classes, .* got 4 different labels"):
        quiet(network(), config, (x, y.scatter(0, torch.tensor([5]), 7)))
    with pytest.raises(ValueError, match="data, inputs: expected finite numbers, got a value that"):
        quiet(network(), config, (x / 0.0, y))
    with pytest.raises(UnsupportedModule):
        quiet(nn.Sequential(nn.Linear(2, 4), nn.MaxPool1d(2), nn.Linear(2, 3)), config)
    dead = network()
    with torch.no_grad():
        dead[2].weight.zero_()
    with pytest.raises(ValueError, match=r"model: its Lipschitz bound is 0"):
        quiet(dead, config)
    with pytest.raises(ValueError, match="multiplier_step: expected one of auto, fixed"):
        quiet(network(), dataclasses.replace(config, multiplier_step="newton"))


def far_from_centred() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = blobs()
    return x + torch.tensor([30.0, -20.0]), y


@pytest.mark.parametrize("loader", [False, True])
def test_centring_gives_a_plain_network_and_learns_where_inputs_are_far_off(loader: bool) -> None:
    x, y = far_from_centred()
    data = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True) if loader else (x, y)
    right = {}
    for asked in (True, False):
        config = TrainConfig(bound=2.0, centre=asked, start="scratch", **FAST)
        result = quiet(network(), config, data)
        verify(result.certificate, result.model)
        assert not result.model[0]._forward_pre_hooks
        right[asked] = float((result.model(x).argmax(1) == y).float().mean())
    assert right[True] > 0.9 > right[False]


def test_a_centred_layer_is_the_same_function_and_comes_back_as_it_was() -> None:
    layer = nn.Linear(5, 3, dtype=torch.float64)
    x = 10.0 + torch.randn(4, 5, dtype=torch.float64)
    outputs, bias = layer(x), layer.bias.detach().clone()
    centring = centre(layer, x.mean(0))
    torch.testing.assert_close(layer(x), outputs)
    with torch.no_grad():
        layer.weight.mul_(2.0)
    doubled = layer(x)
    centring.undo()
    torch.testing.assert_close(layer(x), doubled)
    assert not torch.allclose(layer.bias, bias)
    with torch.no_grad():
        layer.bias.copy_(bias)
        layer.weight.mul_(0.5)
    torch.testing.assert_close(layer(x), outputs)


def test_the_mean_input_is_given_only_where_the_layer_sees_the_samples() -> None:
    x = torch.rand(6, 2, 3)
    batches = as_batches((x, torch.zeros(6)), 4, nn.Linear(6, 1))
    mean = mean_input(batches, x[:4], 6)
    assert mean is not None
    torch.testing.assert_close(mean, x.flatten(1).mean(0))
    assert mean_input(batches, x[:4], 5) is None


def test_a_trained_network_starts_where_it_stands() -> None:
    # Far below the bound nothing is scaled: the first loss is the network's own.
    model = network()
    own = certify(model).lip
    x, y = blobs()
    config = TrainConfig(bound=10 * own, epochs=1, batch_size=96, round_steps=1)
    result = quiet(model, config, (x, y))
    expected = nn.functional.cross_entropy(model(x), y).detach()
    assert result.history[0]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_a_result_says_where_more_epochs_would_let_l_grow() -> None:
    """Three rounds under a small price: e^(0.2) times the start is as far as L comes."""
    result = quiet(network(), TrainConfig(mu=1e-5, epochs=4, batch_size=16, lr=0.03))
    lips = [row["lip"] for row in result.history]
    assert len(lips) == 3
    assert lips[-1] == pytest.approx(lips[0] * torch.tensor(0.2).double().exp().item(), rel=1e-6)
    assert result.grows_on and "more epochs would let it go on" in result.summary()
    for settings in ({"mu": 10.0}, {"bound": 1.0}):
        settled = quiet(network(), TrainConfig(epochs=1, **settings))
        assert not settled.grows_on and "more epochs" not in settled.summary()
