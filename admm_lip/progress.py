"""Long work says what it does: nothing for two seconds, then a bar, or a line every ten seconds.

A terminal and a notebook get a bar, of tqdm; a pipe and a log file get plain lines.  All of it goes
to standard error.  Each piece of work is looked at from a thread of its own, so that one long solve
is heard of as well as a loop.  Of works within each other that are all long, the innermost speaks.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

# Seconds before the first word, between lines, and between two looks at a bar.
DELAY, EVERY, REDRAWN = 2.0, 10.0, 0.2
_CURRENT: ContextVar[Work | None] = ContextVar("work", default=None)


class Work:
    """One piece of work, for who does it to say how far it is.

    Attributes:
        name: what is done.
        total: how many steps it has; ``None`` where it is one.
        units: what steps are.
        done: steps done.
        note: the latest figures.
    """

    def __init__(
        self, name: str, total: int | None = None, units: str = "", done: int = 0, show: bool = True
    ) -> None:
        self.name, self.total, self.units, self.done, self.note = name, total, units, done, ""
        self.begun, self.first, self.over = time.monotonic(), done, threading.Event()
        self.outer = _CURRENT.get()
        self.shown: bool = show and (self.outer is None or self.outer.shown)
        self.within = 0  # works inside it that speak

    def step(self, count: int = 1) -> None:
        """So many steps more are done."""
        self.done += count

    def line(self) -> str:
        """How far it is, in words.

        Example:
            >>> work = Work("training", 500, "steps", done=20)
            >>> work.step(30)
            >>> work.note = "loss 0.3"
            >>> work.line()
            'training: 50 of 500 steps, 0 s; loss 0.3'
        """
        passed, gone = time.monotonic() - self.begun, self.done - self.first
        count = "" if self.total is None else f"{self.done} of {self.total} {self.units}, "
        left = "" if self.total is None or gone <= 0 else (self.total - self.done) * passed / gone
        more = "" if left == "" or passed < DELAY else f", about {left:.0f} s left"
        return f"{self.name}: {count}{passed:.0f} s{more}" + (self.note and f"; {self.note}")


@contextmanager
def working(
    name: str, total: int | None = None, units: str = "", *, done: int = 0, show: bool = True
) -> Iterator[Work]:
    """Around long work.

    Args:
        name: what is done, such as ``"certify"``.
        total: how many steps it has; ``None`` where it is one.
        units: what steps are.
        done: steps done already.
        show: whether it is spoken of; within work that is not, nothing is.

    Example:
        >>> with working("count", 3, "numbers") as work:
        ...     for _ in range(3):
        ...         work.step()
        >>> work.done
        3
    """
    work = Work(name, total, units, done, show)
    teller = threading.Thread(target=_tell, args=(work, sys.stderr), daemon=True)
    if work.shown:
        teller.start()
    token = _CURRENT.set(work)
    try:
        yield work
    finally:
        _CURRENT.reset(token)
        work.over.set()
        if work.shown:
            teller.join()


@contextmanager
def aside() -> Iterator[None]:
    """Around what is printed meanwhile: bars make room for it."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    with nullcontext() if tqdm is None else tqdm.external_write_mode():
        yield


def _tell(work: Work, stream: Any) -> None:
    """Speak of the work, once it is long, until it is over."""
    if work.over.wait(DELAY):
        return
    if work.outer is not None:
        work.outer.within += 1
    try:
        (_draw if stream.isatty() or "ipykernel" in sys.modules else _print)(work, stream)
    except (OSError, ValueError):  # nobody reads it any more
        pass
    finally:
        if work.outer is not None:
            work.outer.within -= 1


def _print(work: Work, stream: Any) -> None:
    while True:
        if not work.within:
            stream.write(work.line() + "\n")
            stream.flush()
        if work.over.wait(EVERY):
            return


def _draw(work: Work, stream: Any) -> None:
    from tqdm.auto import tqdm

    bar = None
    while not work.over.wait(REDRAWN):
        if work.within and bar is not None:
            bar.close()
            bar = None
        elif not work.within and bar is None:
            form = "{desc}: {elapsed}{postfix}" if work.total is None else None
            bar = tqdm(
                total=work.total,
                initial=work.first,
                desc=work.name,
                unit=f" {work.units}",
                bar_format=form,
                leave=False,
                delay=1e-9,  # nothing is drawn before its numbers are right
            )
            bar.start_t -= time.monotonic() - work.begun
        if bar is not None:
            bar.n = work.done
            bar.set_postfix_str(work.note, refresh=True)
    if bar is not None:
        bar.close()
