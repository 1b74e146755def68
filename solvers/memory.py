"""Freed memory that stays with the process.

The C library of Linux hands the free end of its heap back to the system where that is more than
twice the largest block that was ever mapped by itself and freed, of 32 MiB at most.  A solve of
matrices of order 500 allocates some MiB in every step, and fetching the pages anew takes a quarter
of its time.  So one block of nearly that size is allocated once and freed: no page of it is used,
and up to 64 MiB stay.
"""

from __future__ import annotations

from functools import cache

import torch

_NEARLY_32_MIB = 31 * 2**20


@cache
def keep_freed_memory() -> None:
    """Do so, once in a process; elsewhere it does nothing."""
    torch.empty(_NEARLY_32_MIB, dtype=torch.uint8)
