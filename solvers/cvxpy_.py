"""MOSEK, Clarabel and SCS through cvxpy: the only file that imports cvxpy or mosek.

Both are imported at the first use, never at import.  Everything that differs between the three
solvers is a row of ``_DIALECTS`` or an entry of ``_STATUSES``; the two models are stated once, from
the sparse maps of ``affine.py``.  What a solver says is a claim: ``solve.py`` measures it.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..extras import extra, remedy
from .affine import ProjectMap, certify_map, project_map
from .backend import Availability
from .config import SolverConfig
from .errors import SolverUnavailable
from .native.lmi.block_cholesky import band_of
from .native.lmi.dual_repair import reachable_band, repaired_value
from .phases import phase
from .problem import CertifyProblem, Multiplier, ProjectProblem
from .solution import CertifyClaim, ProjectClaim, Status

# MOSEK's response codes for licence trouble: missing file 1008, expired 1001, server 1014, 1021 ...
_LICENCE_CODES = range(1000, 1029)

# Weights of the closed-form dual point beside the solver's, whose trace on the inputs is 1.
_DUAL_SHIFTS = (1e-9, 1e-7, 1e-5, 1e-3)

_STATUSES: Mapping[str, Status] = MappingProxyType(
    {
        "optimal": Status.OPTIMAL,
        "optimal_inaccurate": Status.INACCURATE,
        "user_limit": Status.LIMIT,
        "infeasible": Status.INFEASIBLE,
        "infeasible_inaccurate": Status.INFEASIBLE,
        # Neither problem is unbounded below, so a solver that says so has broken down.
        "unbounded": Status.FAILED,
        "unbounded_inaccurate": Status.FAILED,
        "infeasible_or_unbounded": Status.FAILED,
        "solver_error": Status.FAILED,
    }
)


@dataclass(frozen=True)
class Dialect:
    """How one solver is addressed through cvxpy.

    Attributes:
        solver: cvxpy's name of it.
        package: the module that has to be installed.
        tol: its options that take :attr:`SolverConfig.tol`.
        time_limit: its option for seconds.
        max_iterations: its option for iterations.
        extra: options it always gets.
        share: what part of tol it is given.
        interior: whether tol is a duality gap; the distance to a nearest point is its square root.
        nested: the keyword that its numeric options are passed in, or ``None``.
        statuses: what it means by some of cvxpy's statuses, where that differs from the table.
    """

    solver: str
    package: str
    tol: tuple[str, ...]
    time_limit: str
    max_iterations: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0
    interior: bool = True
    nested: str | None = None
    statuses: Mapping[str, Status] = field(default_factory=dict)

    def options(self, config: SolverConfig, strongly_convex: bool = False) -> dict[str, Any]:
        """The keyword arguments of ``cvxpy.Problem.solve`` for a configuration.

        Where the objective is a squared distance d^2 / 2, a gap of ``tol^2 / 2`` puts the point
        within ``tol`` of the nearest one; below 1e-9 the solvers stall.
        """
        squared = strongly_convex and self.interior
        tol = min(config.tol, max(config.tol**2, 1e-9)) if squared else self.share * config.tol
        values: dict[str, Any] = dict.fromkeys(self.tol, tol)
        if config.time_limit is not None:
            values[self.time_limit] = config.time_limit
        if config.max_iterations is not None:
            values[self.max_iterations] = config.max_iterations
        passed = {self.nested: values} if self.nested else values
        return {"solver": self.solver, **passed, **self.extra}


_DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        "mosek": Dialect(
            solver="MOSEK",
            package="mosek",
            tol=(
                "MSK_DPAR_INTPNT_CO_TOL_REL_GAP",
                "MSK_DPAR_INTPNT_CO_TOL_PFEAS",
                "MSK_DPAR_INTPNT_CO_TOL_DFEAS",
            ),
            time_limit="MSK_DPAR_OPTIMIZER_MAX_TIME",
            max_iterations="MSK_IPAR_INTPNT_MAX_ITERATIONS",
            extra={"accept_unknown": True},
            nested="mosek_params",
        ),
        "clarabel": Dialect(
            solver="CLARABEL",
            package="clarabel",
            tol=("tol_gap_abs", "tol_gap_rel", "tol_feas"),
            time_limit="time_limit",
            max_iterations="max_iter",
            extra={"accept_unknown": True},
        ),
        "scs": Dialect(
            solver="SCS",
            package="scs",
            tol=("eps_abs", "eps_rel"),
            time_limit="time_limit_secs",
            max_iterations="max_iters",
            # Its residuals are the LMI's; the bound that its T implies is off by 20 times that.
            share=0.1,
            interior=False,
            # SCS calls an answer inaccurate only when a limit stopped it.
            statuses=dict.fromkeys(
                ("optimal_inaccurate", "infeasible_inaccurate", "unbounded_inaccurate"),
                Status.LIMIT,
            ),
        ),
    }
)


@dataclass(frozen=True, eq=False)
class _ProjectModel:
    """A projection as cvxpy holds it: all of it is constant but the anchor."""

    maps: ProjectMap
    problem: Any
    y: Any
    lip_sq: Any
    linear: Any
    held: Any


class CvxpyBackend:
    """One of the solvers behind cvxpy, for both problems.

    Args:
        name: ``"mosek"``, ``"clarabel"`` or ``"scs"``.

    Projections that differ in their anchor alone share a compiled model, which is most of the cost
    of a small one.  Every solve starts cold, so that a result depends on its arguments only.
    """

    _MODELS_KEPT = 4

    def __init__(self, name: str) -> None:
        self.name = name
        self._dialect = _DIALECTS[name]
        self._models: OrderedDict[bytes, _ProjectModel] = OrderedDict()

    def availability(self) -> Availability:
        """Whether cvxpy and the solver are installed, and for MOSEK whether it has a licence."""
        own = self._dialect.package
        missing = [package for package in ("cvxpy", own) if find_spec(package) is None]
        if missing:
            return Availability(False, f"{missing[0]} is not installed; {remedy(own)}")
        if self._dialect.package == "mosek":
            return mosek_licence()
        return Availability(True, "through cvxpy")

    def certify(
        self, problem: CertifyProblem, config: SolverConfig, warm: Multiplier | None = None
    ) -> CertifyClaim:
        """Minimise ``L^2`` over the multipliers; ``warm`` is of no use to these solvers."""
        cp = _cvxpy()
        maps = certify_map(problem)
        x = cp.Variable(maps.maps.shape[1], nonneg=True)
        lmi = cp.reshape(maps.maps @ x - maps.constant, (maps.order, maps.order), order="F")
        holds = lmi >> 0
        model = cp.Problem(cp.Minimize(x[0]), [holds])
        status, message = self._solve(model, self._dialect.options(config))
        if not status.usable or x.value is None:
            return CertifyClaim(status, None, message=message)
        return CertifyClaim(
            status,
            maps.multiplier(x.value[1:], problem.weights[0]),
            lip_sq=float(x.value[0]),
            lower_lip_sq=_lower_bound(problem, holds.dual_value),
            iterations=_iterations(model),
            message=message,
        )

    def project(
        self, problem: ProjectProblem, config: SolverConfig, warm: Any = None
    ) -> ProjectClaim:
        """Nearest weights under the LMI; ``warm`` is of no use to these solvers."""
        model = self._model(problem)
        anchor = model.maps.coordinates(problem.anchor)
        model.linear.value = anchor
        if model.held is not None:
            model.held.value = anchor[model.maps.held]
        options = self._dialect.options(config, strongly_convex=True)
        status, message = self._solve(model.problem, options)
        if not status.usable or model.y.value is None:
            return ProjectClaim(status, None, message=message)
        lip_sq = model.lip_sq if problem.mu is None else model.lip_sq.value
        return ProjectClaim(
            status,
            model.maps.weights(model.y.value, problem.anchor),
            lip_sq=float(lip_sq),
            iterations=_iterations(model.problem),
            message=message,
        )

    @phase("set-up")
    def _model(self, problem: ProjectProblem) -> _ProjectModel:
        """The compiled model of ``problem``, kept for the next anchor."""
        key = _model_key(problem)
        if key not in self._models:
            self._models[key] = _project_model(problem)
        self._models.move_to_end(key)
        while len(self._models) > self._MODELS_KEPT:
            self._models.popitem(last=False)
        return self._models[key]

    @phase("solver")
    def _solve(self, model: Any, options: Mapping[str, Any]) -> tuple[Status, str]:
        """Run the solver; its errors and warnings become a status and a message."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model.solve(**options, warm_start=False)
            except _solver_errors() as error:
                code = getattr(error, "errno", None)
                if code is not None and int(code) in _LICENCE_CODES:
                    raise SolverUnavailable(_licence_reason(error)) from error
                return Status.FAILED, f"{type(error).__name__}: {error}".splitlines()[0]
        named = self._dialect.statuses.get(model.status)
        return named or _STATUSES.get(model.status, Status.FAILED), f"cvxpy: {model.status}"


def _lower_bound(problem: CertifyProblem, dual: Any) -> float:
    """A lower bound on the optimum from the solver's dual matrix, repaired to feasibility.

    The repair takes a positive definite matrix; a little of one known in closed form makes it so.
    Whatever is repaired is a lower bound, so the best one counts.
    """
    if dual is None or not np.isfinite(dual).all():
        return 0.0
    z = torch.as_tensor(0.5 * (dual + dual.T)).to(problem.weights[0])
    band, inner = band_of(z, problem.widths[:-1]), reachable_band(problem)
    return max(repaired_value(problem, band.plus(shift, inner)) for shift in _DUAL_SHIFTS)


def _project_model(problem: ProjectProblem) -> _ProjectModel:
    """State the projection to cvxpy, its anchor a parameter."""
    cp = _cvxpy()
    maps = project_map(problem)
    y = cp.Variable(len(maps.root))
    linear = cp.Parameter(len(maps.root))
    objective = 0.5 * cp.sum_squares(y) - linear @ y
    if problem.mu is None:
        assert problem.bound is not None
        lip_sq: Any = problem.bound**2
    else:
        lip_sq = cp.Variable(nonneg=True)
        objective = objective + problem.mu / problem.rho * lip_sq
    lmi = lip_sq * maps.inputs + maps.others + maps.maps @ y
    constraints = [cp.reshape(lmi, (maps.order, maps.order), order="F") >> 0]
    held = None
    if maps.held.any():
        held = cp.Parameter(int(maps.held.sum()))
        constraints.append(y[np.flatnonzero(maps.held)] == held)
    model = cp.Problem(cp.Minimize(objective), constraints)
    return _ProjectModel(maps, model, y, lip_sq, linear, held)


def _model_key(problem: ProjectProblem) -> bytes:
    """Digest of everything in ``problem`` but the values of its anchor."""
    digest = hashlib.sha256(repr((problem.widths, problem.bound, problem.mu, problem.rho)).encode())
    tensors: list[Tensor | None] = [*problem.multiplier]
    tensors += [part for s in problem.slopes for part in s]
    for entry in problem.structure:
        tensors += [entry.metric, entry.held, entry.ties]
    for tensor in tensors:
        digest.update(b"none" if tensor is None else tensor.detach().cpu().numpy().tobytes())
        digest.update(b"|")
    return digest.digest()


def _cvxpy() -> Any:
    """The module, imported at the first use."""
    with extra():
        import cvxpy
    return cvxpy


def _iterations(model: Any) -> int:
    """Iterations of the last solve, 0 where the solver does not say."""
    return int(getattr(model.solver_stats, "num_iters", None) or 0)


def _solver_errors() -> tuple[type[Exception], ...]:
    """What a solve may raise: cvxpy's error, and MOSEK's, which is no subclass of it."""
    error: type[Exception] = _cvxpy().error.SolverError
    if find_spec("mosek") is None:
        return (error,)
    import mosek

    return (error, mosek.Error)


@cache
def mosek_licence() -> Availability:
    """Whether MOSEK's conic optimiser can be checked out: asked once, at the first use."""
    try:
        import mosek
    except (ImportError, OSError) as error:
        return Availability(False, f"installed, but does not load: {error}")
    try:
        with mosek.Env() as env:
            env.checkoutlicense(mosek.feature.pton)
    except mosek.Error as error:
        return Availability(False, _licence_reason(error))
    return Availability(True, "through cvxpy, licensed")


def _licence_reason(error: Any) -> str:
    """Code, place searched and remedy of a licence error, on one line."""
    code = int(error.errno)
    name = str(error.errno).rpartition(".")[2]
    searched = os.environ.get("MOSEKLM_LICENSE_FILE") or str(Path.home() / "mosek" / "mosek.lic")
    what = "installed, but no licence" if code in _LICENCE_CODES else "installed, but not usable"
    return (
        f"{what}: MOSEK error {code} ({name}); looked for the licence at {searched}; put a licence "
        "file there, or set MOSEKLM_LICENSE_FILE to its path (or port@host) before starting"
    )
