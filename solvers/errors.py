"""What can go wrong in a solve, each with the advice a caller needs."""

from __future__ import annotations

from typing import Any


class SolverError(Exception):
    """Base of every error raised by ``admm_lip.solvers``."""


class ProblemError(SolverError, ValueError):
    """The problem itself is malformed: a shape, a sign, a value that is not finite."""


class UnknownBackend(SolverError, ValueError):
    """No backend has that name; lists those that exist, the near miss first."""


class SolverUnavailable(SolverError):
    """The named backend cannot run here (not installed, or no licence); says why and the remedy."""


class SolveFailed(SolverError):
    """No backend in the chain produced a usable answer; lists each attempt and its reason.

    Attributes:
        problem: what was asked, for ``save_problem`` and a report.
    """

    def __init__(self, message: str, problem: Any = None) -> None:
        super().__init__(message)
        self.problem = problem
