"""How far one may go: by Cholesky factors, or the least eigenvalue of the scaled direction.

Where blocks are narrow, a factor is the cheapest answer to whether a step stays inside: the longest
of the :data:`LENGTHS` that does is found by bisection.  Else the largest step a with
``K K' + a D >= 0`` is ``-1 / lambda_min(K^{-1} D K^{-T})``.  Small operators are written out and
decomposed.  Of large ones, Lanczos with full reorthogonalisation finds the least eigenvalue in a
few products; its residual is subtracted, so that the step errs on the short side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from ...phases import phase
from .block_cholesky import Band, Cliques, Factor, block_slices

# The steps that are tried, as many as a power of two: what is left of the way in equal ratios.
LENGTHS = (0, 0.02, 0.06, 0.13, 0.22, 0.32, 0.43, 0.54, 0.64, 0.73, 0.8, 0.86, 0.91, 0.95, 0.98, 1)
# Those of a predictor, which only choose mu.
ROUGHLY = (0, *LENGTHS[3::2])
# Factors that move inside: a closed form, and what rounding to single precision moved out.
ROOM = (1.0, 1.0 + 1e-6, 1.0 + 1e-4, 1.01, 2.0)
PRODUCTS = 30
# Mehrotra's power while the gap is wider than this, and how far it falls where the predictor's
# steps are short later: there a pair off the central path costs steps in double precision.
_WIDE, _POWER, _LEAST_POWER = 0.05, 3.0, 1.5
# Up to this order an eigendecomposition costs less than the Python of Lanczos.
_DENSE = 300

# A symmetric operator: of a vector, or of the columns of a matrix.
Product = Callable[[Tensor], Tensor]


def bisected(
    inside: Callable[[float], bool], whole: bool = False, tried: Sequence[float] = LENGTHS
) -> float:
    """The longest of the lengths ``tried`` that is inside, ``inf`` where all of them are.

    ``whole`` says that this is the rule: the last one is tried first.
    """
    if whole and inside(tried[-1]):
        return math.inf
    low, high = 0, len(tried)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if inside(tried[middle]) else (low, middle)
    return tried[low] if high < len(tried) else math.inf


def centring_share(left: Any, shorter: Any, gap: Any) -> Any:
    """The share of mu that a step aims at, of one pair or an array of them (Mehrotra).

    ``sigma = min(1, (mu_aff / mu)^e)``: ``e = 3`` far from the optimum, near it
    ``max(1.5, 3 a^2)`` with a the predictor's shorter step.

    Args:
        left: what share of mu the predictor leaves.
        shorter: the shorter of its two steps.
        gap: the relative gap of the pair.
    """
    power = np.where(gap > _WIDE, _POWER, np.maximum(_LEAST_POWER, _POWER * shorter**2))
    return np.minimum(np.maximum(left, 0.0) ** power, 1.0)


@phase("step length")
def slack_step(factor: Factor, direction: Band, accuracy: float = 1e-2) -> float:
    """Largest a with ``S + a dS >= 0``, S given by its factor; ``inf`` if there is no limit."""
    inverses, below = factor.inverses, factor.below
    at = block_slices([p.shape[0] for p in factor.pivots])
    last = len(at) - 1

    def product(x: Tensor) -> Tensor:
        y = [x[s] for s in at]
        y[last] = inverses[last].T @ y[last]
        for k in range(last - 1, -1, -1):
            y[k] = inverses[k].T @ (y[k] - below[k].T @ y[k + 1])
        z = [d @ v for d, v in zip(direction.diagonal, y, strict=True)]
        for k, block in enumerate(direction.lower):
            z[k + 1] += block @ y[k]
            z[k] += block.T @ y[k + 1]
        z[0] = inverses[0] @ z[0]
        for k, block in enumerate(below):
            z[k + 1] = inverses[k + 1] @ (z[k + 1] - block @ z[k])
        return torch.cat(z)

    return _step([(product, at[-1].stop)], factor.pivots[0], accuracy)


@phase("step length")
def cliques_step(cliques: Cliques, direction: Band, accuracy: float = 1e-2) -> float:
    """Largest a for which every clique of ``Z + a dZ`` is positive semidefinite.

    The cliques are independent: small ones are taken one by one, others form one block-diagonal
    operator.
    """
    products = [partial(_clique_product, cliques, direction, k) for k in range(len(cliques.rest))]
    sizes = [a.shape[0] + b.shape[0] for a, b in pairwise(direction.diagonal)]
    at = block_slices(sizes)

    def all_of_them(x: Tensor) -> Tensor:
        return torch.cat([product(x[s]) for product, s in zip(products, at, strict=True)])

    small = max(sizes) <= _DENSE
    whole: list[tuple[Product, int]] = [(all_of_them, at[-1].stop)]
    parts = zip(products, sizes, strict=True)
    return _step(list(parts) if small else whole, cliques.pivots[0], accuracy)


def _clique_product(cliques: Cliques, direction: Band, k: int, x: Tensor) -> Tensor:
    """``K^{-1} D K^{-T} x`` of clique k."""
    (top, rest), side, block = cliques.inverses[k], cliques.below[k], direction.lower[k]
    n = top.shape[0]
    y2 = rest.T @ x[n:]
    y1 = top.T @ (x[:n] - side.T @ y2)
    z1 = top @ (direction.diagonal[k] @ y1 + block.T @ y2)
    return torch.cat([z1, rest @ (direction.diagonal[k + 1] @ y2 + block @ y1 - side @ z1)])


def _step(parts: Sequence[tuple[Product, int]], like: Tensor, accuracy: float) -> float:
    least = min(least_eigenvalue(product, order, like, accuracy) for product, order in parts)
    return -1.0 / least if least < 0.0 else float("inf")


def least_eigenvalue(product: Product, order: int, like: Tensor, accuracy: float) -> float:
    """Lower estimate of the least eigenvalue of a symmetric operator: Ritz value less residual.

    Stops when the residual is below ``accuracy`` times the value, or after ``PRODUCTS`` products.
    A small operator's is that of its matrix.
    """
    if order <= _DENSE:
        matrix = product(torch.eye(order, dtype=like.dtype, device=like.device))
        finite = bool(torch.isfinite(matrix).all())
        return float(torch.linalg.eigvalsh(matrix)[0]) if finite else float("-inf")
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(order, generator=generator, dtype=torch.float64).to(like)
    q = q / torch.linalg.vector_norm(q)
    count = min(PRODUCTS, order)
    basis = like.new_empty(count, order)
    alphas: list[float] = []
    betas: list[float] = []
    least = 0.0
    for j in range(count):
        basis[j] = q
        w = product(q)
        known = basis[: j + 1]
        overlap = torch.mv(known, w)
        w = torch.addmv(w, known.T, overlap, alpha=-1.0)
        w.addmv_(known.T, torch.mv(known, w), alpha=-1.0)
        alphas.append(float(overlap[j]))
        betas.append(float(torch.linalg.vector_norm(w)))
        exhausted = betas[-1] <= 1e-12 * max(map(abs, alphas + betas))
        if j + 1 == count or exhausted or j % 4 == 3:
            least, residual = _ritz(alphas, betas)
            if residual <= accuracy * abs(least) or exhausted:
                break
        q = w / betas[-1]
    return least


def _ritz(alphas: list[float], betas: list[float]) -> tuple[float, float]:
    """Least Ritz value less its residual, and the residual."""
    if not np.isfinite(alphas).all() or not np.isfinite(betas).all():
        return float("-inf"), 0.0
    # A tridiagonal solve has no use for threads: those of a second BLAS would spin beside torch's.
    values, vectors = eigh_tridiagonal(alphas, betas[:-1], select="i", select_range=(0, 0))
    residual = abs(betas[-1] * vectors[-1, 0])
    return float(values[0] - residual), float(residual)
