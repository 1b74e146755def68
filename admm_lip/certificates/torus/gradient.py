"""First derivatives alone, for the cost of the pass forward: of ``<G, P>`` and of ``log det A``.

``barrier.py`` takes back what the future says of each place, ``lam``; first derivatives need of it
what an alias says of itself.  They are affine in the lam at the output.  With 0 there they are
those of ``log det A``; with ``G >= 0`` those of ``-<G, P>`` are added, P the covariance at the
output.  NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...networks.layers import Array
from .barrier import Forward, Passed
from .covariance import adjoint
from .problem import Passing, Problem
from .stages import Activation, Linear


@dataclass(frozen=True, eq=False)
class Gradients:
    """By relative changes of the multipliers.

    Attributes:
        power: of ``-<G, P>``.
        slack: of ``log det A``.
    """

    power: Array
    slack: Array


def gradients(problem: Problem, passing: Passing, weighing: Sequence[Any]) -> Gradients:
    """Both gradients; ``weighing`` is G for every part's ends, ``(frequencies, rows, rows)``."""
    zero = [np.zeros_like(g) for g in weighing]
    lams = [[g[:, None], o[:, None]] for g, o in zip(weighing, zero, strict=True)]
    behind: list[list[Array]] = [[], []]
    if passing.head is not None:
        behind, (inner, plain) = _back(passing.head, np.ones(1), lams[0], to_the_front=True)
        ports = [part.ports for part in problem.parts]
        lams = [
            [(adjoint(port) @ one[0, 0] @ port)[:, None] for one in (inner, plain)]
            for port in ports
        ]
    found = [
        _back(passed, part.weights, own)[0]
        for part, passed, own in zip(problem.parts, passing.parts, lams, strict=True)
    ]
    whole, slack = (
        np.concatenate(
            [*(sum(rows) for rows in zip(*(f[i] for f in found), strict=True)), *behind[i]]
        )
        for i in (0, 1)
    )
    return Gradients(whole - slack, slack)


def _back(
    passed: Forward, weights: Array, lams: Sequence[Any], to_the_front: bool = False
) -> tuple[list[list[Array]], list[Any]]:
    """For every lam at the end, derivatives by activation, and lam where the pass ends."""
    lams = [_through_linear(passed.stages[-1].linear, lam) for lam in lams]
    found: list[list[Array]] = [[] for _ in lams]
    for k in reversed(range(len(passed.passed))):
        act, own = passed.stages[k].activation, passed.passed[k]
        assert act is not None
        x, phi = _signals(own, act)
        for i, lam in enumerate(lams):
            found[i].insert(0, _slopes(own, act, x, phi, lam, weights))
            if k > 0 or to_the_front:
                moved = phi @ lam @ adjoint(phi)
                moved[..., act.rows[:, None], act.rows] += own.root[:, None] * own.s * own.root
                lams[i] = _through_linear(passed.stages[k].linear, moved)
    return found, lams


def _signals(own: Passed, act: Activation) -> tuple[Any, Any]:
    """``X`` and ``Phi^H`` of ``barrier.py``."""
    x, width = own.s @ adjoint(own.h), own.p.shape[2]
    phi = np.zeros_like(own.p)
    phi[..., range(width), range(width)] = act.least
    phi[..., act.rows, :] += own.root[:, None] * x
    return x, phi


def _slopes(own: Passed, act: Activation, x: Any, phi: Any, lam: Any, weights: Array) -> Array:
    """``2 Re Z_vu`` of every channel, summed over frequencies and aliases."""
    half = lam @ adjoint(x)
    n_v = phi @ half
    n_v[..., act.rows, :] += own.root[:, None] * own.s
    v_v = np.einsum("faij,faji->fai", x, half) + np.einsum("fajj->faj", own.s)
    z_v = np.einsum("faij,faji->fai", own.seen, n_v)
    return np.asarray(2.0 * np.einsum("f,faj->j", weights, (v_v - z_v).real))


def _through_linear(linear: Linear | None, lam: Any) -> Any:
    """``W_a^H lam W_a`` of every alias."""
    if linear is None:
        return lam
    each = np.repeat(lam, linear.fold, axis=1) if linear.fold > 1 else lam
    return adjoint(linear.w) @ each @ linear.w
