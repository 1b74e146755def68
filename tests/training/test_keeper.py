"""A run of the plain loop that is stopped between two steps goes on as if nothing had happened."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from admm_lip.errors import TrainingFailed
from admm_lip.research.comparators import METHODS
from admm_lip.training.checkpoint import CheckpointError, load_checkpoint
from admm_lip.training.losses import PlainLoss
from admm_lip.training.method import Method
from admm_lip.training.train import TrainConfig, TrainResult, train

INPUTS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
TARGETS = (INPUTS[:, 0] > 0).long()
CONFIG = TrainConfig(epochs=4, batch_size=16, checkpoint_seconds=0.0)


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 2))


def tanh_net() -> nn.Sequential:
    return nn.Sequential(*(nn.Tanh() if isinstance(m, nn.ReLU) else m for m in net()))


@dataclass(frozen=True)
class Remembering(Method):
    """Keeps a number for every sample outside the model's tensors, which steers the loss."""

    name = "remembering"

    def prepare(self, model: nn.Module) -> nn.Module:
        model.memory, model.rows = torch.zeros(len(INPUTS)), None
        return model

    def begin_batch(self, model: nn.Module, rows: Tensor | None) -> None:
        model.rows = rows

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, progress: float
    ) -> Tensor:
        model.memory[model.rows] += model(inputs).detach()[:, 0]
        return loss(model(inputs) * (1.0 + model.memory[model.rows, None]), targets)

    def report(self, model: nn.Module) -> dict[str, float]:
        return {"memory": float(model.memory.sum())}

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        return {"memory": model.memory}

    def restore(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        model.memory = state["memory"]


@dataclass(frozen=True)
class _Stopping:
    """Ctrl-C while one step of ``method`` runs."""

    method: Method
    step: int

    def run(self, monkeypatch: pytest.MonkeyPatch, folder: Path, data: object) -> TrainResult:
        real, count = type(self.method).after_step, iter(range(1, 1000))

        def after_step(method: Method, model: nn.Module) -> None:
            real(method, model)
            if next(count) == self.step:
                signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(type(self.method), "after_step", after_step)
            return train(net(), data, CONFIG, method=self.method, run_dir=folder, progress=False)


def same(first: TrainResult, second: TrainResult) -> None:
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)

    def rows(result: TrainResult) -> list[dict]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]

    assert rows(first) == rows(second)
    assert (first.steps, second.stopped) == (second.steps, "finished")


@pytest.mark.parametrize("step", [1, 3, 5, 11])
@pytest.mark.parametrize(
    "method", [Remembering(), METHODS["lmt"](), METHODS["nominal"]()], ids=lambda m: m.name
)
def test_after_ctrl_c_the_run_ends_bit_for_bit_the_same(
    method: Method, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (INPUTS, TARGETS)
    whole = train(net(), data, CONFIG, method=method, progress=False)
    cut = _Stopping(method, step).run(monkeypatch, tmp_path, data)
    assert (cut.stopped, cut.steps, len(cut.history)) == ("interrupted", step, step // 3)
    again = train(net(), data, CONFIG, method=method, run_dir=tmp_path, resume=True, progress=False)
    same(whole, again)
    third = train(net(), data, CONFIG, method=method, run_dir=tmp_path, resume=True, progress=False)
    same(whole, third)  # nothing is left to do


def test_a_shuffling_loader_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=16, shuffle=True)
    method = METHODS["nominal"]()
    whole = train(net(), data, CONFIG, method=method, progress=False)
    _Stopping(method, 5).run(monkeypatch, tmp_path, data)
    same(
        whole,
        train(net(), data, CONFIG, method=method, run_dir=tmp_path, resume=True, progress=False),
    )


def test_what_is_on_disk_is_plain_and_alone(tmp_path: Path) -> None:
    train(
        net(),
        (INPUTS, TARGETS),
        CONFIG,
        method=Remembering(),
        run_dir=tmp_path / "a",
        progress=False,
    )
    names = {"checkpoint.safetensors", "checkpoint.previous.safetensors"}
    assert {p.name for p in (tmp_path / "a").iterdir()} == names
    tree = load_checkpoint(tmp_path / "a" / "checkpoint.safetensors")
    assert tree["loop"]["step"] == 12
    assert torch.isfinite(tree["method"]["memory"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": replace(CONFIG, lr=0.5)}, r"another setting lr \(it has 0.01, this one 0.5\)"),
        ({"config": replace(CONFIG, epochs=3)}, "has done 4 epochs, so it cannot end after 3"),
        ({"data": (INPUTS[:20], TARGETS[:20])}, r"another data \(inputs\)"),
        ({"data": (INPUTS, 1 - TARGETS)}, r"another data \(targets\)"),
        ({"data": (INPUTS + 1e-7, TARGETS)}, r"another data \(inputs\)"),
        ({"method": METHODS["lmt"](eps=0.1)}, r"another method .*eps=0.5.*eps=0.1"),
        ({"method": METHODS["nominal"]()}, r"another method .*LipschitzMargin.*Nominal"),
        ({"model": nn.Linear(5, 2)}, "belongs to a run with another architecture"),
        ({"model": tanh_net()}, "another architecture of 1 .*ReLU.*Tanh"),
        ({"loss": lambda outputs, targets: outputs.square().mean()}, "another loss"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(
    change: dict, message: str, tmp_path: Path
) -> None:
    given = {
        "model": net(),
        "data": (INPUTS, TARGETS),
        "config": CONFIG,
        "method": METHODS["lmt"](),
    }
    train(**given, run_dir=tmp_path, progress=False)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=message):
        train(**(given | change), run_dir=tmp_path, resume=True, progress=False)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_nothing_to_resume_and_no_folder(tmp_path: Path) -> None:
    arguments = (net(), (INPUTS, TARGETS), CONFIG, None)
    method = METHODS["nominal"]()
    with pytest.raises(CheckpointError, match=r"expected a file at .*; start afresh"):
        train(*arguments, method=method, run_dir=tmp_path, resume=True, progress=False)
    with pytest.raises(ValueError, match="run_dir: resume=True needs the folder"):
        train(*arguments, method=method, resume=True, progress=False)


def test_a_broken_loss_is_never_kept(tmp_path: Path) -> None:
    config = replace(CONFIG, lr=float("1e30"), optimizer="sgd")
    with pytest.raises(TrainingFailed, match="round 1: loss: expected a finite value"):
        train(
            net(),
            (INPUTS, TARGETS),
            config,
            lambda outputs, targets: outputs.square().sum(),
            method=METHODS["nominal"](),
            run_dir=tmp_path,
            progress=False,
        )
    kept = tmp_path / "checkpoint.safetensors"
    assert not kept.exists() or all(
        bool(torch.isfinite(value)) for value in load_checkpoint(kept)["loop"]["losses"]
    )
