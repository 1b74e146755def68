"""Independent tasks on workers: order, names of errors, and workers that die."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
from joblib.parallel import ParallelBackendBase
from parallel_tasks import (
    NAMES,
    always_dies,
    dies_once,
    raises_an_odd_error,
    refuses_four,
    threads_within,
)

from admm_lip import LocalConfig, certified_radii, certify, certify_local, parallel, verify
from admm_lip.errors import WorkerLost
from admm_lip.parallel import finished_tasks, one_thread, run_tasks, workers_of


def test_without_workers_tasks_are_run_here_and_errors_are_named() -> None:
    assert workers_of(None) == workers_of(1) == 0
    counted: list[None] = []
    found = run_tasks(threads_within, range(6), NAMES, done=lambda: counted.append(None))
    assert [k for k, _, _ in found] == list(range(6))
    assert {pid for _, _, pid in found} == {os.getpid()}
    assert len(counted) == 6
    with pytest.raises(ValueError, match=r"^number 4: cannot do that$"):
        run_tasks(refuses_four, range(6), NAMES)


@pytest.mark.parametrize("n_jobs", [0, 1.5, True, "two"])
def test_a_number_of_workers_is_checked(n_jobs: Any) -> None:
    with pytest.raises(ValueError, match="n_jobs: expected a number of workers"):
        workers_of(n_jobs)


def test_workers_have_one_thread_each_and_results_keep_their_order() -> None:
    found = run_tasks(threads_within, range(6), NAMES, n_jobs=2)
    assert [k for k, _, _ in found] == list(range(6))
    assert {threads for _, threads, _ in found} == {1}
    assert os.getpid() not in {pid for _, _, pid in found}


def test_threads_of_this_process_are_as_before() -> None:
    torch.set_num_threads(2)
    try:
        with joblib.parallel_config("threading", n_jobs=2):
            found = run_tasks(threads_within, range(6), NAMES)
        assert {threads for _, threads, _ in found} == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_the_last_of_several_threads_puts_the_threads_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, limits = list[threading.Thread](), list[str]()
    seen: list[tuple[int, list[str]]] = []

    @contextmanager
    def limited() -> Iterator[None]:
        limits.append("lowered")
        yield
        limits.append("put back")

    def look() -> None:
        seen.append((torch.get_num_threads(), list(limits)))

    def started() -> threading.Event:
        """A thread that is within ``one_thread`` until its event is set, and then looks."""
        within, ended = threading.Event(), threading.Event()

        def run() -> None:
            with one_thread():
                within.set()
                ended.wait(60.0)
                look()

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        within.wait(60.0)
        return ended

    monkeypatch.setattr(parallel, "_limited", limited)
    torch.set_num_threads(2)
    try:
        for ended, thread in zip((started(), started()), threads, strict=True):
            ended.set()
            thread.join()
        fresh = threading.Thread(target=look)
        fresh.start()
        fresh.join()
        assert seen == [(1, ["lowered"]), (1, ["lowered"]), (2, ["lowered", "put back"])]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_task_runs_once_while_another_thread_loads_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "import time; time.sleep(0.3); get_num_threads = lambda: 2; set_num_threads = lambda n: n"
    )
    script = """
import time, joblib
from admm_lip.parallel import run_tasks
calls = []
def task(k):
    calls.append(k)
    if k:
        time.sleep(0.02)
    else:
        import torch
with joblib.parallel_config("threading", n_jobs=2):
    run_tasks(task, range(20), list("abcdefghijklmnopqrst"))
print(sorted(calls) == list(range(20)))
"""
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert found.stdout == "True\n", found.stderr


def test_the_error_of_a_task_comes_back_with_its_name_and_type() -> None:
    with pytest.raises(ValueError, match=r"^number 4: cannot do that") as caught:
        run_tasks(refuses_four, range(6), NAMES, n_jobs=2)
    assert any("refuses_four" in note for note in caught.value.__notes__)
    with pytest.raises(RuntimeError, match=r"^number \d: OddError: \d: odd"):
        run_tasks(raises_an_odd_error, range(6), NAMES, n_jobs=2)


def test_a_worker_that_dies_loses_nothing(tmp_path: Path) -> None:
    tasks = [(k, tmp_path) for k in range(6)]
    assert run_tasks(dies_once, tasks, NAMES, n_jobs=2) == [k * k for k in range(6)]
    assert (tmp_path / "died").exists()


def test_a_task_that_kills_every_worker_is_named_and_no_other() -> None:
    found = {}
    with pytest.raises(WorkerLost, match=r"^number 3: its worker was lost whenever it was tried"):
        for k, result in finished_tasks(always_dies, range(6), NAMES, n_jobs=2):
            found[k] = result
    assert found.items() <= {(k, k * k) for k in range(6) if k != 3}


class Plain(ParallelBackendBase):
    """The least that a backend is: no callbacks, so no results before the end."""

    def effective_n_jobs(self, n_jobs: int) -> int:
        return 3

    def submit(self, func: Callable[[], Any], callback: Any = None) -> Any:
        result = func()
        callback()
        return type("Ready", (), {"get": lambda self, timeout=None: result})()


class Broken(Plain):
    def submit(self, func: Callable[[], Any], callback: Any = None) -> Any:
        raise ConnectionError("nobody there")


@pytest.fixture
def registered() -> Iterator[None]:
    joblib.register_parallel_backend("plain", Plain)
    joblib.register_parallel_backend("broken", Broken)
    yield
    for name in ("plain", "broken"):
        joblib.parallel.BACKENDS.pop(name)


@pytest.mark.usefixtures("registered")
def test_any_registered_backend_runs_them() -> None:
    with joblib.parallel_config("plain"):
        assert workers_of(None) == 3
        assert run_tasks(refuses_four, range(4), NAMES) == [0, 1, 2, 3]
    with joblib.parallel_config("broken"), pytest.raises(WorkerLost, match="nobody there"):
        run_tasks(refuses_four, range(4), NAMES)


def test_pairs_and_pictures_are_the_same_by_workers() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.ReLU(), torch.nn.Linear(9, 4))
    x = torch.randn(9, 6)
    y = model(x).argmax(1)
    pairs = certify(model, kind="pairwise")
    found = certify(model, kind="pairwise", n_jobs=2)
    assert list(found.lips) == pytest.approx(list(pairs.lips), rel=1e-6)
    verify(found, model)
    config = LocalConfig("norms")
    balls = certify_local(model, x, 0.05, y, config=config, n_jobs=2)
    verify(balls, model)
    here = certify_local(model, x, 0.05, y, config=config)
    assert torch.equal(balls.level, here.level)
    torch.testing.assert_close(balls.margin, here.margin)
    radii = certified_radii(model, x, y, kind="local", config=config, n_jobs=2)
    same = certified_radii(model, x, y, kind="local", config=config)
    torch.testing.assert_close(radii, same, rtol=2 * config.tol, atol=0.0)
