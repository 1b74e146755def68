"""Matrix problems of the Lipschitz LMI, and the backends that solve them.

Two problems (``problem.py``), one matrix inequality (``lmi.py``), a table of backends
(``registry.py``), and two functions that solve and measure: :func:`solve_certify` and
:func:`solve_project`.
"""

from .backend import Availability
from .config import SolverConfig
from .errors import ProblemError, SolveFailed, SolverError, SolverUnavailable, UnknownBackend
from .native.splitting import WarmBall
from .problem import CertifyProblem, ProjectProblem, Slopes, Structure, unit_slopes
from .registry import available, doctor
from .solution import CertifySolution, ProjectSolution, Status
from .solve import Warm, solve_certify, solve_project

# What a projection may hand from one solve to the next: plain data, safe to store and restore.
RESTART_TYPES = (Warm, WarmBall)

__all__ = [
    "RESTART_TYPES",
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
    "solve_certify",
    "solve_project",
    "unit_slopes",
]
