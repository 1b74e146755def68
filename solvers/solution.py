"""What a backend claims (:class:`CertifyClaim`, :class:`ProjectClaim`) and what was then measured.

A backend returns a claim; ``solve.py`` measures it and returns a solution.  Nothing downstream
reads a claim's numbers except to show them beside the measured ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .problem import Multiplier, Weights


class Status(Enum):
    """How a solve ended, in one vocabulary; the value is advice for the reader."""

    OPTIMAL = "solved to the requested accuracy"
    INACCURATE = "stopped short of the requested accuracy; what was measured still holds"
    INFEASIBLE = "the backend says no point is feasible; check the problem's scaling"
    LIMIT = "time or iteration limit reached; raise it, or loosen tol"
    FAILED = "the backend broke down; try another one"

    @property
    def usable(self) -> bool:
        """Whether a point may have come back that is worth measuring."""
        return self in (Status.OPTIMAL, Status.INACCURATE, Status.LIMIT)


@dataclass(frozen=True, eq=False)
class CertifyClaim:
    """A backend's answer to a :class:`~admm_lip.solvers.problem.CertifyProblem`.

    ``lower_lip_sq`` is the value of a dual feasible point (0 where the backend has none);
    ``decisions`` say what was met on the way.
    """

    status: Status
    multiplier: Multiplier | None
    lip_sq: float = float("nan")
    lower_lip_sq: float = 0.0
    iterations: int = 0
    message: str = ""
    decisions: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ProjectClaim:
    """A backend's answer to a :class:`~admm_lip.solvers.problem.ProjectProblem`.

    ``warm`` is the backend's own restart data; hand it back to the next solve nearby.
    """

    status: Status
    weights: Weights | None
    lip_sq: float = float("nan")
    iterations: int = 0
    message: str = ""
    warm: Any = None


@dataclass(frozen=True, eq=False)
class CertifySolution:
    """Multipliers and the bound recomputed from them.

    Attributes:
        lip: the bound implied by ``multiplier`` (``lmi.implied_bound``), ``inf`` if it proves none.
        lower_lip: dual lower bound on the LipSDP optimum, 0 where there is none.
        claimed_lip: what the backend said, for comparison only.
        decisions: what was met on the way, and what was done about it, in words.
        phases: seconds by kind of work; they add up to the whole call.
    """

    status: Status
    backend: str
    multiplier: Multiplier
    lip: float
    lower_lip: float
    claimed_lip: float
    iterations: int
    seconds: float
    message: str = ""
    decisions: tuple[str, ...] = ()
    phases: Mapping[str, float] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """Relative gap ``(lip - lower_lip) / lip``: how much a better solver could gain."""
        return (self.lip - self.lower_lip) / self.lip if self.lip > 0 else 0.0

    def summary(self) -> str:
        """The result, what happened on the way, and where the time went: text for a person.

        Example:
            >>> done = CertifySolution(Status.OPTIMAL, "native", (), 2.0, 1.5, 2.0, 7, 0.1)
            >>> print(done.summary())
            native: lip 2, gap 2.5e-01 after 7 steps: solved to the requested accuracy
        """
        head = f"{self.backend}: lip {self.lip:.9g}, gap {self.gap:.1e} after {self.iterations} "
        return _summary(f"{head}steps: {self.status.value}", self.decisions, self.phases)


@dataclass(frozen=True, eq=False)
class ProjectSolution:
    """Projected weights and what was measured of them.

    Attributes:
        weights: feasible for the multiplier of the problem (``ball_norm <= 1``).
        lip_sq: the ``L^2`` for which they are feasible: ``bound^2``, or the penalised minimiser.
        distance: ``sqrt(sum_k ||W_k - V_k||_F^2)``.
        ball_norm: the measured spectral norm of the scaled matrix B (``lmi.Ball``); 1 where B is
            wide and was only shown to be within.
        objective: the problem's objective at ``weights``.
        phases: seconds by kind of work; they add up to the whole call.
    """

    status: Status
    backend: str
    weights: Weights
    lip_sq: float
    distance: float
    ball_norm: float
    objective: float
    iterations: int
    seconds: float
    message: str = ""
    warm: Any = None
    phases: Mapping[str, float] = field(default_factory=dict)

    def summary(self) -> str:
        """The result and where the time went: text for a person."""
        head = f"{self.backend}: distance {self.distance:.9g} after {self.iterations} iterations"
        return _summary(f"{head}: {self.status.value}", (), self.phases)


def _summary(head: str, decisions: tuple[str, ...], phases: Mapping[str, float]) -> str:
    """The lines of a summary, the longest phase first."""
    whole = sum(phases.values())
    parts = sorted(phases.items(), key=lambda part: -part[1])
    times = [
        f"  {value:9.3f} s  {value / whole:4.0%}  {name}" for name, value in parts if value > 0
    ]
    return "\n".join([head, *(f"  {line}" for line in decisions), *times])
