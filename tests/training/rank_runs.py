"""What each process of ``test_ranks.py`` runs: two gloo ranks, each leaving a record of its end."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from admm_lip import Constraint, Lipschitz, TrainConfig, certify, train
from admm_lip.errors import TrainingFailed
from admm_lip.records import write_json
from admm_lip.training.callbacks import Callback, Moment
from admm_lip.training.config import AdmmConfig

X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 0, -1, 0])
Y = (X[:, 0] > 2.0).long() + (X[:, 1] > 0.0).long()
BATCH, STEPS, KEPT, DEATH = 16, 24, 8, 16
PATIENCE = 2.5  # seconds that a group waits for a process that hangs
ASKED = Lipschitz(1.5)
CONFIG = TrainConfig(bound=1.5, epochs=4, batch_size=BATCH)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3))


def digest(tensors: Sequence[torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


def own_loop(
    model: nn.Module,
    folder: Path,
    rank: int = 0,
    ranks: int = 1,
    resume: bool = False,
    before_round: Callable[[int], None] = lambda step: None,
    group: Any = None,
) -> tuple[Constraint, nn.Module, Any]:
    """A loop by hand; every rank takes its rows of each batch, rank 0 keeps a checkpoint."""
    constraint = Constraint(model, ASKED, mean=X.mean(0) + rank, group=group)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    constraint.attach(optimizer)
    inner, done = constraint.model, 0
    if resume:
        kept = torch.load(folder / "kept.pt", weights_only=True)
        inner.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        constraint.load_state_dict(kept["constraint"])
        done = kept["step"]
    for step in range(done, STEPS):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(X)
        x, y = X[rows][rank::ranks], Y[rows][rank::ranks]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        before_round(step + 1)
        optimizer.step()
        if step + 1 == KEPT and rank == 0:
            tree = {"model": inner.state_dict(), "optimizer": optimizer.state_dict()}
            tree |= {"constraint": constraint.state_dict(), "step": step + 1}
            torch.save(tree, folder / "kept.pt")
    finished, certificate = constraint.finish()
    return constraint, finished, certificate


class Stopping(Callback):
    """Asks for the end after some rounds."""

    def stop(self, moment: Moment) -> bool:
        return moment.step >= KEPT


def whole_runs(rank: int, folder: Path) -> None:
    """An own loop and ``train``, to their ends."""
    model = DistributedDataParallel(net(seed=rank))
    assert certify(model).lip > 0.0
    constraint, finished, certificate = own_loop(model, folder, rank, 2)
    result = train(
        *(DistributedDataParallel(net(seed=rank)), (X, Y), CONFIG),
        run_dir=folder / "run",
        callbacks=[Stopping()] if rank == 0 else [],
        progress=False,
    )
    write_json(
        folder / f"whole{rank}.json",
        {
            "weights": digest(list(finished.parameters())),
            "duals": digest(constraint.state.dual),
            "certificate": certificate.to_json(),
            "values": [p.tolist() for p in finished.parameters()],
            "train weights": digest(list(result.model.parameters())),
            "train certificate": result.certificate.to_json(),
            "train loss": [row["loss"] for row in result.history],
            "train stopped": result.stopped,
        },
    )


def refusals(rank: int, folder: Path) -> None:
    """What is not alike on the ranks is said on both, and both go on."""
    mask = torch.zeros(12, 4, dtype=torch.bool)
    mask[0, rank] = True
    loader = DataLoader(TensorDataset(X, Y), BATCH, sampler=list(range(rank, len(X), 2)))
    group = dist.group.WORLD
    asked: dict[str, Callable[[], Any]] = {
        "masks": lambda: Constraint(net(), ASKED, group=group, held={"0.weight": mask}),
        "rounds": lambda: Constraint(net(), ASKED, AdmmConfig(round_steps=2 + rank), group=group),
        "mean": lambda: Constraint(net(), ASKED, group=group, mean=X.mean(0) if rank else None),
        "rows": lambda: train(DistributedDataParallel(net()), loader, CONFIG, progress=False),
        "data": lambda: train(DistributedDataParallel(net()), (X + rank, Y), CONFIG),
    }
    said = {}
    for name, run in asked.items():
        try:
            run()
        except ValueError as error:
            said[name] = str(error)
    write_json(folder / f"refused{rank}.json", said)


def rank_0_hangs(rank: int, folder: Path) -> None:
    """Rank 0 is alive, but comes to no projection; the other waits as long as its group says."""
    group, done = dist.new_group([0, 1], timeout=timedelta(seconds=PATIENCE)), folder / "gone on"

    def hang(step: int) -> None:
        while step == DEATH and rank == 0 and not done.exists():
            time.sleep(0.05)

    try:
        own_loop(net(), folder, rank, 2, before_round=hang, group=group)
    except TrainingFailed as error:
        write_json(folder / f"waited{rank}.json", str(error))
    finally:
        done.touch()


def rank_0_dies(rank: int, folder: Path) -> None:
    """Rank 0 is gone before it would project; the other says what it was told."""

    def die(step: int) -> None:
        if step == DEATH and rank == 0:
            os._exit(9)

    try:
        own_loop(DistributedDataParallel(net(seed=rank)), folder, rank, 2, before_round=die)
    except TrainingFailed as error:
        write_json(folder / f"said{rank}.json", str(error))


def rank_process(rank: int, folder: Path) -> None:
    """A process of the two."""
    torch.set_num_threads(1)
    dist.init_process_group(
        *("gloo", f"file://{folder / 'meeting'}"),
        timeout=timedelta(seconds=60),
        world_size=2,
        rank=rank,
    )
    whole_runs(rank, folder)
    refusals(rank, folder)
    rank_0_hangs(rank, folder)
    rank_0_dies(rank, folder)
