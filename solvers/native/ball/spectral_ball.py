"""Nearest weights inside the spectral ball of a fixed multiplier: the native projection.

For fixed T the LMI is ``||B(W)||_2 <= 1`` (``lmi.ball_tiles``).  ``coupling.py`` says how the
weights stand in B, ``splitting.py`` projects for a given L, ``penalised.py`` chooses L as well.
A single affine map needs nothing special: its B is ``W_0' / L``, and the splitting's cold start is
the clipped matrix.  The same holds for one hidden layer in a metric that B sees as uniform.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from ...config import SolverConfig
from ...problem import ProjectProblem
from ...solution import ProjectClaim, Status
from .coupling import Coupling, couple
from .penalised import search
from .splitting import Outcome, Rule, WarmBall, first_state, is_inside, split

MAX_ITERATIONS = 20_000
# How far inside the ball a centre is looked for where held entries exclude the origin.
MARGINS = (1e-2, 1e-4, 1e-6)


def project(problem: ProjectProblem, config: SolverConfig, warm: Any = None) -> ProjectClaim:
    """Project ``problem.anchor``; the tensors decide the device.

    The claim is ``OPTIMAL`` where a dual bound proves the objective, or the weights, to
    ``config.tol`` relatively; ``LIMIT`` keeps the best feasible point.  ``INFEASIBLE`` is said
    only with a proof that the held entries leave no point.

    Example:
        >>> import torch
        >>> from admm_lip.solvers.config import SolverConfig
        >>> from admm_lip.solvers.problem import ProjectProblem
        >>> anchor = (torch.diag(torch.tensor([3.0, 0.5], dtype=torch.float64)),)
        >>> claim = project(ProjectProblem(anchor, (), (), bound=1.0), SolverConfig())
        >>> claim.weights[0].diagonal().tolist()
        [1.0, 0.5]
    """
    limit = float("inf") if config.time_limit is None else config.time_limit
    rule = Rule(config.tol, config.max_iterations or MAX_ITERATIONS, time.perf_counter() + limit)
    start = warm if isinstance(warm, WarmBall) else None
    if problem.bound is not None:
        return _enforced(problem, problem.bound**2, rule, start)
    assert problem.mu is not None  # ProjectProblem has exactly one of the two
    outcome, coupling, lip_sq = search(problem, problem.mu / problem.rho, rule, start)
    return _claim(outcome, coupling, lip_sq, rule)


def _enforced(
    problem: ProjectProblem, lip_sq: float, rule: Rule, warm: WarmBall | None
) -> ProjectClaim:
    """The hard form."""
    coupling = couple(problem, lip_sq)
    start = warm.state(coupling) if warm else None
    b = coupling.spread(coupling.anchor)
    if is_inside(b, start.basis if start else None):
        penalty = start.penalty if start else 1.0
        kept = WarmBall(b, torch.zeros_like(b), penalty, lip_sq)
        weights = coupling.weights(coupling.anchor)
        return ProjectClaim(Status.OPTIMAL, weights, lip_sq, 0, "anchor is feasible", kept)
    outcome = split(coupling, start or first_state(coupling), rule, coupling.centre())
    if coupling.held is not None and outcome.norm > 1.0 and not outcome.impossible:
        outcome = _about_another_centre(coupling, outcome, rule)
    return _claim(outcome, coupling, lip_sq, rule)


def _about_another_centre(coupling: Coupling, outcome: Outcome, rule: Rule) -> Outcome:
    """Where held entries with zeros elsewhere lie outside the ball: find a centre inside it."""
    for margin in MARGINS:
        tight = coupling.rescaled(1.0 / (1.0 - margin), inputs_only=False)
        loose = replace(rule, tol=max(rule.tol, 1e-3), max_iterations=500)
        found = split(tight, outcome.state, loose, tight.centre())
        if found.norm * (1.0 - margin) < 1.0:
            return split(coupling, found.state, rule, found.values)
    return outcome


def _claim(outcome: Outcome, coupling: Coupling, lip_sq: float, rule: Rule) -> ProjectClaim:
    """Status, weights and restart data of an outcome."""
    state = outcome.state
    warm = WarmBall(state.inside, state.excess, state.penalty, lip_sq, state.basis)
    if outcome.impossible:
        message = "the held entries alone exceed the ball: no free weight can repair it"
        return ProjectClaim(Status.INFEASIBLE, None, lip_sq, outcome.iterations, message)
    if not outcome.norm <= 1.0:
        message = f"no feasible point found: the norm of B is {outcome.norm!r}"
        return ProjectClaim(Status.FAILED, None, lip_sq, outcome.iterations, message)
    cut = outcome.iterations >= rule.max_iterations or rule.expired
    stopped = Status.LIMIT if cut else Status.INACCURATE
    status = Status.OPTIMAL if outcome.converged else stopped
    message = f"duality gap {outcome.gap:.2e} at distance {outcome.distance:.6e}"
    weights = coupling.weights(outcome.values)
    return ProjectClaim(status, weights, lip_sq, outcome.iterations, message, warm)
