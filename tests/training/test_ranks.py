"""Training on several processes: the same bits on each, a dead one named, resumed on fewer.

Two gloo processes are begun once, and run everything that the tests look at.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_runs import ASKED, BATCH, CONFIG, KEPT, X, Y, net, own_loop, rank_process
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from admm_lip import Constraint, train, verify
from admm_lip.certificates.certificate import Certificate
from admm_lip.records import read_json
from admm_lip.training.batches import as_batches
from admm_lip.training.ranks import Ranks, ranks_of

SECONDS = 120.0


@dataclass
class Ended:
    """What two processes left."""

    folder: Path
    whole: list[dict[str, Any]]
    said: str
    refused: list[dict[str, str]]
    waited: str
    codes: list[int | None]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("ranks")
    spawned = multiprocessing.get_context("spawn")
    processes = [spawned.Process(target=rank_process, args=(k, folder)) for k in range(2)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(SECONDS)
    finally:
        for process in processes:
            process.kill()
            process.join()
    whole = [read_json(folder / f"whole{k}.json") for k in range(2)]
    refused = [read_json(folder / f"refused{k}.json") for k in range(2)]
    said, waited = (read_json(folder / f"{name}1.json") for name in ("said", "waited"))
    return Ended(folder, whole, said, refused, waited, [p.exitcode for p in processes])


def test_every_rank_holds_the_same_bits(ended: Ended) -> None:
    first, second = ended.whole
    for name in ("weights", "duals", "certificate"):
        assert first[name] == second[name]
    certificate = Certificate.from_json(first["certificate"])
    model = net()
    with torch.no_grad():
        for parameter, values in zip(model.parameters(), first["values"], strict=True):
            parameter.copy_(torch.tensor(values))
    verify(certificate, model)
    assert certificate.lip <= ASKED.bound == certificate.requested


def test_two_ranks_train_what_one_does(ended: Ended, tmp_path: Path) -> None:
    _, finished, _ = own_loop(net(), tmp_path)
    for parameter, values in zip(finished.parameters(), ended.whole[0]["values"], strict=True):
        torch.testing.assert_close(parameter.detach(), torch.tensor(values), rtol=1e-3, atol=1e-4)


def test_a_dead_rank_is_named_and_the_run_goes_on_with_one_process(ended: Ended) -> None:
    assert ended.codes == [9, 0]
    assert ended.said.startswith("round 2: another process of the run did not answer")
    assert "resume from the last checkpoint" in ended.said
    constraint, finished, certificate = own_loop(net(seed=1), ended.folder, resume=True)
    assert constraint.state.iteration == 3
    verify(certificate, finished)
    for parameter, values in zip(finished.parameters(), ended.whole[0]["values"], strict=True):
        torch.testing.assert_close(parameter.detach(), torch.tensor(values), rtol=1e-3, atol=1e-4)


def test_train_shares_its_batches_out_and_goes_on_with_one_process(ended: Ended) -> None:
    first, second = ended.whole
    for name in ("train weights", "train certificate", "train loss"):
        assert first[name] == second[name]
    assert first["train stopped"] == second["train stopped"] == "stopped"
    alone = train(net(), (X, Y), CONFIG, progress=False)
    rounds = len(first["train loss"])
    assert rounds == KEPT // 8
    assert first["train loss"] == pytest.approx(
        [r["loss"] for r in alone.history[:rounds]], rel=1e-4
    )
    result = train(net(), (X, Y), CONFIG, run_dir=ended.folder / "run", resume=True, progress=False)
    assert len(result.history) == len(alone.history)
    assert result.history[-1]["loss"] == pytest.approx(alone.history[-1]["loss"], rel=1e-3)
    verify(result.certificate, result.model)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("masks", "constraint: expected the same on every process; rank 1 has another set of ent"),
        ("rounds", "another setting round_steps than rank 0 (3 instead of 2); give all of them"),
        ("mean", "another mean than rank 0 (some instead of none)"),
        ("rows", "data: expected the same on every process; rank 1 has another data (first targ"),
        ("data", "rank 1 has another data (inputs) than rank 0"),
    ],
)
def test_what_is_not_alike_on_the_ranks_is_named_on_each(
    ended: Ended, case: str, said: str
) -> None:
    for refused in ended.refused:
        assert said in refused[case]


def test_a_rank_that_hangs_is_named_when_the_group_has_waited(ended: Ended) -> None:
    assert ended.waited.startswith("round 2: another process of the run did not answer")
    assert "Timed out" in ended.waited


def test_a_sampler_that_hands_out_parts_is_refused() -> None:
    rows = TensorDataset(X, Y)
    part = DistributedSampler(rows, num_replicas=2, rank=1)
    for more in ({"sampler": part}, {"batch_sampler": BatchSampler(part, 8, drop_last=False)}):
        with pytest.raises(ValueError, match=r"a DistributedSampler \(rank 1 of 2\).*without it"):
            train(net(), DataLoader(rows, **more), CONFIG)
    whole = DistributedSampler(rows, num_replicas=1, rank=0)
    assert len(as_batches(DataLoader(rows, BATCH, sampler=whole), 1, net())) == len(X) // BATCH


def test_a_batch_is_shared_out_to_its_last_row() -> None:
    class Some(Ranks):
        size = property(lambda self: 3)
        number = property(lambda self: self.at)

    ranks = []
    for number in range(3):
        ranks.append(Some())
        object.__setattr__(ranks[-1], "at", number)
    for count in (1, 2, 3, 7):
        rows = torch.arange(count)
        parts = [r.part(rows) for r in ranks if r.share(count)]
        assert sorted(torch.cat(parts).tolist()) == rows.tolist()
        assert [len(p) / count for p in parts] == [r.share(count) for r in ranks if r.share(count)]
        assert all(len(r.part(rows)) for r in ranks)  # something to take a mean of


def test_what_is_no_group_is_refused() -> None:
    with pytest.raises(ValueError, match="group: expected a process group"):
        Constraint(net(), ASKED, group=2)
    assert ranks_of(nn.Linear(1, 1)).group is None
