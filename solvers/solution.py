"""What a backend claims (:class:`CertifyClaim`, :class:`ProjectClaim`) and what was then measured.

A backend returns a claim; ``solve.py`` measures it and returns a solution.  Nothing downstream
reads a claim's numbers except to show them beside the measured ones.
"""

from __future__ import annotations

from dataclasses import dataclass
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

    ``lower_lip_sq`` is the value of a dual feasible point (0 where the backend has none).
    """

    status: Status
    multiplier: Multiplier | None
    lip_sq: float = float("nan")
    lower_lip_sq: float = 0.0
    iterations: int = 0
    message: str = ""


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

    @property
    def gap(self) -> float:
        """Relative gap ``(lip - lower_lip) / lip``: how much a better solver could gain."""
        return (self.lip - self.lower_lip) / self.lip if self.lip > 0 else 0.0


@dataclass(frozen=True, eq=False)
class ProjectSolution:
    """Projected weights and what was measured of them.

    Attributes:
        weights: feasible for the multiplier of the problem (``ball_norm <= 1``).
        lip_sq: the ``L^2`` for which they are feasible: ``bound^2``, or the penalised minimiser.
        distance: ``sqrt(sum_k ||W_k - V_k||_F^2)``.
        ball_norm: the measured spectral norm of the scaled matrix B (``lmi.ball_norm``).
        objective: the problem's objective at ``weights``.
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
