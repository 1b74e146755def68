"""What somebody may ask of the one loop: callbacks, validation, clipping, precision, schedules."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from admm_lip import Lipschitz, TrainConfig, Units, project, train, verify
from admm_lip.research.comparators import METHODS
from admm_lip.training.callbacks import Callback, Moment
from admm_lip.training.fit import FitConfig, fit

X = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
# 3 steps an epoch, rounds of 4: epochs end inside of rounds.
CONFIG = TrainConfig(bound=1.5, epochs=4, batch_size=16, round_steps=4, schedule="constant")
FREE = dataclasses.replace(CONFIG, bound=None)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2))


def run(config: Any = CONFIG, model: Any = None, **more: Any) -> Any:
    if config is FREE:
        more = {"method": METHODS["nominal"](), **more}
    return train(net() if model is None else model, (X, Y), config, progress=False, **more)


def same_weights(first: Any, second: Any) -> bool:
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Watching(Callback):
    """Notes where it is called; stops after so many rounds."""

    def __init__(self, rounds: int | None = None) -> None:
        self.rounds, self.seen = rounds, []

    def on_round(self, moment: Moment) -> None:
        self.seen.append(("round", moment.step))
        assert moment.row["step"] == moment.step
        assert (moment.constraint is None) == ("lip" not in moment.row)

    def on_epoch(self, moment: Moment) -> None:
        self.seen.append(("epoch", moment.epoch))

    def stop(self, moment: Moment) -> bool:
        rounds = [kind for kind, _ in self.seen].count("round")
        return rounds == self.rounds or moment.step == 12


def test_callbacks_hear_of_rounds_and_epochs_and_change_nothing() -> None:
    watching = Watching()
    result = run(callbacks=[watching])
    rounds = [at for kind, at in watching.seen if kind == "round"]
    epochs = [at for kind, at in watching.seen if kind == "epoch"]
    assert (rounds, epochs) == ([4, 8, 12], [1.0, 2.0, 3.0, 4.0])
    assert result.stopped == "finished"  # asked to stop where it ends anyhow
    assert same_weights(result, run())
    plain = Watching()
    run(FREE, callbacks=[plain])
    assert plain.seen == [
        (kind, at) for k in (1, 2, 3, 4) for kind, at in (("round", 3 * k), ("epoch", float(k)))
    ]


@pytest.mark.parametrize(("config", "steps"), [(CONFIG, 8), (FREE, 6)])
def test_a_callback_ends_a_run_that_can_be_gone_on_with(
    config: TrainConfig, steps: int, tmp_path: Path
) -> None:
    cut = run(config, callbacks=[Watching(rounds=2)], run_dir=tmp_path)
    assert (cut.stopped, cut.steps, len(cut.history)) == ("stopped", steps, 2)
    if cut.state is not None:
        assert cut.certificate.lip <= 1.5
    again = run(config, run_dir=tmp_path, resume=True)
    assert same_weights(again, run(config))


@pytest.mark.parametrize("config", [CONFIG, FREE])
def test_validation_measures_what_would_be_shipped_and_changes_nothing(config: TrainConfig) -> None:
    half = (X[:20], Y[:20])
    result = run(config, validation=half)
    assert same_weights(result, run(config))
    outputs = result.model(half[0]).detach()
    row = result.history[-1]
    loss = float(nn.functional.cross_entropy(outputs, half[1]))
    assert row["validation_loss"] == pytest.approx(loss, rel=1e-4)
    assert row["validation_accuracy"] == float((outputs.argmax(1) == half[1]).double().mean())


def test_validation_of_a_regression_has_no_accuracy_and_bad_data_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 1))
    rows = train(model, (X, X[:, 0]), CONFIG, validation=(X[:5], X[:5, 0]), progress=False).history
    assert "validation_loss" in rows[-1]
    assert "validation_accuracy" not in rows[-1]
    with pytest.raises(ValueError, match="expected as many targets as inputs, got 4 and 5"):
        run(validation=(X[:5], Y[:4]))


def test_a_clipped_gradient_moves_no_further_than_the_step_size() -> None:
    config = TrainConfig(
        epochs=1, batch_size=48, optimizer="sgd", lr=0.5, gradient_clip=1e-3, schedule="constant"
    )
    result = run(config, method=METHODS["nominal"]())
    moved = [
        a.detach() - b for a, b in zip(result.model.parameters(), net().parameters(), strict=True)
    ]
    size = torch.stack([m.detach().norm() for m in moved]).norm()
    assert float(size) == pytest.approx(0.5 * 1e-3, rel=1e-2)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_ends_in_float32_weights_under_the_bound(precision: str) -> None:
    config = dataclasses.replace(CONFIG, precision=precision, gradient_clip=1.0)
    result = run(config)
    assert result.model[0].weight.dtype == torch.float32
    assert result.certificate.lip <= 1.5
    verify(result.certificate, result.model)
    full = run(dataclasses.replace(CONFIG, gradient_clip=1.0))
    assert not same_weights(result, full)
    for a, b in zip(result.state.consensus, full.state.consensus, strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.05)
    with pytest.raises(ValueError, match="precision: float16 scales gradients"):
        run(dataclasses.replace(CONFIG, precision="float16", optimizer="lbfgs"))


def test_a_run_in_float16_is_resumed_to_the_identical_result(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, precision="float16")
    run(config, callbacks=[Watching(rounds=1)], run_dir=tmp_path)
    assert same_weights(run(config, run_dir=tmp_path, resume=True), run(config))


def test_a_schedule_may_be_a_function_and_tells_runs_apart(tmp_path: Path) -> None:
    def falling(share: float) -> float:
        return 1.0 - 0.5 * share

    config = dataclasses.replace(CONFIG, schedule=falling)
    result = run(config, run_dir=tmp_path)
    assert not same_weights(result, run())
    assert same_weights(run(dataclasses.replace(CONFIG, schedule=lambda share: 1.0)), run())
    with pytest.raises(ValueError, match="another setting schedule"):
        run(run_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match="schedule: expected one of hold_then_decay"):
        run(dataclasses.replace(CONFIG, schedule="cosine"))


def test_a_result_goes_on_under_another_bound_from_its_state() -> None:
    first = run(dataclasses.replace(CONFIG, start="scratch"))
    config = dataclasses.replace(CONFIG, bound=0.4, epochs=1, start="scratch", lr=1e-9)
    less = run(config, model=first)
    assert less.certificate.lip <= 0.4 == less.certificate.requested
    outputs = first.model(X).detach() * less.state.lip / first.state.lip  # scaled, and no more
    torch.testing.assert_close(less.model(X).detach(), outputs, rtol=0.1, atol=0.02)
    size, before = (float(r.state.dual[0].norm()) for r in (less, first))
    assert size > 0.3 * before > 0.0
    more = run(dataclasses.replace(config, bound=6.0, epochs=4, lr=0.05), model=first)
    assert 1.5 < more.certificate.lip <= 6.0
    with pytest.raises(ValueError, match="model: expected a result of a run under a bound"):
        run(CONFIG, model=run(FREE))


def test_what_is_asked_may_be_an_object() -> None:
    short = train(net(), (X, Y), Lipschitz(1.5), progress=False)
    assert same_weights(short, run(TrainConfig(bound=1.5)))
    units = Units(input_scale=2.0)
    one = train(net(), (X, Y), Lipschitz(1.5, units=units), progress=False)
    assert same_weights(one, run(TrainConfig(bound=1.5), units=units))
    nearest = project(net(), Lipschitz(0.2))
    assert nearest.certificate.lip <= 0.2
    assert nearest.certificate.to_json() == project(net(), 0.2).certificate.to_json()
    with pytest.raises(ValueError, match="bound: a projection needs one, got mu=1"):
        project(net(), Lipschitz(mu=1.0))
    with pytest.raises(ValueError, match="units: expected once"):
        train(net(), (X, Y), Lipschitz(1.5, units=units), units=units)
    with pytest.raises(ValueError, match="bound, mu: expected exactly one of the two, or a method"):
        train(net(), (X, Y), TrainConfig())
    with pytest.raises(ValueError, match="units: go with a bound or mu"):
        run(FREE, units=units)


def test_without_a_bound_the_certificate_is_made_when_it_is_asked_for() -> None:
    result = run(FREE)
    verify(result.certificate, result.model)
    assert result.certificate is result.certificate
    assert result.state is None


def test_the_former_door_says_the_new_one_and_does_the_same() -> None:
    with pytest.warns(DeprecationWarning, match="FitConfig is now admm_lip.TrainConfig"):
        config = FitConfig(epochs=4, batch_size=16, schedule="constant")
    with pytest.warns(DeprecationWarning, match=r"fit is now admm_lip.train\(model, data, config"):
        result = fit(net(), (X, Y), METHODS["nominal"](), config, progress=False)
    assert same_weights(
        result, run(dataclasses.replace(FREE, round_steps=None), method=METHODS["nominal"]())
    )
