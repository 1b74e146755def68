"""The backend under test, what it is held to, and the way from oracles to problems and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from oracles import (
    Net,
)
from torch import Tensor

from admm_lip.solvers import (
    CertifyProblem,
    CertifySolution,
    ProjectProblem,
    ProjectSolution,
    Slopes,
    SolverConfig,
    solve_certify,
    solve_project,
)

MUST_RUN = {"native", "clarabel", "scs"}


@dataclass(frozen=True)
class Tolerance:
    """What a backend is held to at its ``tol``.

    Attributes:
        tol: asked of it.
        lip: relative excess of a certified bound over the optimum, and of the gap it proves.
        weights: distance of a projection from the true one, relative to the anchor's norm.
        kkt: relative residual of the stationarity of a projection.
    """

    tol: float
    lip: float
    weights: float
    kkt: float


TOLERANCES = {
    "native": Tolerance(1e-8, 1e-7, 1e-5, 1e-3),
    "mosek": Tolerance(1e-8, 1e-6, 1e-4, 1e-3),
    "clarabel": Tolerance(1e-8, 1e-6, 1e-4, 1e-3),
    "scs": Tolerance(1e-7, 1e-5, 1e-5, 1e-3),
}


@dataclass(frozen=True)
class Judge:
    """A backend under test, with no fallback, and its tolerance."""

    name: str
    tolerance: Tolerance
    device: str = "cpu"

    def config(self, **changes: Any) -> SolverConfig:
        own = SolverConfig(self.name, tol=self.tolerance.tol, fallback=(), device=self.device)
        return replace(own, **changes)

    def certify(self, net: Net) -> CertifySolution:
        return solve_certify(certify_problem(net), self.config())

    def project(self, problem: ProjectProblem) -> ProjectSolution:
        return solve_project(problem, self.config())


def tensors(arrays: Any) -> tuple[Tensor, ...]:
    return tuple(torch.as_tensor(np.asarray(a), dtype=torch.float64) for a in arrays)


def arrays(parts: tuple[Tensor, ...]) -> list[NDArray[np.float64]]:
    return [p.numpy() for p in parts]


def slopes_of(net: Net) -> tuple[Slopes, ...]:
    return tuple(Slopes(*tensors(pair)) for pair in net.ranges)


def certify_problem(net: Net) -> CertifyProblem:
    return CertifyProblem(tensors(net.weights), slopes_of(net))


def project_problem(net: Net, seed: int, structure: Any = (), **mode: float) -> ProjectProblem:
    rng = np.random.default_rng(seed)
    multiplier = [rng.uniform(0.4, 1.6, len(w)) for w in net.weights[:-1]]
    anchor = tensors(2.0 * w for w in net.weights)
    return ProjectProblem(anchor, slopes_of(net), tensors(multiplier), structure=structure, **mode)


def distance(a: Any, b: Any) -> float:
    return float(sum(((x - y) ** 2).sum() for x, y in zip(a, b, strict=True)) ** 0.5)


def size(a: Any) -> float:
    return float(sum((x**2).sum() for x in a) ** 0.5)
