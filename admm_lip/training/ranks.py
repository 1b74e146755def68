"""One network on many processes (torch.distributed): rank 0 decides, and all hold the same bits.

What follows from averaged gradients is the same everywhere by itself.  What is computed otherwise
(the start, a projection, a certificate) is computed by rank 0 and broadcast: another processor may
round it otherwise, and the processes of one machine would take each other's cores.  Layers are not
shared out: the projection of dense layers is one problem of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import TrainingFailed
from .admm_state import AdmmState
from .resuming import plain_state, restored_state

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes that hold the same network.

    Attributes:
        group: theirs; ``None``: this process is alone, and nothing is sent.
    """

    group: dist.ProcessGroup | None = None

    @property
    def size(self) -> int:
        """How many they are."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def number(self) -> int:
        """This process's number in the group."""
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def first(self) -> bool:
        """Whether this process decides, speaks and writes."""
        return self.number == 0

    def decided(self, what: str, make: Callable[[], Made]) -> Made:
        """What rank 0 makes of it; plain data and tensors of the CPU.

        Raises:
            TrainingFailed: where another rank than this one failed or is gone.
            Exception: on rank 0, what ``make`` raised.
        """
        if self.group is None:
            return make()
        made, error = None, None
        if self.first:
            try:
                made = make()
            except Exception as caught:
                error = caught
        sent = [made, None if error is None else f"{type(error).__name__}: {error}"]
        with heard(what):
            dist.broadcast_object_list(sent, dist.get_global_rank(self.group, 0), self.group)
        if error is not None:
            raise error
        if sent[1] is not None:
            raise TrainingFailed(f"{what}: rank 0 failed with {sent[1]}")
        return cast(Made, sent[0])

    def state(self, what: str, make: Callable[[], AdmmState], like: Sequence[Tensor]) -> AdmmState:
        """The state that rank 0 makes; its restart data stay there, a matter of speed alone."""
        own: list[AdmmState] = []

        def plain() -> dict[str, Any]:
            own.append(make())
            there = [w.detach().cpu() for w in like]
            return plain_state(restored_state(plain_state(replace(own[0], warm=None)), there))

        if self.group is None:
            return make()
        kept = self.decided(what, plain)
        return own[0] if own else restored_state(kept, like)

    def copy(self, what: str, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of rank 0."""
        if self.group is None:
            return
        source = dist.get_global_rank(self.group, 0)
        for tensor in tensors:
            with heard(what):
                dist.broadcast(tensor.detach(), source, self.group)

    def add(self, what: str, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors of one dtype by their sums over the ranks."""
        if self.group is None:
            return
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        with heard(what):
            dist.all_reduce(flat, group=self.group)
        with torch.no_grad():
            totals = torch.split(flat, [t.numel() for t in tensors])
            for tensor, total in zip(tensors, totals, strict=True):
                tensor.copy_(total.view_as(tensor))

    def same(self, what: str, make: Callable[[], Mapping[str, str]]) -> None:
        """Compare the texts (``identity.py``) of what all ranks must have alike.

        Args:
            what: they are of.
            make: name to text; not called where this process is alone.

        Raises:
            ValueError: on every rank, naming the first that differs from rank 0, and in what.
        """
        if self.group is None:
            return
        found: list[Any] = [None] * self.size
        with heard(what):
            dist.all_gather_object(found, dict(make()), self.group)
        for number, theirs in enumerate(found):
            for name in dict.fromkeys((*found[0], *theirs)):
                first, other = (texts.get(name, "nothing") for texts in (found[0], theirs))
                if first != other:
                    raise ValueError(
                        f"{what}: expected the same on every process; rank {number} has another "
                        f"{name} than rank 0 ({other:.200} instead of {first:.200}); give all of "
                        "them what rank 0 has"
                    )

    def greatest(self, what: str, number: int, device: torch.device) -> int:
        """The greatest of the ranks' numbers."""
        if self.group is None:
            return number
        found = torch.tensor([number], device=device)
        with heard(what):
            dist.all_reduce(found, dist.ReduceOp.MAX, self.group)
        return int(found)

    def part(self, rows: Tensor) -> Tensor:
        """This rank's rows of a batch; one that stands for none where there are too few."""
        return rows if self.size == 1 else rows[min(self.number, len(rows) - 1) :: self.size]

    def share(self, rows: int) -> float:
        """How many of a batch's rows are this rank's, relatively."""
        return len(range(self.number, rows, self.size)) / rows


@contextmanager
def heard(what: str) -> Iterator[None]:
    """Name the moment at which another process did not answer.

    Raises:
        TrainingFailed: after the timeout of ``init_process_group``, or where a process died.
    """
    try:
        yield
    except RuntimeError as error:
        raise TrainingFailed(
            f"{what}: another process of the run did not answer ({error!s:.300}); see what ended "
            "it, and resume from the last checkpoint, on as many processes as there are"
        ) from error


def ranks_of(model: nn.Module, group: Any = None) -> Ranks:
    """The processes of ``group``, or those of a DistributedDataParallel around the model.

    Raises:
        ValueError: for a group that this process is not in.
    """
    if group is None and isinstance(model, nn.parallel.DistributedDataParallel):
        group = model.process_group
    if group is None:
        return Ranks()
    if not isinstance(group, dist.ProcessGroup):
        raise ValueError(
            "group: expected a process group that this process is in, such as "
            f"torch.distributed.group.WORLD after init_process_group, got {group!r:.80}"
        )
    return Ranks(group) if dist.get_world_size(group) > 1 else Ranks()
