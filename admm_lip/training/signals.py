"""How a run is asked to stop from outside: Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# signal -> how a run ends that was asked to stop by it; and the exit code of a command then
STOPS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
EXIT_CODES = {name: 128 + number for number, name in STOPS.items()}


@dataclass
class Asked:
    """How the run was asked to stop, a value of ``STOPS``; ``None`` while it was not."""

    stop: str | None = None


@contextmanager
def deferred_signals() -> Iterator[Asked]:
    """Let the first Ctrl-C or SIGTERM wait until the run can stop; a second one acts at once.

    Outside the main thread signals cannot be caught and do what they always do.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    previous = {number: signal.getsignal(number) for number in STOPS}

    def put_back() -> None:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def remember(number: int, frame: Any) -> None:
        asked.stop = STOPS[signal.Signals(number)]
        put_back()

    for number in STOPS:
        signal.signal(number, remember)
    try:
        yield asked
    finally:
        put_back()
