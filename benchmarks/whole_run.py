"""Training for a benchmark: a run that was told to stop ends the benchmark and is in no record."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from admm_lip import TrainResult
from admm_lip.training.signals import EXIT_CODES
from admm_lip.training.train import train as _train

P = ParamSpec("P")
T = TypeVar("T")


def whole(run: Callable[P, TrainResult]) -> Callable[P, TrainResult]:
    """The same, but Ctrl-C or SIGTERM, after which training returns what it has, is raised.

    Raises:
        KeyboardInterrupt: as :func:`whole` says.
    """

    @wraps(run)
    def trained(*args: P.args, **kwargs: P.kwargs) -> TrainResult:
        result = run(*args, **kwargs)
        if result.stopped in EXIT_CODES:
            raise KeyboardInterrupt(f"training was {result.stopped}; this cell is not recorded")
        return result

    return trained


def with_share_of_core(run: Callable[[], T]) -> tuple[T, float]:
    """What a run returns, and the share of a core that the process had meanwhile, at most 1.

    Seconds that a run took by the clock, times that share, are what they would be undisturbed.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    found = run()
    return found, min(1.0, (time.process_time() - cpu) / (time.perf_counter() - wall))


train = whole(_train)
