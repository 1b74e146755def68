"""Closed-form multipliers: a feasible start for every network, linear in depth.

Forward elimination at ``rho = 1``.  Let ``X_k`` be the Schur complement that layer k inherits
(``X_0 = I``), ``Q = W_{k-1} X_{k-1}^{-1} W_{k-1}'`` and ``Qh = 2H Q 2H``, ``2H = beta - alpha``.
Layer k can be continued exactly when ``||T^1/2 Qh T^1/2|| < 2``, so for any ``s > 0``

    T_k = theta diag(s) / ||diag(s)^1/2 Qh diag(s)^1/2||,       0 < theta < 2,

is feasible.  ``theta = 1`` and ``s = 1`` is the closed form of ECLipsE-Fast (Xu and Sivaranjani,
2024).  ``s_i = Qh_ii^(-1/2)`` and a theta a little above 1 is usually far better, because the
optimum's norms are 1.3 to 1.8 on deep signed networks and the error compounds with depth.

At the end ``lambda = ||W_l X_l^{-1} W_l'||`` gives ``L^2 = lambda`` with multiplier ``lambda T``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...dissipation import any_known
from ...phases import phase
from ...problem import CertifyProblem, Multiplier, Slopes, Weights
from ...spectrum import top_eigenvalue
from .block_cholesky import cholesky
from .step_length import least_eigenvalue
from .transpose import inverted, invertible, transposed

# Positive networks want 1.0, deep signed ones 1.2 and more.
THETAS = (1.0, 1.1, 1.2, 1.3, 1.4)

# Entries of s relative to the largest; a neuron that hardly matters must not get an infinite t.
_S_RANGE = 1e6

# Norms of larger Gram matrices need not be exact: they set a scale that is checked afterwards.
_EXACT_NORMS = 256
_NORM_ACCURACY = 1e-3

# Up to this width of layers all thetas are tried side by side.
_SIDE_BY_SIDE = 64

# A multiplier is inverted at a bound this much above the one it proves.
_INSIDE = 1e-9


class Start(NamedTuple):
    """A feasible multiplier and the ``L^2`` it was built for."""

    multiplier: Multiplier
    lip_sq: float
    theta: float


@phase("closed forms")
def theta_start(problem: CertifyProblem, theta: float, balanced: bool = True) -> Start | None:
    """The closed form above; ``balanced=False`` takes ``s = 1``.

    Returns ``None`` where rounding breaks it (a Cholesky factor fails), which ``theta = 1`` only
    does on networks whose scales have not been reduced.
    """
    if any_known(problem.slopes):
        return _graph_start(problem, theta, balanced)
    diagonals, outer = forward(problem.weights, problem.slopes, theta, balanced)
    return _ended(outer, diagonals, theta)


def forward(
    weights: Weights, slopes: Sequence[Slopes], theta: float | Tensor, balanced: bool = True
) -> tuple[list[Tensor], Tensor]:
    """``T / lambda`` of the closed form, and the matrix whose norm is lambda.

    Chains of equal widths side by side have a leading dimension in every tensor, and may have a
    theta each, of shape ``(chains, 1)``.  Where rounding breaks the form, the matrix is NaN.
    """
    state = torch.eye(weights[0].shape[-1]).to(weights[0])
    diagonals = []
    for w, s in zip(weights, slopes, strict=False):
        seen = _congruence(w, state)
        width = s.beta - s.alpha
        q = width[..., None] * seen * width[..., None, :]
        share = _entries(q) if balanced else torch.ones_like(width)
        root = share.sqrt()
        norm = _norms_of_grams(root[..., None] * q * root[..., None, :])[..., None]
        t = torch.where(norm > 0, share * (theta / norm), share)
        product = s.alpha * s.beta * t
        if bool((product != 0).any()):
            seen = _congruence(w, state + 2.0 * w.mT @ (product[..., None] * w))
        row = (s.alpha + s.beta) * t
        state = torch.diag_embed(2.0 * t) - row[..., None] * seen * row[..., None, :]
        diagonals.append(t)
    return diagonals, _congruence(weights[-1], state)


def _ended(outer: Tensor, diagonals: Sequence[Tensor], theta: float) -> Start | None:
    """The start whose last layer sees ``outer``."""
    lip_sq = _top_eigenvalue(outer)
    if not 0.0 <= lip_sq < float("inf"):
        return None
    # A network that is constant has lip_sq = 0 and its multiplier may have any scale.
    scale = lip_sq if lip_sq > 0 else 1.0
    return Start(tuple(scale * t for t in diagonals), lip_sq, theta)


def _graph_start(problem: CertifyProblem, theta: float, balanced: bool) -> Start | None:
    """The same where some neurons are linear, these exact: forward with ``P_k = X_k^{-1}``.

    Of a layer that hears ``Q = W P W'``, b the neurons that are not linear and a the others,
    ``E = 2T - hQ_bb h`` with ``h = (alpha + beta) T`` is what is left of b, and
    ``P_bb = E^{-1}, P_ba = E^{-1} h Q_ba, P_aa = Q_aa + Q_ab h E^{-1} h Q_ba`` is handed on.
    """
    cov = torch.eye(problem.weights[0].shape[1]).to(problem.weights[0])
    diagonals = []
    for w, slopes in zip(problem.weights, problem.slopes, strict=False):
        seen = w @ cov @ w.T
        linear = slopes.alpha == slopes.beta
        b, a = (~linear).nonzero()[:, 0], linear.nonzero()[:, 0]
        width = torch.where(linear, slopes.alpha, slopes.beta - slopes.alpha)
        q = width[:, None] * seen * width
        s = _entries(q) if balanced else torch.ones_like(width)
        norm = norm_of_gram((s.sqrt()[:, None] * q * s.sqrt())[b[:, None], b]) if len(b) else 0.0
        t = s * (theta / norm) if norm > 0 else s
        curved = (2.0 * slopes.alpha * slopes.beta * t)[b]
        if bool((curved != 0).any()):
            mixed = torch.eye(len(b)).to(w) + curved[:, None] * seen[b[:, None], b]
            seen = seen - seen[:, b] @ torch.linalg.solve(mixed, curved[:, None] * seen[b])
        pull = ((slopes.alpha + slopes.beta) * t)[b][:, None] * seen[b]
        left = torch.diag(2.0 * t[b]) - pull[:, b] * ((slopes.alpha + slopes.beta) * t)[b]
        factor = cholesky(left)
        if factor is None:
            return None
        cov = slopes.alpha[:, None] * seen * slopes.alpha
        half = torch.linalg.solve_triangular(factor, pull[:, a] * slopes.alpha[a], upper=False)
        inverse = torch.linalg.solve_triangular(factor, torch.eye(len(b)).to(w), upper=False)
        cov[b[:, None], b] = inverse.T @ inverse
        cov[b[:, None], a] = inverse.T @ half
        cov[a[:, None], b] = (inverse.T @ half).T
        cov[a[:, None], a] += half.T @ half
        diagonals.append(t)
    return _ended(problem.weights[-1] @ cov @ problem.weights[-1].T, diagonals, theta)


def forward_starts(problem: CertifyProblem, thetas: Sequence[float] = THETAS) -> list[Start]:
    """The closed form for every theta, the least bound first; ``[]`` if all broke down."""
    if any_known(problem.slopes) or max(problem.widths) > _SIDE_BY_SIDE:
        starts = [theta_start(problem, theta) for theta in thetas]
    else:
        starts = theta_starts(problem, thetas)
    return sorted((s for s in starts if s is not None), key=lambda s: s.lip_sq)


@phase("closed forms")
def theta_starts(problem: CertifyProblem, thetas: Sequence[float]) -> list[Start | None]:
    """:func:`theta_start` of every theta, side by side; of narrow layers that takes as long as one.

    No slope may be known.
    """
    count = len(thetas)
    weights = tuple(w.expand(count, -1, -1) for w in problem.weights)
    slopes = [Slopes(*(end.expand(count, -1) for end in layer)) for layer in problem.slopes]
    diagonals, outer = forward(weights, slopes, weights[0].new_tensor(thetas)[:, None])
    return [_ended(outer[k], [t[k] for t in diagonals], theta) for k, theta in enumerate(thetas)]


def searched_starts(attempt: Callable[[float], Start | None]) -> list[Start]:
    """The closed form for a few theta, each chosen by the ones before; the least bound first.

    ``log L^2`` is nearly a parabola in theta: two values say which way the third one lies, and the
    three where its vertex is.  ``attempt`` gives the start of a theta, or ``None``.
    """
    found = [s for s in map(attempt, (1.45, 1.3)) if s is not None]
    rising = len(found) == 2 and found[0].lip_sq < found[1].lip_sq
    third = attempt(1.55 if rising else 1.05)
    found.extend([third] if third is not None else [])
    vertex = _vertex([(s.theta, math.log(max(s.lip_sq, 1e-300))) for s in found])
    last = attempt(vertex) if vertex is not None else None
    found.extend([last] if last is not None else [])
    return sorted(found, key=lambda s: s.lip_sq)


def _vertex(points: Sequence[tuple[float, float]]) -> float | None:
    """Where the parabola through three points is least, if that lies between them."""
    if len(points) != 3:
        return None
    (a, fa), (b, fb), (c, fc) = sorted(points)
    left, right = (fb - fa) / (b - a), (fc - fb) / (c - b)
    curvature = (right - left) / (c - a)
    at = (a + b) / 2.0 - left / (2.0 * curvature) if curvature > 0.0 else a
    return at if a < at < c else None


@phase("closed forms")
def best_start(problem: CertifyProblem, known: Sequence[Start] | None = None) -> Start | None:
    """The closed form with the least bound, on the chain or on its transpose, if there is one.

    ``known`` are those of the chain, where they have been computed.
    """
    found = list(forward_starts(problem) if known is None else known)[:1]
    back = transposed(problem)
    for start in forward_starts(back)[:1] if invertible(problem) else []:
        lip_sq = (1.0 + _INSIDE) * start.lip_sq
        if lip_sq > 0:
            found.append(Start(inverted(back, start.multiplier, lip_sq), lip_sq, start.theta))
    return min(found, key=lambda s: s.lip_sq, default=None)


def _congruence(rows: Tensor, state: Tensor) -> Tensor:
    """``rows state^{-1} rows'``, NaN where the state is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(state)
    half: Tensor = torch.linalg.solve_triangular(factor, rows.mT, upper=False)
    return torch.where(info[..., None, None] == 0, half.mT @ half, float("nan"))


def _entries(q: Tensor) -> Tensor:
    """``s_i = q_ii^(-1/2)``, its range limited, 1 where q vanishes."""
    d = torch.diagonal(q, dim1=-2, dim2=-1)
    top = d.amax(-1, keepdim=True)
    found = torch.maximum(d, top / _S_RANGE**2).rsqrt() * top.sqrt()
    return torch.where(top > 0, found, torch.ones_like(d))


def _norms_of_grams(q: Tensor) -> Tensor:
    """:func:`norm_of_gram`, with or without a leading dimension; NaN where there is none."""
    if q.ndim == 2:
        return q.new_tensor(norm_of_gram(q))
    finite = torch.isfinite(q).all(-1).all(-1)
    top = torch.linalg.eigvalsh(torch.where(finite[..., None, None], q, 0.0))[..., -1]
    return torch.where(finite, top.clamp(min=0.0), float("nan"))


def norm_of_gram(q: Tensor) -> float:
    """Largest eigenvalue to a few digits, from above: Lanczos where the matrix is large."""
    if q.shape[0] <= _EXACT_NORMS or not bool(torch.isfinite(q).all()):
        return _top_eigenvalue(q)
    top = float(q.abs().max())
    if top == 0.0:
        return 0.0
    scaled = q / top  # products of very small or large entries would leave the range
    return top * _norm(lambda x: scaled @ x, scaled)


def norm_sq(w: Tensor) -> float:
    """``||W||^2`` to a few digits, from above; entries of at most 1."""
    wide = w if w.shape[0] <= w.shape[1] else w.T
    if wide.shape[0] <= _EXACT_NORMS:
        return max(_top_eigenvalue(wide @ wide.T), 0.0)
    return max(_norm(lambda x: wide @ (wide.T @ x), wide), 0.0)


def norms_sq(w: Tensor) -> Tensor:
    """:func:`norm_sq`, with or without a leading dimension."""
    if w.ndim == 2:
        return w.new_tensor(norm_sq(w))
    wide = w if w.shape[-2] <= w.shape[-1] else w.mT
    return _norms_of_grams(wide @ wide.mT)


def _norm(product: Callable[[Tensor], Tensor], like: Tensor) -> float:
    def negative(x: Tensor) -> Tensor:
        return -product(x)

    return -least_eigenvalue(negative, like.shape[0], like, _NORM_ACCURACY)


def _top_eigenvalue(q: Tensor) -> float:
    """Largest eigenvalue of a positive semidefinite matrix; NaN where there is none."""
    if not bool(torch.isfinite(q).all()):
        return float("nan")
    return max(top_eigenvalue(q), 0.0)
