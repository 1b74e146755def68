"""What can go wrong in a solve, each with the advice a caller needs."""


class SolverError(Exception):
    """Base of every error raised by ``admm_lip.solvers``."""


class ProblemError(SolverError, ValueError):
    """The problem itself is malformed: a shape, a sign, a value that is not finite."""


class UnknownBackend(SolverError, ValueError):
    """No backend has that name; lists those that exist, the near miss first."""


class SolverUnavailable(SolverError):
    """The named backend cannot run here (not installed, or no licence); says why and the remedy."""


class SolveFailed(SolverError):
    """No backend in the chain produced a usable answer; lists each attempt and its reason."""
