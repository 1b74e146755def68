"""What can go wrong at each stage of a solve, and the one table that says what is done then.

Numerical work returns what it found or a :class:`Trouble`.  Whoever drives a stage takes the
trouble to a checkpoint (``Progress.checkpoint``), which looks up what to do, notes it for the
solution, and says it.  No other place decides between another start, a shorter step, going on
without the N x N matrix, and stopping.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple


class Stage(Enum):
    """A part of the solve that can fail by itself; the value is its name for a reader."""

    WARM = "start from a multiplier nearby"
    COLD = "centring of a closed form"
    ROUGH = "first steps, in single precision"
    DENSE = "primal-dual steps"
    BANDED = "primal-dual steps without the N x N matrix"


class Trouble(Enum):
    """What went wrong, in words."""

    USELESS = "it proves nothing here"
    NO_START = "there is no other closed form"
    TOO_LARGE = "the N x N matrix would cost too much"
    OUTSIDE = "a step left the feasible set"
    NO_FACTOR = "a factorisation failed"
    ROUNDING = "a number that should be positive was lost in rounding"
    SHORT = "the steps became too short"
    SLOW = "progress became too slow"
    LIMIT = "a limit was reached"


class Action(Enum):
    """What is done about it."""

    SHORTEN = "took a shorter step"
    OTHER_START = "tried the next start"
    GO_ON = "went on from the last point"
    WITHOUT_MATRIX = "went on without the N x N matrix"
    STOP = "stopped with the best bound known"


# Trouble of any kind at a stage, unless a row of its own says otherwise.
_USUAL: Mapping[Stage, Action] = MappingProxyType(
    {
        Stage.WARM: Action.OTHER_START,
        Stage.COLD: Action.WITHOUT_MATRIX,
        Stage.ROUGH: Action.GO_ON,
        Stage.DENSE: Action.STOP,
        Stage.BANDED: Action.STOP,
    }
)
_OWN: Mapping[tuple[Stage, Trouble], Action] = MappingProxyType(
    {
        (Stage.COLD, Trouble.SLOW): Action.OTHER_START,
        **{(stage, Trouble.OUTSIDE): Action.SHORTEN for stage in Stage},
    }
)


class Checkpoint(NamedTuple):
    """A risky moment: where, what went wrong, and what was done.

    Example:
        >>> print(Checkpoint.at(Stage.COLD, Trouble.SLOW))
        centring of a closed form: progress became too slow; tried the next start
    """

    stage: Stage
    trouble: Trouble
    action: Action

    @staticmethod
    def at(stage: Stage, trouble: Trouble) -> Checkpoint:
        """The decision of the table."""
        return Checkpoint(stage, trouble, _OWN.get((stage, trouble), _USUAL[stage]))

    def __str__(self) -> str:
        return f"{self.stage.value}: {self.trouble.value}; {self.action.value}"
