"""Matrix problems of the Lipschitz LMI, and the backends that solve them.

Two problems (``problem.py``), one matrix inequality (``lmi.py``), a table of backends
(``registry.py``), and two functions that solve and measure: :func:`solve_certify` and
:func:`solve_project`.  Names are loaded when they are first used: settings need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backend import Availability as Availability
    from .config import SolverConfig as SolverConfig
    from .errors import ProblemError as ProblemError
    from .errors import SolveFailed as SolveFailed
    from .errors import SolverError as SolverError
    from .errors import SolverUnavailable as SolverUnavailable
    from .errors import UnknownBackend as UnknownBackend
    from .problem import CertifyProblem as CertifyProblem
    from .problem import ProjectProblem as ProjectProblem
    from .problem import Slopes as Slopes
    from .problem import Structure as Structure
    from .problem import unit_slopes as unit_slopes
    from .problem_file import load_problem as load_problem
    from .problem_file import save_problem as save_problem
    from .registry import available as available
    from .registry import doctor as doctor
    from .registry import register_backend as register_backend
    from .side_by_side import solve_certify_all as solve_certify_all
    from .solution import CertifySolution as CertifySolution
    from .solution import ProjectSolution as ProjectSolution
    from .solution import Status as Status
    from .solve import RESTART_TYPES as RESTART_TYPES
    from .solve import solve_certify as solve_certify
    from .solve import solve_project as solve_project

# Public name -> the module that defines it.
_HOMES = {
    "Availability": "backend",
    "CertifyProblem": "problem",
    "CertifySolution": "solution",
    "ProblemError": "errors",
    "ProjectProblem": "problem",
    "ProjectSolution": "solution",
    "RESTART_TYPES": "solve",
    "Slopes": "problem",
    "SolveFailed": "errors",
    "SolverConfig": "config",
    "SolverError": "errors",
    "SolverUnavailable": "errors",
    "Status": "solution",
    "Structure": "problem",
    "UnknownBackend": "errors",
    "available": "registry",
    "doctor": "registry",
    "load_problem": "problem_file",
    "register_backend": "registry",
    "save_problem": "problem_file",
    "solve_certify": "solve",
    "solve_certify_all": "side_by_side",
    "solve_project": "solve",
    "unit_slopes": "problem",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
