"""Matrix problems of the Lipschitz LMI, and the backends that solve them.

Two problems (``problem.py``), one matrix inequality (``lmi.py``), a table of backends
(``registry.py``), and two functions that solve and measure: :func:`solve_certify` and
:func:`solve_project`.
"""

from .config import SolverConfig
from .errors import ProblemError, SolveFailed, SolverError, SolverUnavailable, UnknownBackend
from .problem import CertifyProblem, ProjectProblem, Slopes, Structure, unit_slopes
from .registry import Availability, available, doctor
from .solution import CertifySolution, ProjectSolution, Status

__all__ = [
    "Availability",
    "CertifyProblem",
    "CertifySolution",
    "ProblemError",
    "ProjectProblem",
    "ProjectSolution",
    "Slopes",
    "SolveFailed",
    "SolverConfig",
    "SolverError",
    "SolverUnavailable",
    "Status",
    "Structure",
    "UnknownBackend",
    "available",
    "doctor",
    "unit_slopes",
]
