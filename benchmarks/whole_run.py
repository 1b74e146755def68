"""Training for a benchmark: a run that was told to stop ends the benchmark and is in no record."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from admm_lip import TrainResult
from admm_lip.training.signals import EXIT_CODES
from admm_lip.training.train import train as _train

P = ParamSpec("P")


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


train = whole(_train)
