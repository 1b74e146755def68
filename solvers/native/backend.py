"""The native backend: structured algorithms on float64 tensors, on the CPU or a GPU."""

from __future__ import annotations

from typing import Any

import torch

from ..backend import Availability
from ..config import SolverConfig
from ..problem import CertifyProblem, Multiplier, ProjectProblem
from ..solution import CertifyClaim, ProjectClaim, Status
from .ball import spectral_ball
from .interior import interior_point


class NativeBackend:
    """Interior point for the multipliers, operator splitting for the projection."""

    name = "native"

    def availability(self) -> Availability:
        """Always usable: it needs nothing beyond torch."""
        return Availability(True, "structured, float64, no licence")

    def certify(
        self, problem: CertifyProblem, config: SolverConfig, warm: Multiplier | None = None
    ) -> CertifyClaim:
        """Minimise ``L^2`` over the multipliers by a structured primal-dual interior point."""
        try:
            return interior_point.certify(problem, config, warm)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            return CertifyClaim(Status.FAILED, None, message=f"factorisation failed: {error}")

    def project(
        self, problem: ProjectProblem, config: SolverConfig, warm: Any = None
    ) -> ProjectClaim:
        """Nearest weights in the spectral-norm ball that the multiplier defines."""
        try:
            return spectral_ball.project(problem, config, warm)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            return ProjectClaim(Status.FAILED, None, message=f"factorisation failed: {error}")
