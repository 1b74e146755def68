"""Checkpoints of a run, whatever its method: what is stored decides the rest of it completely.

That is, on the CPU: parameters and all buffers, the optimizer, the random state, what the method
keeps elsewhere, and how far the loop has come.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import exclusive, make_writable, remove_leftovers
from .checkpoint import CHECKPOINT, PREVIOUS, CheckpointError, load_last, save_checkpoint
from .identity import describe, difference, identity_of
from .ranks import Ranks
from .run import Progress, Run

_log = logging.getLogger("admm_lip")
# Writing takes at most about this share of the time.
_SHARE = 0.1


@contextmanager
def run_folder(run_dir: str | Path | None, resume: bool, ranks: Ranks) -> Iterator[Path | None]:
    """The folder of a run, made where it is missing and held by this run alone; of rank 0 only.

    Raises:
        ValueError: for a run to be resumed without a folder.
        WriteError: when it cannot be made or written.
        RunFolderError: when another run is writing into it.
    """
    if run_dir is None and resume:
        raise ValueError("run_dir: resume=True needs the folder of the run; got None")
    if run_dir is None or not ranks.first:
        yield None
        return
    folder = Path(run_dir)
    make_writable(folder)
    with exclusive(folder):
        remove_leftovers(folder, (CHECKPOINT, PREVIOUS))
        yield folder


class Keeper:
    """Writes and reads the checkpoint of one run; ``folder=None`` does neither.

    Steps last milliseconds, so a checkpoint is written when one is due: the first time it is asked
    ``config.checkpoint_seconds`` after the last one, later where writing takes long.
    """

    def __init__(self, run: Run, folder: Path | None) -> None:
        self.run, self.folder = run, folder
        self.identity = {} if folder is None else _identity(run)
        self.next = time.monotonic() + run.config.checkpoint_seconds

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self.folder is not None and time.monotonic() >= self.next

    def save(self, at: Progress) -> None:
        """Save now."""
        if self.folder is None:
            return
        begun, run = time.monotonic(), self.run
        loop = vars(at) | {"losses": [value.cpu() for value in at.losses]}
        save_checkpoint(
            self.folder / CHECKPOINT,
            {
                "run": self.identity,
                "epochs": run.config.epochs,
                "loop": loop,
                "model": _tensors(run.model),
                "optimizer": run.optimizer.state_dict(),
                "method": run.method.state(run.model),
                "constraint": None if run.constraint is None else run.constraint.state_dict(),
                "scaler": run.scaler.state_dict(),
                "random": torch.get_rng_state(),
            },
        )
        took = time.monotonic() - begun
        self.next = time.monotonic() + max(run.config.checkpoint_seconds, took / _SHARE)

    def restore(self) -> Progress:
        """Put model, optimizer, method, constraint and random state back; returns how far it was.

        A run may be given more epochs than it had, or fewer, if not fewer than it has done: from
        here on its schedule is that of a run of the new length.

        Raises:
            CheckpointError: when there is none, or it belongs to another run.
        """
        run = self.run
        tree = run.ranks.decided("checkpoint", self._read)
        at = Progress(**tree["loop"])
        self._check_length(tree["epochs"], at.step)
        _put_back(run.model, tree["model"])
        run.optimizer.load_state_dict(tree["optimizer"])
        run.method.restore(run.model, tree["method"])
        if run.constraint is not None:
            run.constraint.load_state_dict(tree["constraint"])
        run.scaler.load_state_dict(tree["scaler"])
        torch.set_rng_state(tree["random"])
        return at

    def _read(self) -> Any:
        """The last checkpoint, of this run."""
        assert self.folder is not None
        tree = load_last(self.folder)
        other = difference(self.identity, tree["run"])
        if other is not None:
            raise CheckpointError(
                f"checkpoint: {self.folder / CHECKPOINT} belongs to a run with {other}; resume "
                "with the same settings, data, loss and model, or start afresh in another folder"
            )
        return tree

    def _check_length(self, epochs: int, step: int) -> None:
        """Refuse to end before what was done; say so where the end is another one."""
        now, done = self.run.config.epochs, step / len(self.run.batches)
        if step > self.run.total_steps:
            raise CheckpointError(
                f"epochs: the run in {self.folder} has done {done:g} epochs, so it cannot end "
                f"after {now}; ask for {epochs} as before, or for more"
            )
        if now != epochs:
            _log.warning(
                "resumed after %g epochs: the run ends after %d instead of %d; from here on its "
                "schedule is that of a run of %d epochs",
                *(done, now, epochs, now),
            )


def _identity(run: Run) -> dict[str, str]:
    same = identity_of(run.config, run.model, run.batches, run.named_loss, run.method)
    units = {} if run.units is None else {"units": describe(run.units)}
    return same | units | {"dtype": str(run.stored)}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _put_back(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Overwrite parameters; buffers are replaced, since methods replace theirs."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
    for name, old in list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, tensors[name].to(old.device))
