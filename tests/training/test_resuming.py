"""What may change when a run is continued, what may not, and how a signal ends one."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from admm_lip import TrainConfig, project, train
from admm_lip.errors import RunFolderError
from admm_lip.files import exclusive
from admm_lip.research.comparators import METHODS
from admm_lip.training import constraint as constraint_module
from admm_lip.training.checkpoint import CHECKPOINT, CheckpointError
from admm_lip.training.finetune import FinetuneConfig
from admm_lip.training.signals import deferred_signals

X = torch.randn(48, 2, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
# 3 steps an epoch, so 4 epochs are 3 whole rounds.
CONFIG = TrainConfig(bound=1.5, epochs=4, batch_size=16, round_steps=4, schedule="constant")
FIT = TrainConfig(epochs=4, batch_size=16, schedule="constant")


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2))


def by_admm(epochs: int, folder: Path | None, resume: bool = False, **more: Any) -> Any:
    config = dataclasses.replace(CONFIG, epochs=epochs)
    given = {"loss": None, "data": (X, Y), "model": net()} | more
    return train(
        given["model"],
        given["data"],
        config,
        given["loss"],
        run_dir=folder,
        resume=resume,
        progress=False,
    )


def by_lmt(epochs: int, folder: Path | None, resume: bool = False, **more: Any) -> Any:
    config = dataclasses.replace(FIT, epochs=epochs)
    given = {"loss": None, "data": (X, Y), "model": net()} | more
    return train(
        given["model"],
        given["data"],
        config,
        given["loss"],
        method=METHODS["lmt"](),
        run_dir=folder,
        resume=resume,
        progress=False,
    )


WAYS = pytest.mark.parametrize("run", [by_admm, by_lmt])
Way = Callable[..., Any]


def same_weights(first: Any, second: Any) -> bool:
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@WAYS
def test_a_longer_run_is_the_one_that_was_longer_from_the_start_under_a_constant_schedule(
    run: Way, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, first = run(8, None), run(4, tmp_path)
    assert not same_weights(whole, first)
    assert not caplog.records
    assert same_weights(whole, run(8, tmp_path, resume=True))
    assert "resumed after 4 epochs: the run ends after 8 instead of 4" in caplog.text
    assert "schedule is that of a run of 8 epochs" in caplog.text


def test_a_short_last_round_leaves_no_batch_out(tmp_path: Path) -> None:
    first = by_admm(3, tmp_path)  # 9 steps: rounds of 4, 4 and 1
    longer = by_admm(5, tmp_path, resume=True)
    assert [row["step"] for row in first.history] == [4, 8, 9]
    assert [row["step"] for row in longer.history] == [4, 8, 9, 13, 15]


@WAYS
def test_a_run_cannot_end_before_what_it_has_done(run: Way, tmp_path: Path) -> None:
    run(4, tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(CheckpointError, match=r"has done 4 epochs, so it cannot end after 3; ask"):
        run(3, tmp_path, resume=True)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def scaled(weight: float) -> Callable:
    return lambda outputs, targets: weight * nn.functional.cross_entropy(outputs, targets)


@WAYS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": scaled(2.0)}, "another loss"),
        ({"loss": None}, "another loss .*this one 'auto'"),
        ({"data": (X, 1 - Y)}, r"another data \(targets\)"),
        ({"data": (X * 1.0000002, Y)}, r"another data \(inputs\)"),
        ({"model": net()[:3].append(nn.Linear(6, 2)).append(nn.Identity())}, "another archit"),
    ],
)
def test_other_data_another_loss_or_model_is_refused_by_name(
    run: Way, change: dict, message: str, tmp_path: Path
) -> None:
    run(2, tmp_path, loss=scaled(1.0))
    with pytest.raises(CheckpointError, match=message):
        run(4, tmp_path, resume=True, **({"loss": scaled(1.0)} | change))


@WAYS
def test_the_same_loss_written_again_is_the_same(run: Way, tmp_path: Path) -> None:
    run(4, tmp_path, loss=scaled(1.0), data=(X, Y))
    again = run(8, tmp_path, resume=True, loss=scaled(1.0), data=(X.clone(), Y.clone()))
    assert same_weights(again, run(8, None, loss=scaled(1.0)))


def test_a_converged_run_is_not_trained_on(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, residual_tol=1e9)
    results = [
        train(net(), (X, Y), config, run_dir=tmp_path, resume=resume, progress=False)
        for resume in (False, True)
    ]
    assert [(r.stopped, len(r.history)) for r in results] == [("converged", 1)] * 2
    assert same_weights(*results)


def test_a_model_given_to_resume_need_not_have_the_weights(tmp_path: Path) -> None:
    by_admm(4, tmp_path)
    assert same_weights(by_admm(8, tmp_path, resume=True, model=net(7)), by_admm(8, None))


class Signalled:
    """Sends this process a signal when a round of ADMM begins."""

    def __init__(self, round_number: int, number: int) -> None:
        self.left, self.number, self.inner = round_number, number, constraint_module.next_round

    def __call__(self, *arguments: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
        return self.inner(*arguments)


STOPS = pytest.mark.parametrize(
    ("number", "stopped"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)


@STOPS
def test_a_signal_ends_the_round_and_resuming_gives_the_identical_result(
    number: int, stopped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(constraint_module, "next_round", Signalled(2, number))
        cut = by_admm(4, tmp_path)
    assert (cut.stopped, len(cut.history)) == (stopped, 2)
    assert same_weights(by_admm(4, tmp_path, resume=True), by_admm(4, None))


@STOPS
def test_a_signal_in_the_last_round_changes_nothing(
    number: int, stopped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constraint_module, "next_round", Signalled(3, number))
    assert by_admm(4, tmp_path).stopped == "finished"


@STOPS
def test_the_second_signal_acts_at_once_and_handlers_are_put_back(
    number: int, stopped: str
) -> None:
    class Acted(Exception):
        pass

    def act(number: int, frame: Any) -> None:
        raise Acted

    before = signal.signal(number, act)
    try:
        with pytest.raises(Acted), deferred_signals() as asked:
            os.kill(os.getpid(), number)
            assert asked.stop == stopped
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is act
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_fine_tuning_under_a_bound_goes_on_where_it_was(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = FinetuneConfig(batch_size=16)

    def tuned(folder: Path | None, resume: bool = False) -> Any:
        return project(
            net().eval(),
            0.5,
            finetune=(X, Y),
            epochs=8,
            config=tuning,
            run_dir=folder,
            resume=resume,
            progress=False,
        )

    whole = tuned(None)
    with monkeypatch.context() as patch:
        patch.setattr(constraint_module, "next_round", Signalled(2, number))
        cut = tuned(tmp_path)
    assert cut.stopped != "finished"
    assert (cut.before, cut.after) == (None, None)
    again = tuned(tmp_path, resume=True)
    assert same_weights(whole, again)
    assert again.certificate.to_json() == whole.certificate.to_json()
    assert (again.stopped, again.after) == ("finished", whole.after)
    with pytest.raises(CheckpointError, match="another method"):  # another network is the teacher
        project(net(3).eval(), 0.5, finetune=(X, Y), config=tuning, run_dir=tmp_path, resume=True)


@WAYS
def test_a_folder_in_use_is_refused_and_a_thread_may_ask_twice(run: Way, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with exclusive(tmp_path):
        run(1, tmp_path)
        with ThreadPoolExecutor(1) as pool, pytest.raises(RunFolderError, match="another run is"):
            pool.submit(run, 1, tmp_path).result()
    run(1, tmp_path)
