"""What a backend is: the interface that each one implements, and that ``solve.py`` calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from .config import SolverConfig
from .problem import CertifyProblem, Multiplier, ProjectProblem
from .solution import CertifyClaim, ProjectClaim


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here, and why (not): one line for a person."""

    usable: bool
    reason: str


class Backend(Protocol):
    """One algorithm for both semidefinite problems.

    Backends get problems that are already reduced and scaled (``reduction.py``), never raise for
    numerical trouble (they return a claim with a status), and are never trusted.
    """

    name: str

    def availability(self) -> Availability:
        """Whether this backend can run here; cheap after the first call."""
        ...

    def certify(
        self, problem: CertifyProblem, config: SolverConfig, warm: Multiplier | None
    ) -> CertifyClaim:
        """Minimise ``L^2`` over the multipliers."""
        ...

    def project(self, problem: ProjectProblem, config: SolverConfig, warm: Any) -> ProjectClaim:
        """Project the anchor onto the weights that the multiplier certifies."""
        ...
