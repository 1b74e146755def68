"""A cluster of Dask through joblib: nothing is lost when a worker is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
from parallel_tasks import NAMES, always_dies, killing_cell

from admm_lip import certify, verify
from admm_lip.errors import WorkerLost
from admm_lip.parallel import run_tasks
from admm_lip.progress import Work
from benchmarks.study import Study, run_study

distributed = pytest.importorskip("distributed", reason="the cluster needs dask, of the extra test")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # of Dask and its event loop
]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two workers of one thread each."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield client


def test_the_grid_of_a_benchmark_outlives_a_worker(client: Any, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    cells = [{"number": k, "marks": str(marks)} for k in range(8)]
    study = Study("killing", lambda settings: cells, killing_cell, lambda rows: "", lambda *_: [])
    with joblib.parallel_config("dask"):
        rows = run_study(study, {}, data_dir=None, jobs=2, folder=tmp_path / "cells")
    assert (marks / "died").exists()
    assert [row["square"] for row in rows] == [k * k for k in range(8)]
    assert os.getpid() not in {row["process"] for row in rows}


def test_pairs_outlive_a_worker(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    client.wait_for_workers(2)
    workers = list(client.run(os.getpid).values())

    def kill_one_after_the_first(work: Work, count: int = 1) -> None:
        if len(workers) == 2:
            os.kill(workers.pop(), signal.SIGKILL)
        work.done += count

    with monkeypatch.context() as patched, joblib.parallel_config("dask"):
        patched.setattr(Work, "step", kill_one_after_the_first)
        found = certify(model, kind="pairwise")
    assert len(workers) == 1
    assert list(found.lips) == pytest.approx(list(certify(model, kind="pairwise").lips), rel=1e-6)
    verify(found, model)


def test_a_task_that_kills_every_worker_is_named(client: Any) -> None:
    client.wait_for_workers(2)
    with joblib.parallel_config("dask"), pytest.raises(WorkerLost, match=r"^number 3: its worker"):
        run_tasks(always_dies, range(6), NAMES)
