"""Tasks for workers, in a module of their own that loads no torch: a worker is a new process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

NAMES = [f"number {k}" for k in range(6)]


def threads_within(k: int) -> tuple[int, int, int]:
    import torch

    return k, torch.get_num_threads(), os.getpid()


def refuses_four(k: int) -> int:
    if k == 4:
        raise ValueError("cannot do that")
    return k


class OddError(Exception):
    """One that does not come back from a pickle."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


def raises_an_odd_error(k: int) -> int:
    raise OddError(k, "odd")


def dies_once(task: tuple[int, Path]) -> int:
    """Kills its process the first time that number 3 is tried."""
    k, marks = task
    (marks / f"{k}-{len(list(marks.iterdir()))}").touch()
    if k == 3 and not (marks / "died").exists():
        (marks / "died").touch()
        os._exit(1)
    return k * k


def always_dies(k: int) -> int:
    if k == 3:
        os._exit(1)
    return k * k


def killing_cell(cell: dict[str, Any], data_dir: str | None) -> dict[str, Any]:
    """A cell of a benchmark's grid; number 3 kills its worker the first time."""
    return {"square": dies_once((cell["number"], Path(cell["marks"]))), "process": os.getpid()}
