"""One round of ADMM: what follows the optimizer steps on loss and pull.

A round is as many optimizer steps as ``Terms.round_steps`` says; :class:`~.constraint.Constraint`
counts them.
"""

from __future__ import annotations

from dataclasses import replace

from .admm_state import RHO_RULES, AdmmState, Matrices, anchor, dual_step, relax, residuals
from .lipschitz_step import lipschitz_step, next_lip_sq
from .multiplier_step import MultiplierStep, RoundView, grown
from .terms import Terms


def next_round(
    weights: Matrices, state: AdmmState, terms: Terms, move: MultiplierStep, relative_lr: float
) -> AdmmState:
    """One round of ADMM, after its optimizer steps have led to ``weights``.

    Args:
        weights: W, float64.
        state: from the round before.
        terms: what is asked.
        move: the multiplier step.
        relative_lr: the optimizer's step size relative to that at the start.

    Raises:
        SolveFailed: when no backend could project.
    """
    config = terms.config
    # 1. Over-relaxation, and the point to be projected.
    relaxed = relax(weights, state.consensus, config.relaxation)
    point = anchor(relaxed, state.dual, state.rho)
    # 2. Lipschitz step: the consensus satisfies the bound again.
    solution = lipschitz_step(point, state, terms)
    # 3. Dual step.
    dual = dual_step(point, solution.weights, state.rho)
    # 4. What is left, and rho by it.
    measured = residuals(weights, solution.weights, state.consensus, dual, state.rho)
    target_sq = next_lip_sq(point, solution, state, terms)
    growth = target_sq / solution.lip_sq
    moved = replace(
        state,
        consensus=solution.weights,
        dual=dual,
        multiplier=grown(state.multiplier, growth, terms.scaled_layer(len(weights))),
        lip_sq=solution.lip_sq,
        target_sq=target_sq,
        rho=RHO_RULES[config.rho_rule](state.rho, measured),
        warm=solution.warm,
    )
    # 5. Multiplier step.
    moved = move(moved, RoundView(point, relative_lr, terms))
    row = {
        "lip": moved.lip,
        "ball_norm": solution.ball_norm,
        "primal_residual": measured.primal,
        "dual_residual": measured.dual,
        "relative_residual": measured.relative,
        "rho": state.rho,
        "status": solution.status.name,
        "backend": solution.backend,
        "iterations": solution.iterations,
    }
    return replace(moved, iteration=state.iteration + 1, steps=0, measured=row)
