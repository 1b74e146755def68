"""How much time is left, and what is known of the work that must still fit into it."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

Result = TypeVar("Result")

# A limit that is used up still lets whoever is asked next say at once what they have.
_LEAST_SECONDS = 1e-9


class Deadline:
    """A moment by which work should end, and the longest that each kind of work has taken so far.

    Args:
        seconds: from now on; ``None`` is no limit.

    Example:
        >>> deadline = Deadline(None)
        >>> deadline.timed("passes", lambda: "done"), deadline.has_time(passes=1000)
        ('done', True)
    """

    def __init__(self, seconds: float | None) -> None:
        self._end = math.inf if seconds is None else perf_counter() + seconds
        self._longest: dict[str, float] = {}

    @property
    def seconds_left(self) -> float:
        """Seconds until then: infinite without a limit, negative when it is over."""
        return self._end - perf_counter()

    def limit(self, reserve: float = 0.0) -> float | None:
        """What is left as a ``time_limit`` > 0, less ``reserve`` seconds; ``None`` without one."""
        if math.isinf(self._end):
            return None
        return max(self.seconds_left - reserve, _LEAST_SECONDS)

    def share(self, part: float) -> Deadline:
        """The end of this part of what is left."""
        left = self.limit()
        return Deadline(None if left is None else part * left)

    def timed(self, kind: str, work: Callable[[], Result]) -> Result:
        """The result of a piece of work, whose seconds later ones of its kind are judged by."""
        begun = perf_counter()
        result = work()
        self._longest[kind] = max(self.seconds_of(kind), perf_counter() - begun)
        return result

    def seconds_of(self, kind: str) -> float:
        """The longest that a piece of this kind has taken; 0 where nothing is known of it."""
        return self._longest.get(kind, 0.0)

    def has_time(self, **ahead: int) -> bool:
        """Whether there is room for so many pieces of work of each kind.

        A piece is taken to need as long as the longest of its kind so far.
        """
        needed = sum(count * self.seconds_of(kind) for kind, count in ahead.items())
        return needed < self.seconds_left
