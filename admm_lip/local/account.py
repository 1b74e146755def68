"""What a batch took and by what its margins were proven: noted as levels come and go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import ASKED


@dataclass(eq=False)
class Account:
    """Kept by whoever runs the levels of a batch.

    Attributes:
        means: the level that first proved each functional's margin, ``(batch, m)``, int8, an index
            of ``ASKED``.
        seconds: what each sample took on the clock, ``(batch,)``.
        left: see :attr:`LocalCertificate.left`, ``(batch,)``, int32.
    """

    means: Tensor
    seconds: Tensor
    left: Tensor

    @staticmethod
    def opened(items: Tensor, level: str) -> Account:
        """Before anything is done, for functionals ``(batch, m)``; the level begins."""
        means = torch.full(items.shape, ASKED.index(level), dtype=torch.int8)
        seconds = torch.zeros(len(items), dtype=torch.float64)
        return Account(means, seconds, torch.zeros(len(items), dtype=torch.int32))

    @contextmanager
    def timed(self, samples: Tensor | None = None) -> Iterator[None]:
        """Around a step, whose time is shared by samples ``(batch,)``, boolean, or by all."""
        begun = time.perf_counter()
        yield
        taken = time.perf_counter() - begun
        if samples is None:
            self.seconds += taken / max(len(self.seconds), 1)
        else:
            self.seconds += samples * (taken / max(int(samples.sum()), 1))

    def raised(self, margin: Tensor, found: Tensor, level: str) -> Tensor:
        """The greater of two margins; what only the second proves is put down to its level."""
        self.means[(margin <= 0.0) & (found > 0.0)] = ASKED.index(level)
        return torch.maximum(margin, found)
