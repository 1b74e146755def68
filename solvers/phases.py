"""Where the seconds of a solve go: a phase is named once, on the function that does its work.

A phase that is called inside another one counts for itself only, so the parts add up to the whole.
Without a :func:`stopwatch` nothing is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from time import perf_counter
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

OTHER = "other"
_open: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


class Stopwatch:
    """Seconds per phase; :data:`OTHER` is what belongs to none."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._phase, self._since = OTHER, perf_counter()

    def turn(self, phase: str) -> str:
        """From now on the time is ``phase``'s; the phase that it was until now."""
        before, now = self._phase, perf_counter()
        self.seconds[before] = self.seconds.get(before, 0.0) + now - self._since
        self._phase, self._since = phase, now
        return before


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Seconds per phase of what runs inside, complete when it is left.

    Example:
        >>> @phase("work")
        ... def work() -> int:
        ...     return 1
        >>> with stopwatch() as seconds:
        ...     done = work()
        >>> sorted(seconds)
        ['other', 'work']
    """
    watch = Stopwatch()
    token = _open.set(watch)
    try:
        yield watch.seconds
    finally:
        watch.turn(OTHER)
        _open.reset(token)


def phase(name: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Let the time of a function count for the phase ``name``."""

    def named(work: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @wraps(work)
        def measured(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
            watch = _open.get()
            if watch is None:
                return work(*args, **options)
            before = watch.turn(name)
            try:
                return work(*args, **options)
            finally:
                watch.turn(before)

        return measured

    return named
