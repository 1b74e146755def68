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
from .barrier import Forward, behind, block, real_product, turned
from .covariance import adjoint
from .problem import Passing, Problem
from .stages import Linear


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
    """Both gradients; G of every part's ends is N N^H, of N in ``weighing``."""
    ends, lams = [n[:, None] for n in weighing], [None for _ in weighing]
    behind_all: list[list[Array]] = [[], []]
    if passing.head is not None:
        behind_all[0], n = _power(passing.head, np.ones(1), ends[0])
        behind_all[1], lam = _slack(passing.head, np.ones(1), to_the_front=True)
        ports = [adjoint(part.ports)[:, None] for part in problem.parts]
        ends = [port @ n for port in ports]
        lams = [None if lam is None else port @ lam @ adjoint(port) for port in ports]
    found = [
        (_power(one, part.weights, n)[0], _slack(one, part.weights, lam)[0])
        for part, one, n, lam in zip(problem.parts, passing.parts, ends, lams, strict=True)
    ]
    return Gradients(
        *(
            np.concatenate([*map(sum, zip(*(f[i] for f in found), strict=True)), *behind_all[i]])
            for i in (0, 1)
        )
    )


def _power(passed: Forward, weights: Array, n: Any) -> tuple[list[Array], Any]:
    """``2 Re Z_vu`` of ``lam = N N^H`` behind, by activation, without S; and N in front."""
    n, found = _through(passed.stages[-1].linear, n), list[Array]()
    for k in reversed(range(len(passed.passed))):
        act, own = passed.stages[k].activation, passed.passed[k]
        assert act is not None
        v = own.x @ n
        found.insert(0, _summed(weights, real_product(turned(n, act, own) - v, v).sum(axis=3)))
        n = _through(passed.stages[k].linear, behind(n, act, own.root[:, None] * v))
    return found, n


def _through(linear: Linear | None, n: Any) -> Any:
    return n if linear is None else linear.back(n)


def _slack(
    passed: Forward, weights: Array, lam: Any = None, to_the_front: bool = False
) -> tuple[list[Array], Any]:
    """``2 Re Z_vu`` by activation, for lam behind (0 where not given); and lam in front."""
    lam, found = _around(passed.stages[-1].linear, lam), list[Array]()
    for k in reversed(range(len(passed.passed))):
        act, own = passed.stages[k].activation, passed.passed[k]
        assert act is not None
        inner, slope = own.s, 1.0 - _diagonal(own.s)
        moved = np.zeros((*own.s.shape[:2], *(2 * act.least.shape)), dtype=own.s.dtype)
        if lam is not None:
            half = lam @ adjoint(own.x)
            v_v = own.x @ half
            inner = inner + v_v
            slope = slope + _diagonal(turned(half, act, own)) - _diagonal(v_v)
        found.insert(0, _summed(weights, slope))
        if k == 0 and not to_the_front:
            return found, None
        if lam is not None and len(act.kept):
            low, kept = act.least[act.kept], act.kept
            moved[block(kept, kept)] = low[:, None] * lam[block(kept, kept)] * low
            side = low[:, None] * half[..., kept, :] * own.root
            moved[block(kept, act.rows)] += side
            moved[block(act.rows, kept)] += adjoint(side)
        moved[block(act.rows, act.rows)] += own.root[:, None] * inner * own.root
        lam = _around(passed.stages[k].linear, moved)
    return found, lam


def _around(linear: Linear | None, lam: Any) -> Any:
    """``W_a^H lam W_a`` of every alias."""
    if linear is None or lam is None:
        return lam
    each = np.repeat(lam, linear.fold, axis=1) if linear.fold > 1 else lam
    return adjoint(linear.w) @ each @ linear.w


def _diagonal(matrices: Any) -> Array:
    return np.asarray(np.einsum("fajj->faj", matrices).real)


def _summed(weights: Array, slopes: Array) -> Array:
    """Of every channel, over frequencies and aliases."""
    return np.asarray(2.0 * np.einsum("f,faj->j", weights, slopes))
