"""What no multipliers of a torus chain and its head can go below, from signals of the network.

The lower bound is weak duality.  For every covariance Z of the network's signals with
``E v_i (z_i - v_i) >= 0`` for all i, no multiplier proves less than ``E |y|^2 / E |x|^2``.  Those
that fall out of a method of minimisation miss that by what its gradient says.  A signal that
passes activation i halfway between its slopes, and all others at one end of theirs, has
``E v_i (z_i - v_i) = E z_i^2 / 4`` and 0 for the others; for every i in want, one that is loud at
its place is added.

Sums of covariances are covariances.  Methods that step from side to side of a valley miss now one
thing, now the opposite: the best sum of theirs is a small linear program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from ...networks.layers import Array

# Rounding, far above that of sums of thousands of terms.
_ROUNDING = 1e-9
# What a covariance may leave for others counts up to so much, and steps of the program; the bound
# is computed anew, whatever the program finds.
_MOST_LEFT, _MOST_STEPS = 1e3, 20_000


class Signals(NamedTuple):
    """A covariance Z of the network's signals, by its figures.

    Attributes:
        missing: ``2 E v_i (v_i - z_i)``, which is to be no more than 0.
        power: ``E |y|^2``.
        inputs: ``E |x|^2``.
    """

    missing: Array
    power: float
    inputs: float


def lower_bound(signals: Signals, loudest: Array) -> float:
    """The lower bound in ``L^2``.

    Args:
        signals: that are completed where they miss something.
        loudest: ``E z_i^2`` of the signal that is added for i (``Problem.loudest``).
    """
    added = (np.maximum(signals.missing, 0.0) / (0.5 * loudest)).sum()
    return float((1.0 - _ROUNDING) * signals.power / (signals.inputs + added))


def best_sum(found: Sequence[Signals], loudest: Array) -> float:
    """The best lower bound of sums of covariances, 0 where the program is not solved.

    Args:
        found: at least one.
        loudest: as :func:`lower_bound` takes them.
    """
    found = [one for one in found if one.inputs > 0.0]
    missing = np.array([one.missing / one.inputs for one in found]).T
    power = np.array([one.power / one.inputs for one in found])
    # Of every covariance what it takes by itself of the input's power, with all that is added: in
    # deep networks that is more by many orders, and no program of such numbers is solved.
    wanted = missing / (0.5 * loudest)[:, None]
    alone = 1.0 + np.maximum(wanted, 0.0).sum(axis=0)
    wanted, count = np.maximum(wanted / alone, -_MOST_LEFT), len(loudest)
    best = power / alone
    solved = linprog(
        -np.concatenate([best / best.max(), np.zeros(count)]),
        A_ub=np.hstack([wanted, -np.eye(count)]),
        b_ub=np.zeros(count),
        A_eq=np.concatenate([1.0 / alone, np.ones(count)])[None],
        b_eq=[1.0],
        method="highs",
        options={"maxiter": _MOST_STEPS},
    )
    if solved.x is None:
        return 0.0
    shares = np.maximum(solved.x[: len(power)], 0.0) / alone
    summed = Signals(missing @ shares, float(power @ shares), float(shares.sum()))
    return lower_bound(summed, loudest) if summed.inputs > 0.0 else 0.0
