"""The interior point of ``interior/interior_point.py`` for many small chains at once.

The steps are the same; what differs is due to small matrices:

* Z is kept as a dense matrix, so nothing is completed.
* The longest step is found by bisection: a Cholesky factor of such a matrix costs a tenth of its
  eigenvalues.
* Z starts as a multiple of ``S^{-1}``, not yet dual feasible.

A chain leaves the stack when its gap is proven, or when a step fails: that one is for the other
form, which has an answer to every trouble.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...phases import phase
from ..lmi.step_length import LENGTHS, ROOM, ROUGHLY, bisected, centring_share
from .batched import Array, Mask, cholesky, inverse, solve
from .chains import Stack, schur_complement

_MOST_STEPS = 60
# From this order on the first steps are taken in float32, to this gap.
_WORTH_ROUGH, _ROUGH = 100, 1e-3


class State(NamedTuple):
    """Chains on their way: their places, ``S(y) = K K'``, and Z."""

    place: NDArray[np.int64]
    stack: Stack
    y: Array
    slack: Array
    factor: Array
    z: Array

    def pick(self, wanted: Mask) -> State:
        """Some of them."""
        if wanted.all():
            return self
        place, stack, *arrays = self
        return State(place[wanted], stack.pick(wanted), *(a[wanted] for a in arrays))

    @staticmethod
    def joined(parts: Sequence[State]) -> State:
        """All of them."""
        if len(parts) == 1:
            return parts[0]
        places, stacks, *arrays = zip(*parts, strict=True)
        joined = (np.concatenate(a) for a in arrays)
        return State(np.concatenate(places), Stack.joined(stacks), *joined)


@dataclass(frozen=True, eq=False)
class Answers:
    """Per chain: y, Z, whether the gap was reached, and the steps taken."""

    y: Array
    z: Array
    solved: Mask
    steps: NDArray[np.int64]

    @staticmethod
    def unsolved(stack: Stack, y: Array) -> Answers:
        """Before the first step."""
        count, order = len(stack), stack.order
        z, steps = np.zeros((count, order, order)), np.zeros(count, np.int64)
        return Answers(y.copy(), z, np.zeros(count, bool), steps)


# From a stack and its Z to the proven lower bound on ``L^2`` of each chain.
Repair = Callable[[Stack, Array], Array]


def follow(stack: Stack, y: Array, tol: float, repair: Repair) -> Answers:
    """The optima of all chains, each to the relative gap ``tol``, from strictly feasible y.

    Of larger matrices the way to a rough gap is gone in float32, where a product takes half the
    time.  Nothing of it is believed: bound and lower bound are computed anew in float64.
    """
    found, every = Answers.unsolved(stack, y), np.arange(len(stack))
    with np.errstate(all="ignore"):  # what is not finite is left out
        if stack.order < _WORTH_ROUGH:
            return _run(_outset(stack, y, every), tol, repair, found)
        low, start = stack.astype(np.float32), y.astype(np.float32)
        rough = _run(_outset(low, start, every), max(tol, _ROUGH), repair, found)
        warm, begun = rough.solved.copy(), list[State]()
        if tol < _ROUGH:
            begun = _refined(stack, found, every[warm])
            warm = np.isin(every, [k for part in begun for k in part.place])
            found.solved[:] = False
        if not warm.all():
            begun.append(_outset(stack.pick(~warm), y[~warm], every[~warm]))
        return _run(State.joined(begun), tol, repair, found) if begun else found


def _refined(stack: Stack, found: Answers, place: NDArray[np.int64]) -> list[State]:
    """Chains solved in single precision in double, moved inside by as little as helps."""
    begun = list[State]()
    for room in ROOM:
        if len(place):
            left = np.isin(np.arange(len(stack)), place)
            begun.append(_begun(stack.pick(left), room * found.y[left], place, found.z[left]))
            place = place[np.isin(place, begun[-1].place, invert=True)]
    return begun


def _run(live: State, tol: float, repair: Repair, found: Answers) -> Answers:
    """Primal-dual steps until every chain is solved or has left."""
    for _ in range(_MOST_STEPS):
        live = _without_finished(live, tol, repair, found)
        if not len(live.place):
            break
        live = _stepped(live)
        found.steps[live.place] += 1
    return found


def _begun(stack: Stack, y: Array, place: NDArray[np.int64], z: Array | None = None) -> State:
    """The chains that are strictly feasible at y, and at Z."""
    slack = stack.slack(y)
    factor, sound = cholesky(slack)
    if z is not None:
        sound &= cholesky(z)[1]
    return State(place, stack, y, slack, factor, slack if z is None else z).pick(sound)


def _outset(stack: Stack, y: Array, place: NDArray[np.int64]) -> State:
    """Pairs to start from: Z is the multiple of ``S^{-1}`` whose inputs' trace is 1.

    That S Z is a multiple of I is worth more than Newton's steps to a dual feasible Z, which cost
    as much as what they save: a whole step makes Z feasible, and a shorter one its share of it.
    """
    live = _begun(stack, y, place)
    p, n = inverse(live.factor), stack.sizes[0]
    return live._replace(z=_symmetric(p) / p[:, :n, :n].trace(axis1=1, axis2=2)[:, None, None])


def _without_finished(live: State, tol: float, repair: Repair, found: Answers) -> State:
    """What is left once chains whose gap is proven have been noted."""
    rho = live.y[:, 0]
    near = _inner(live.slack, live.z) <= tol * rho
    if near.any():
        done = live.pick(near)
        near[near] = rho[near] - repair(done.stack, done.z) <= tol * rho[near]
        done = live.pick(near)
        found.y[done.place], found.z[done.place] = done.y, done.z
        found.solved[done.place] = True
    return live.pick(~near)


def _stepped(live: State) -> State:
    """One primal-dual step; chains for which none is possible are left out."""
    stack, z, p = live.stack, live.z, inverse(live.factor)
    mu = _inner(live.slack, z) / stack.order
    solver = SchurSolver(schur_complement(stack.forms(z), stack.forms(p)))
    g, b = stack.adjoint(p), _unit(p, live.y.shape[1])
    ds = stack.direction(solver(-b[..., None])[..., 0])
    change = ds @ p
    dz = -z - _symmetric(z @ change)
    a_s, a_z = (longest(*one, ROUGHLY) for one in ((live.slack, ds), (z, dz)))
    left = _inner(live.slack + a_s * ds, z + a_z * dz) / stack.order
    gap, shorter = mu * stack.order / live.y[:, 0], np.minimum(a_s, a_z)[:, 0, 0]
    target = (mu * centring_share(left / mu, shorter, gap))[:, None]
    second = _symmetric(dz @ change)
    dy = solver((target * g - stack.adjoint(second) - b)[..., None])[..., 0]
    ds = stack.direction(dy)
    dz = target[..., None] * p - z - _symmetric(z @ (ds @ p)) - second
    return _advanced(live, dy, ds, dz)


def _advanced(live: State, dy: Array, ds: Array, dz: Array) -> State:
    """Go a share of the longest steps, S and Z separately."""
    a_s, a_z = (longest(*one, whole=True) for one in ((live.slack, ds), (live.z, dz)))
    share = 0.9 + 0.09 * np.minimum(a_s, a_z)
    a_s, a_z = (np.where(a < 1.0, share * a, a) for a in (a_s, a_z))
    y, slack, z = live.y + a_s[:, 0] * dy, live.slack + a_s * ds, live.z + a_z * dz
    factor, sound = cholesky(slack)
    sound &= (np.maximum(a_s, a_z) > 0.0)[:, 0, 0] & np.isfinite(y).all(1)
    return State(live.place, live.stack, y, slack, factor, z).pick(sound)


@phase("step length")
def longest(
    matrix: Array, change: Array, tried: Sequence[float] = LENGTHS, whole: bool = False
) -> Array:
    """How far each positive definite matrix may go, shape ``(chains, 1, 1)``.

    ``tried`` are the lengths; ``whole`` says that the last one is the rule: it is tried first.
    """
    if len(matrix) == 1:
        way = bisected(lambda a: bool(cholesky(matrix + a * change)[1][0]), whole, tried)
        return np.full((1, 1, 1), min(way, tried[-1]), matrix.dtype)
    if whole:
        found, short = np.ones((len(matrix), 1, 1), matrix.dtype), ~cholesky(matrix + change)[1]
        if short.any():
            found[short] = longest(matrix[short], change[short], tried)
        return found
    low, high = np.zeros(len(matrix), int), np.full(len(matrix), len(tried))
    lengths = np.array(tried, matrix.dtype)[:, None, None]
    while (high[0] - low[0]) > 1:
        middle = (low + high) // 2
        inside = cholesky(matrix + lengths[middle] * change)[1]
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.asarray(lengths[low])


class SchurSolver:
    """Solves with H by Cholesky after scaling to unit diagonal, with one refinement step."""

    def __init__(self, matrix: Array) -> None:
        self._scale = matrix.diagonal(axis1=1, axis2=2)[..., None] ** -0.5
        self._matrix = matrix * (self._scale * self._scale.mT)
        self._factor, sound = cholesky(self._matrix)
        if not sound.all():
            raised = np.finfo(matrix.dtype).eps ** 0.75
            raised = self._matrix + raised * np.eye(matrix.shape[-1], dtype=matrix.dtype)
            self._factor, sound = cholesky(raised)
            self._factor[~sound] = np.nan

    def __call__(self, right: Array) -> Array:
        """``H^{-1}`` times columns."""
        known = right * self._scale
        x = solve(self._factor, known)
        x = x + solve(self._factor, known - self._matrix @ x)
        return np.asarray(x * self._scale)


def _inner(a: Array, b: Array) -> Array:
    return np.asarray(np.einsum("bij,bij->b", a, b))


def _symmetric(x: Array) -> Array:
    """``(X + X') / 2``."""
    return np.asarray((x + x.mT) * 0.5)


def _unit(like: Array, size: int) -> Array:
    """b of every chain: the first unit vector."""
    b = np.zeros((len(like), size), like.dtype)
    b[:, 0] = 1.0
    return b
