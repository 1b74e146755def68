"""Checkpoints of :func:`admm_lip.training.fit.fit`: between any two steps, never pickled.

What is stored decides the rest of the run completely (on the CPU): parameters and all buffers, the
optimizer, the random state, the losses of the epoch begun, and what the method keeps elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..methods.base import Method
from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint

CHECKPOINT = "checkpoint.safetensors"
# Writing takes at most about this share of the time.
_SHARE = 0.1


@dataclass
class Progress:
    """How far a run has come: steps done, losses of the epoch begun, history, seconds."""

    step: int
    losses: list[Tensor]
    history: list[dict[str, Any]]
    seconds: float


class FitKeeper:
    """Writes and reads the checkpoint of one run; ``folder=None`` does neither.

    Args:
        model: the prepared model.
        optimizer: of its parameters.
        method: that prepared it.
        identity: name to value of what must agree for a run to be continued.
        folder: of the run; it is made where it is missing.
        seconds: least time between two checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        method: Method,
        identity: dict[str, str],
        folder: Path | None,
        seconds: float,
    ) -> None:
        self.model, self.optimizer, self.method = model, optimizer, method
        shapes = {name: list(value.shape) for name, value in model.named_parameters()}
        self.identity = identity | {"method": digest(method), "architecture": str(shapes)}
        self.path = None if folder is None else folder / CHECKPOINT
        self.seconds = seconds
        self.next = time.monotonic() + seconds
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self.path is not None and time.monotonic() >= self.next

    def save(self, progress: Progress) -> None:
        """Save now."""
        if self.path is None:
            return
        begun = time.monotonic()
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        save_checkpoint(
            self.path,
            {
                "run": self.identity,
                "step": progress.step,
                "losses": [value.cpu() for value in progress.losses],
                "history": progress.history,
                "seconds": progress.seconds,
                "model": tensors,
                "optimizer": self.optimizer.state_dict(),
                "method": self.method.state(self.model),
                "random": torch.get_rng_state(),
            },
        )
        took = time.monotonic() - begun
        self.next = time.monotonic() + max(self.seconds, took / _SHARE)

    def restore(self) -> Progress:
        """Put everything back; returns how far the run had come.

        Raises:
            CheckpointError: when there is none, or it belongs to another run.
        """
        assert self.path is not None
        tree = load_checkpoint(self.path)
        for name, mine in self.identity.items():
            if tree.get("run", {}).get(name) != mine:
                raise CheckpointError(
                    f"checkpoint: {self.path} belongs to a run with another {name}; resume with "
                    "the same settings and data, or start afresh in another folder"
                )
        self._put_back(tree["model"])
        self.optimizer.load_state_dict(tree["optimizer"])
        self.method.restore(self.model, tree["method"])
        torch.set_rng_state(tree["random"])
        device = next(self.model.parameters()).device
        losses = [value.to(device) for value in tree["losses"]]
        return Progress(tree["step"], losses, tree["history"], tree["seconds"])

    def _put_back(self, tensors: dict[str, Tensor]) -> None:
        """Overwrite parameters; buffers are replaced, since methods replace theirs."""
        buffers = dict(self.model.named_buffers())
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[name])
        for name, old in buffers.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(owner), leaf, tensors[name].to(old.device))


def digest(settings: Any, *, without: tuple[str, ...] = ()) -> str:
    """Short hash of a dataclass's class and fields, to recognise a run."""
    fields = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name not in without
    }
    text = json.dumps([type(settings).__name__, fields], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
