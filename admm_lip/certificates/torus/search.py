"""Multipliers of a torus chain and its head, and what none can beat.

The interior point method of ``path.py`` finds them; of large networks with a head first derivatives
alone do (``descent.py``).  Without a head every frequency has an inequality of its own and few of
them bind: those of a coarse grid are solved, then with them those that fail, until the bound holds
at all.  Signals of some frequencies alone are signals: what few frequencies say is a lower bound
too.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ...networks.layers import Array
from ...solvers.deadline import Deadline
from ..claim_matrices import Matrices
from .descent import Descent
from .hermitian import quiet
from .path import Found, Path
from .problem import Problem
from .proof import NotProven
from .steps import TorusChain

# Order of the matrix inequality beyond which, with a head, first derivatives alone find
# multipliers, and the gap of L^2 that is enough then, at least.
_LARGE, _ROUGH = 30_000, 5e-2
# Points per side of the first grid, frequencies added at a time, and how often.
_COARSE, _MORE, _ROUNDS = 6, 12, 8


@quiet
def search(
    chain: TorusChain,
    head: Matrices | None,
    deadline: Deadline,
    tol: float = 1e-4,
    near: list[Array] | None = None,
) -> Found:
    """Multipliers per channel of the chain's activations, and per neuron of the head's.

    Args:
        chain: what stands on the torus.
        head: what follows.
        deadline: when to stop.
        tol: relative gap of ``L^2`` that is enough.
        near: multipliers that hold, to begin at.

    Raises:
        NotProven: where the scales of the layers under- or overflow.
    """
    try:
        return _searched(chain, head, deadline, tol, near)
    except np.linalg.LinAlgError:
        raise NotProven(
            "the scales of the layers under- or overflow on the way; divide each layer by a power "
            "of two near its norm, and multiply the last one by all of them"
        ) from None


def _searched(
    chain: TorusChain,
    head: Matrices | None,
    deadline: Deadline,
    tol: float,
    near: list[Array] | None,
) -> Found:
    whole = Problem(chain, head)
    safe = whole.start(alike=True)
    best = _at(whole, safe, Found(safe, math.inf, 0.0))
    if best.squared == 0.0:
        return best
    if head is not None and whole.dimension > _LARGE:
        found = Descent(whole, max(tol, _ROUGH), near).solve(deadline)
        return found if found.squared < best.squared else replace(best, lower=found.lower)
    frequencies = None if head is not None else whole.coarse(_COARSE)
    for _ in range(_ROUNDS):
        problem = whole if frequencies is None else whole.only(frequencies)
        found = Path(problem, tol / 2.0, near).solve(deadline)
        best = replace(best, lower=max(best.lower, found.lower))
        if frequencies is None:
            return found if found.squared < best.squared else best
        best = _towards(whole, best, safe, found.multiplier)
        failing = whole.failing(found.multiplier, found.squared, _MORE)
        new = np.union1d(frequencies, failing)
        if best.gap() <= tol or len(new) == len(frequencies) or not deadline.has_time():
            break
        frequencies = new
    return best


def _at(problem: Problem, t: list[Array], best: Found) -> Found:
    """The better of these multipliers and the best so far."""
    passing = problem.forward(t)
    squared = math.inf if passing is None else problem.squared(passing)
    return best if squared >= best.squared else replace(best, multiplier=t, squared=squared)


def _towards(whole: Problem, best: Found, safe: list[Array], t: list[Array]) -> Found:
    """From multipliers that hold at all frequencies towards those that hold at some.

    With s in place of the first factor the set is convex: what lies between is scaled by s too.
    """
    for share in (1.0, 1.0 - 1e-6, 1.0 - 1e-5, 1.0 - 1e-4, 1.0 - 1e-3, 0.99, 0.97, 0.9, 0.7, 0.4):
        between = [share * a + (1.0 - share) * b for a, b in zip(t, safe, strict=True)]
        found = _at(whole, between, best)
        if found is not best:
            return found
    return best
