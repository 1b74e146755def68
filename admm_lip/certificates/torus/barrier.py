"""The barrier ``log det F`` of the matrix inequality, its gradient and its Hessian.

F is affine in the multipliers t and in ``s = 1 / L^2``.  With ``Z = F^-1`` read as the covariance
of all signals of the network (its input x, what every activation takes and gives), the matrix that
``t_i`` multiplies is ``v_i u_i^H + u_i v_i^H`` with ``u = v - z``, and that of s is ``-y y^H``:

    t_i d/dt_i log det F             = 2 Re Z_{v_i u_i}
    -t_i t_j d^2/dt_i dt_j log det F = 2 Re (Z_{u_i v_j} Z_{v_i u_j}^* + Z_{u_i u_j} Z_{v_i v_j}^*)

No matrix of the size of F is made.  Forward go the covariances P that know the past alone
(``covariance.py``); back go, as in a smoother of Bryson and Frazier, ``lam``, by which the future
corrects them (``Z_xx = P + P lam P``), and columns N with ``Z_xw = P N`` for every signal w of the
future.  Behind an activation with ``X = S H^H``, ``U = G T^{-1/2} E^H - X`` and
``Phi = D + H S T E^H``, T's roots taken into S, H and the signals:

    Z_vw = X N,    Z_uw = U N,    N <- Phi^H N,    lam <- Phi^H lam Phi + E T S T E^H,
    Z_vv = X lam X^H + S,    Z_vu = X lam U^H + 1 - S,    Z_uu = U lam U^H + S,
    N_v = Phi^H lam X^H + E T S,    N_u = Phi^H lam U^H - E T S.

Signals share ``K = p lam p'^H`` by what is known behind their end, p their covariances with it: Z
is ``Z0 + K``, and Z0, without that, the same for every s.  Frequencies meet in the head alone: two
of them, or signals of one, have that in common by it, and those shares of the Hessian are
``<B_i, lam B_j lam>`` with ``B_i = sum_f 2 Re p_{v_i}^H p_{u_i}``.  NumPy
and SciPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import get_lapack_funcs

from ...networks.layers import Array
from .covariance import adjoint
from .stages import Activation, Stage, flipped

# Order from which matrices are inverted one by one, at half the cost, instead of all at once.
_SMALL = 12


@dataclass(frozen=True, eq=False)
class Passed:
    """What the forward pass keeps of an activation: S, X, root T, and G over it."""

    s: Any
    x: Any
    root: Array
    span: Array


@dataclass(frozen=True, eq=False)
class Forward:
    """The stages of one part of the frequencies, passed."""

    stages: Sequence[Stage]
    passed: Sequence[Passed]
    p: Any
    log_det: Array


def forward(stages: Sequence[Stage], p: Any, t: Sequence[Array]) -> Forward | None:
    """Covariances from stage to stage; ``None`` where the inequality does not hold."""
    passed: list[Passed] = []
    log_det = np.zeros(len(p))
    for k, stage in enumerate(stages):
        if stage.linear is not None:
            p = stage.linear.forward(p)
        if stage.activation is None:
            break
        found = activated(p, stage.activation, np.sqrt(t[k]))
        if found is None:
            return None
        own, p, more = found
        passed.append(own)
        log_det += more + 2.0 * p.shape[1] * np.log(own.root).sum()
    return Forward(stages, passed, p, log_det)


def activated(p: Any, act: Activation, root: Array) -> tuple[Passed, Any, Array] | None:
    """P behind an activation, with the log det of its slack, scaled."""
    rows, kept, span = act.rows, act.kept, act.span / root
    y = (-root[:, None] * root) * p[block(rows, rows)]
    index = np.arange(len(rows))
    y[..., index, index] += 2.0
    found = inverse(y)
    if found is None:
        return None
    s, log_det = found
    x = s * span
    side = span[:, None] * x
    if len(rows) == p.shape[3] and not len(kept):
        return Passed(s, x, root, span), side, log_det
    turned, x = x, np.zeros((*s.shape[:3], len(act.least)), dtype=s.dtype)
    after = np.zeros_like(p)
    after[block(rows, rows)] = side
    if len(kept):
        low = act.least[kept]
        seen = (root[:, None] * low) * p[block(rows, kept)]
        x[..., kept] = s @ seen
        inner = (low[:, None] * low) * p[block(kept, kept)] + adjoint(seen) @ x[..., kept]
        after[block(kept, kept)] += (inner + adjoint(inner)) / 2.0
        side = span[:, None] * x[..., kept]
        after[block(rows, kept)] += side
        after[block(kept, rows)] += adjoint(side)
    x[..., rows] += turned
    return Passed(s, x, root, span), after, log_det


def inverse(y: Any) -> tuple[Any, Array] | None:
    """Inverses of Hermitian matrices, which are overwritten; ``None`` where one is not definite.

    Returns:
        them, and ``log det`` summed over aliases.
    """
    n = y.shape[-1]
    found = _one_by_one(y) if n >= _SMALL else _at_once(y)
    if found is None:
        return None
    s, pivots = found
    if not (np.isfinite(pivots).all() and (pivots > 0.0).all()):
        return None
    return s, 2.0 * np.log(pivots).sum(axis=(1, 2))


def _at_once(y: Any) -> tuple[Any, Array] | None:
    try:
        pivots = np.einsum("faii->fai", np.linalg.cholesky(y)).real
    except np.linalg.LinAlgError:
        return None
    s = np.linalg.inv(y)
    return (s + adjoint(s)) / 2.0, pivots


def _one_by_one(y: Any) -> tuple[Any, Array] | None:
    """By their factors, in their own memory: Fortran sees their transposes there."""
    y, n = np.ascontiguousarray(y), y.shape[-1]
    factor, invert = get_lapack_funcs(("potrf", "potri"), (y,))
    pivots = np.empty(y.shape[:-1])
    for one, row in zip(y.reshape(-1, n, n), pivots.reshape(-1, n), strict=True):
        own, failed = factor(one.T, lower=1, overwrite_a=1)
        if failed:
            return None
        row[:] = own.diagonal().real
        one[:] = invert(own, lower=1, overwrite_c=1)[0].T
    index = np.arange(n)
    y[..., index, index] *= 0.5
    return y + adjoint(y), pivots


def block(rows: Any, columns: Any) -> tuple[Any, ...]:
    """The index of a block of matrices, of slices where that is possible."""
    down, across = _slice(rows), _slice(columns)
    apart = isinstance(down, slice) or isinstance(across, slice)
    return (..., down if apart else down[:, None], across)


def _slice(places: Any) -> Any:
    first, count = places[0], len(places)
    if np.array_equal(places, np.arange(first, first + count)):
        return slice(first, first + count)
    return places


def behind(n: Any, act: Activation, moved: Any) -> Any:
    """``Phi^H n``, of ``moved = T^{1/2} X n``."""
    found = act.least[:, None] * n
    found[..., act.rows, :] += moved
    return found


@dataclass(eq=False)
class Backward:
    """The pass back over the stages of one part, as if nothing were known behind the port.

    Attributes:
        weights: of the frequencies.
        lam: ``(frequencies, aliases, channels, all channels of all aliases)``; ``None`` is 0.
        port: the columns N of what enters the head, or of the output, in front of this place.
        v, u: those of the signals v and u behind this place.
        sizes: aliases and signals per alias of every activation, the first one first.
        rows: covariances of v and u with the port, of every activation.
        blocks: ``Z_vv, Z_vu, Z_uv, Z_uu`` of every activation with those from it on.
    """

    weights: Array
    lam: Any
    port: Any
    v: Any
    u: Any
    sizes: list[tuple[int, int]]
    rows: list[tuple[Any, Any]]
    blocks: list[tuple[Any, ...]]


def backward(passed: Forward, weights: Array, port: Any) -> Backward:
    """Covariances of the signals in front of the port."""
    none = port[..., :0]
    back = Backward(weights, None, port, none, none, [], [], [])
    if passed.stages[-1].linear is not None:
        _through_linear(back, passed.stages[-1])
    for k in reversed(range(len(passed.passed))):
        stage, own = passed.stages[k], passed.passed[k]
        assert stage.activation is not None
        _through_activation(back, stage.activation, own)
        # In front of the first activation nothing is sought.
        if k > 0:
            _through_linear(back, stage)
    return back


def _through_linear(back: Backward, stage: Stage) -> None:
    if stage.linear is not None:
        for name in ("port", "v", "u"):
            setattr(back, name, stage.linear.back(getattr(back, name)))
        back.lam = None if back.lam is None else stage.linear.around(back.lam)


def _through_activation(back: Backward, act: Activation, own: Passed) -> None:
    rows, root, count = act.rows, own.root[:, None], len(act.rows)
    aliases = own.s.shape[1]
    # Signals of the future.
    v_of = {name: own.x @ getattr(back, name) for name in ("port", "v", "u")}
    u_of = {name: turned(getattr(back, name), act, own) - v_of[name] for name in v_of}
    for name in v_of:
        setattr(back, name, behind(getattr(back, name), act, root * v_of[name]))
    # Its own.
    v_v, v_u, u_u, n_v, n_u, back.lam = _own(back.lam, act, own)
    weighed, every = root * own.s, np.arange(count)
    back.lam = _plus(back.lam, rows, weighed * own.root, square=True)
    n_v, n_u = _plus(n_v, rows, weighed), _plus(n_u, rows, -weighed)
    v_v, u_u = _plus(v_v, every, own.s), _plus(u_u, every, own.s)
    v_u = _plus(v_u, every, np.eye(count) - own.s)
    own_pairs = (v_v, v_u, flipped(v_u, aliases), u_u)
    others = (v_of["v"], v_of["u"], u_of["v"], u_of["u"])
    pairs = zip(own_pairs, others, strict=True)
    back.blocks.insert(0, tuple(np.concatenate(pair, axis=-1) for pair in pairs))
    back.sizes.insert(0, (aliases, count))
    back.rows.insert(0, (v_of["port"], u_of["port"]))
    back.v = np.concatenate([n_v, back.v], axis=-1)
    back.u = np.concatenate([n_u, back.u], axis=-1)


def _own(lam: Any, act: Activation, own: Passed) -> tuple[Any, ...]:
    """``Z_vv, Z_vu, Z_uu``, columns N of v and u, and lam in front, all without S and 1."""
    f, aliases, count = own.s.shape[:3]
    width, root = len(act.least), own.root[:, None]
    if lam is None:
        rows, columns = (count, count, count, width, width, width), [aliases * count] * 5
        shapes = zip(rows, (*columns, aliases * width), strict=True)
        return tuple(np.zeros((f, aliases, *shape), dtype=own.s.dtype) for shape in shapes)
    half = _times(lam, adjoint(own.x))
    other = _columns(lam, act, own) - half
    ahead = flipped(half, aliases)
    v_v = own.x @ half
    v_u = _columns(ahead, act, own) - v_v
    n_v, n_u = behind(half, act, root * v_v), behind(other, act, root * v_u)
    front = behind(lam, act, root * ahead) * np.tile(act.least, aliases)
    by_alias = front.reshape(f, aliases, width, aliases, width)
    by_alias[..., act.rows] += n_v.reshape(f, aliases, width, aliases, count) * own.root
    return v_v, v_u, turned(other, act, own) - v_u, n_v, n_u, front


@dataclass(frozen=True, eq=False)
class Second:
    """Derivatives by activation, the first one first, as :func:`second` finds them."""

    gradient: list[Array]
    hessian: list[list[Array]]


def second(back: Backward, lam: Any, eta: float, alone: bool) -> Second:
    """``eta Z0`` and ``K = p lam p^H`` make the gradient, ``eta |Z0|^2 + 2 Z0 K`` the Hessian.

    Args:
        back: with Z0, what is known without anything behind the port.
        lam: what is known there, ``(frequencies, 1, port, port)``.
        eta: a weight.
        alone: whether ``|K|^2`` belongs to the Hessian.
    """
    found, at = Second([], []), 0
    if not back.rows:  # nothing is activated here
        return found
    f, port = len(back.weights), back.port.shape[-1]
    v, u = (
        np.concatenate([pair[i].reshape(f, -1, port) for pair in back.rows], axis=1) for i in (0, 1)
    )
    for k, (aliases, count) in enumerate(back.sizes):
        size = aliases * count
        vv, vu, uv, uu = (z.reshape(f, size, -1) for z in back.blocks[k])
        near = [own[:, at : at + size] @ lam[:, 0] for own in (v, u)]
        far = [adjoint(own[:, at:]) for own in (v, u)]
        k_vv, k_vu, k_uv, k_uu = (one @ other for one in near for other in far)
        more = float(alone)
        both = real_product(uv, eta * vu + k_vu) + real_product(uu, eta * vv + k_vv)
        both += real_product(k_uv, vu + more * k_vu) + real_product(k_uu, vv + more * k_vv)
        summed = 2.0 * np.einsum("f,fjm->jm", back.weights, both)
        summed = summed.reshape(aliases, count, -1).sum(axis=0)
        found.hessian.append(_blocks(summed, back.sizes[k:]))
        slope = np.einsum("fjj->fj", (eta * vu + k_vu)[..., :size]).real
        found.gradient.append(2.0 * (back.weights @ slope).reshape(aliases, count).sum(axis=0))
        at += size
    return found


def turned(n: Any, act: Activation, own: Passed) -> Any:
    """``G T^{-1/2} E^H n``."""
    return own.span[:, None] * n[..., act.rows, :]


def _columns(matrix: Any, act: Activation, own: Passed) -> Any:
    """The same from the right, of a matrix over all aliases."""
    f, aliases, width, _ = matrix.shape
    split = matrix.reshape(f, aliases, width, aliases, -1)[..., act.rows] * own.span
    return split.reshape(f, aliases, width, -1)


def _plus(matrix: Any, rows: Any, block: Any, square: bool = False) -> Any:
    """A matrix over all aliases with a block of each added, in ``rows`` (and columns)."""
    f, aliases, width, _ = matrix.shape
    split = matrix.reshape(f, aliases, width, aliases, -1)
    for a in range(aliases):
        if square:
            split[:, a, rows[:, None], a, rows] += block[:, a]
        else:
            split[:, a, rows, a] += block[:, a]
    return matrix


def _times(matrix: Any, right: Any) -> Any:
    """A matrix over all aliases times a matrix of each."""
    f, aliases, width = matrix.shape[:3]
    split = matrix.reshape(f, aliases * width, aliases, -1).swapaxes(1, 2) @ right
    return split.swapaxes(1, 2).reshape(f, aliases, width, -1)


def _blocks(summed: Array, sizes: Sequence[tuple[int, int]]) -> list[Array]:
    """Columns by activation, their aliases added up."""
    found, at = [], 0
    for aliases, count in sizes:
        own = summed[:, at : at + aliases * count]
        found.append(own.reshape(len(summed), aliases, count).sum(axis=1))
        at += aliases * count
    return found


def real_product(a: Any, b: Any) -> Any:
    """``Re a b^*``, entry for entry."""
    return a.real * b.real + a.imag * b.imag if np.iscomplexobj(a) else a * b
