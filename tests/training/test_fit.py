"""The plain training loop that every method but ADMM runs in."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from admm_lip import TrainConfig, train
from admm_lip.errors import TrainingFailed
from admm_lip.research.comparators import METHODS
from admm_lip.training.losses import PlainLoss
from admm_lip.training.method import Method

INPUTS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
TARGETS = (INPUTS[:, 0] > 0).long()


def small_net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))


@dataclass(frozen=True)
class Spy(Method):
    """Records the calls of its hooks."""

    calls: list[str] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)

    def prepare(self, model: nn.Module) -> nn.Module:
        self.calls.append("prepare")
        return model

    def begin_batch(self, model: nn.Module, rows: Tensor | None) -> None:
        assert rows is not None
        self.calls.append("begin_batch")
        self.rows.append(rows)

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, progress: float
    ) -> Tensor:
        self.calls.append("objective")
        self.shares.append(progress)
        assert model.training
        assert torch.equal(inputs, INPUTS[self.rows[-1]])
        return super().objective(model, inputs, targets, loss, progress)

    def after_step(self, model: nn.Module) -> None:
        self.calls.append("after_step")

    def report(self, model: nn.Module) -> dict[str, float]:
        return {"steps": float(len(self.shares))}

    def finish(self, model: nn.Module) -> nn.Module:
        self.calls.append("finish")
        assert not model.training
        return model

    def lipschitz(self, model: nn.Module) -> float | None:
        self.calls.append("lipschitz")
        return 7.0


def test_hooks_run_in_order_with_the_share_of_the_run() -> None:
    spy = Spy()
    result = train(
        small_net(),
        (INPUTS, TARGETS),
        TrainConfig(epochs=2, batch_size=16),
        method=spy,
        progress=False,
    )
    steps = ["begin_batch", "objective", "after_step"] * 6
    assert spy.calls == ["prepare", *steps, "finish", "lipschitz"]
    assert spy.shares == pytest.approx([k / 6 for k in range(6)])
    assert result.claimed_lip == 7.0
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert [row["steps"] for row in result.history] == [3.0, 6.0]
    assert result.seconds >= result.history[-1]["seconds"] >= 0.0


def test_the_given_model_and_the_random_state_stay() -> None:
    model = small_net()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    result = train(
        model, (INPUTS, TARGETS), TrainConfig(epochs=1), method=METHODS["pgd"](), progress=False
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not torch.equal(result.model[0].weight, model[0].weight)


def test_one_sgd_step_is_the_gradient_step() -> None:
    model = small_net()
    want = copy.deepcopy(model)
    nn.functional.cross_entropy(want(INPUTS), TARGETS).backward()
    with torch.no_grad():
        for p in want.parameters():
            p.sub_(p.grad, alpha=0.1)
    config = TrainConfig(epochs=1, batch_size=40, optimizer="sgd", lr=0.1, schedule="constant")
    got = train(model, (INPUTS, TARGETS), config, method=METHODS["nominal"](), progress=False).model
    for a, b in zip(got.parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_margin_loss_takes_its_bound_from_the_settings() -> None:
    config = TrainConfig(epochs=1, batch_size=40, loss="margin", eps=0.5, temperature=0.25, lip=3.0)
    result = train(
        small_net(), (INPUTS, TARGETS), config, method=METHODS["nominal"](), progress=False
    )
    logits = small_net()(INPUTS)
    logits[torch.arange(40), TARGETS] -= 2.0**0.5 * 0.875 * 3.0
    want = 0.25 * nn.functional.cross_entropy(logits / 0.75, TARGETS)
    assert result.history[0]["loss"] == pytest.approx(want.item(), rel=1e-5)


def test_regression_and_a_loss_of_ones_own() -> None:
    targets = INPUTS[:, :1] * 2.0
    model = nn.Sequential(nn.Linear(5, 1))
    config = TrainConfig(epochs=60, batch_size=20, lr=0.05)
    for loss in (None, nn.functional.l1_loss):
        history = train(
            model, (INPUTS, targets), config, loss, method=METHODS["nominal"](), progress=False
        ).history
        assert history[-1]["loss"] < 0.1 * history[0]["loss"]


@pytest.mark.parametrize("name", ["sandwich", "barrier", "nominal"])
def test_labels_beyond_the_outputs_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected 2 classes, .* got 3 different labels"):
        train(
            small_net(),
            (INPUTS, TARGETS + (INPUTS[:, 0] > 1).long()),
            TrainConfig(),
            method=METHODS[name](),
            progress=False,
        )


def test_a_loss_that_leaves_the_finite_numbers_names_the_epoch() -> None:
    with pytest.raises(TrainingFailed, match="round 1: loss: expected a finite value, got nan"):
        train(
            small_net(),
            (INPUTS, TARGETS),
            TrainConfig(epochs=1),
            lambda outputs, targets: outputs.sum() * float("nan"),
            method=METHODS["nominal"](),
            progress=False,
        )


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="epochs: expected a whole number >= 1, got 0"):
        TrainConfig(epochs=0)
    with pytest.raises(ValueError, match="lip: expected a finite number > 0 or None, got -1"):
        TrainConfig(lip=-1.0)
