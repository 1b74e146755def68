"""How many threads the products of a solve take: one, where they are small.

A product of matrices of 64 rows is over before a second thread has begun: on two threads 10 layers
of 100 took 6.5 s and 64 of 64 took 33, on one 1.6 and 16.  On a machine with other work the threads
of NumPy's BLAS wait for each other besides, up to a hundred times as long as they work: they are
one as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from threadpoolctl import ThreadpoolController

# Hidden layers of so many neurons at most; of 200 two threads take two thirds of the time of one.
_NARROW = 128
_alone: ContextVar[bool] = ContextVar(
    "one thread of BLAS", default=os.environ.get("OMP_NUM_THREADS") == "1"
)


def blas_has_one_thread() -> bool:
    """Whether NumPy's and SciPy's linear algebra is known to have one thread here."""
    return _alone.get()


@contextmanager
def one_thread_of_blas() -> Iterator[None]:
    """Within it NumPy's linear algebra has one thread; as a decorator, within a function.

    For thousands of matrices of some hundred rows, one after another (an image network frequency by
    frequency took ten times as long on two threads of a busy machine).
    """
    alone = _alone.set(True)
    try:
        with _blas().limit(limits=1, user_api="blas"):
            yield
    finally:
        _alone.reset(alone)


@contextmanager
def as_many_threads_as_pay(widths: Sequence[int]) -> Iterator[None]:
    """Within it linear algebra has one thread where all of these hidden layers are narrow."""
    if max(widths, default=0) > _NARROW:
        yield
        return
    before = torch.get_num_threads()
    if before != 1:
        torch.set_num_threads(1)
    try:
        with one_thread_of_blas():
            yield
    finally:
        if before != 1:
            torch.set_num_threads(before)


@cache
def _blas() -> ThreadpoolController:
    """What sets the threads of the libraries that are loaded; to look for them takes a while."""
    return ThreadpoolController()
