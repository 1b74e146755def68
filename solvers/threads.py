"""How many threads the products of a solve take: one, where they are small.

A product of matrices of 64 rows is over before a second thread has begun: on two threads 10 layers
of 100 took 6.5 s and 64 of 64 took 33, on one 1.6 and 16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

# Hidden layers of so many neurons at most; of 200 two threads take two thirds of the time of one.
_NARROW = 128


@contextmanager
def as_many_threads_as_pay(widths: Sequence[int]) -> Iterator[None]:
    """Within it torch has one thread where all of these hidden layers are narrow."""
    before = torch.get_num_threads()
    if before == 1 or max(widths, default=0) > _NARROW:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
