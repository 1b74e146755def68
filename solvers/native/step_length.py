"""How far one may go: Lanczos on the scaled direction, never an eigendecomposition.

The largest step a with ``K K' + a D >= 0`` is ``-1 / lambda_min(K^{-1} D K^{-T})``.  Lanczos with
full reorthogonalisation finds the least eigenvalue in a few products; its residual is subtracted,
so that the step errs on the short side.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from .block_cholesky import Band, Cliques, Factor, block_slices

PRODUCTS = 30


def slack_step(factor: Factor, direction: Band, products: int = PRODUCTS) -> float:
    """Largest a with ``S + a dS >= 0``, S given by its factor; ``inf`` if there is no limit."""
    inverses = [_inverse(p) for p in factor.pivots]
    at = block_slices([p.shape[0] for p in factor.pivots])

    def product(x: Tensor) -> Tensor:
        y = [x[s] for s in at]
        for k in range(len(at) - 1, -1, -1):
            if k + 1 < len(at):
                y[k] = torch.addmv(y[k], factor.below[k].T, y[k + 1], alpha=-1.0)
            y[k] = torch.mv(inverses[k].T, y[k])
        z = [torch.mv(d, v) for d, v in zip(direction.diagonal, y, strict=True)]
        for k, block in enumerate(direction.lower):
            z[k + 1] = torch.addmv(z[k + 1], block, y[k])
            z[k] = torch.addmv(z[k], block.T, y[k + 1])
        for k in range(len(at)):
            if k:
                z[k] = torch.addmv(z[k], factor.below[k - 1], z[k - 1], alpha=-1.0)
            z[k] = torch.mv(inverses[k], z[k])
        return torch.cat(z)

    return _step(product, at[-1].stop, factor.pivots[0], products)


def cliques_step(cliques: Cliques, direction: Band, products: int = PRODUCTS) -> float:
    """Largest a for which every clique of ``Z + a dZ`` is positive semidefinite.

    The cliques are independent, so they form one block-diagonal operator.
    """
    scaled = [_scaled_clique(cliques, direction, k) for k in range(len(direction.lower))]
    at = block_slices([m.shape[0] for m in scaled])

    def product(x: Tensor) -> Tensor:
        return torch.cat([torch.mv(m, x[s]) for m, s in zip(scaled, at, strict=True)])

    return _step(product, at[-1].stop, scaled[0], products)


def _scaled_clique(cliques: Cliques, direction: Band, k: int) -> Tensor:
    """``K^{-1} D K^{-T}`` of clique k."""
    top, side, rest = cliques.pivots[k], cliques.below[k], cliques.rest[k]
    n = top.shape[0]
    factor = torch.zeros(n + rest.shape[0], n + rest.shape[0]).to(top)
    factor[:n, :n], factor[n:, :n], factor[n:, n:] = top, side, rest
    full = torch.zeros_like(factor)
    full[:n, :n], full[n:, n:] = direction.diagonal[k], direction.diagonal[k + 1]
    full[n:, :n], full[:n, n:] = direction.lower[k], direction.lower[k].T
    half = torch.linalg.solve_triangular(factor, full, upper=False)
    return torch.linalg.solve_triangular(factor, half.T, upper=False)


def _inverse(pivot: Tensor) -> Tensor:
    """Explicit inverse of a triangular factor: many products follow."""
    eye = torch.eye(pivot.shape[0], dtype=pivot.dtype, device=pivot.device)
    return torch.linalg.solve_triangular(pivot, eye, upper=False)


def _step(product: Callable[[Tensor], Tensor], order: int, like: Tensor, products: int) -> float:
    least = least_eigenvalue(product, order, like, products)
    return -1.0 / least if least < 0.0 else float("inf")


def least_eigenvalue(
    product: Callable[[Tensor], Tensor], order: int, like: Tensor, products: int
) -> float:
    """Lower estimate of the least eigenvalue of a symmetric operator: Ritz value less residual."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(order, generator=generator, dtype=torch.float64).to(like)
    q = q / torch.linalg.vector_norm(q)
    count = min(products, order)
    basis = like.new_empty(count, order)
    alphas: list[float] = []
    betas: list[float] = []
    least = 0.0
    for j in range(count):
        basis[j] = q
        w = product(q)
        alphas.append(float(torch.dot(q, w)))
        known = basis[: j + 1]
        w = torch.addmv(w, known.T, torch.mv(known, w), alpha=-1.0)
        w = torch.addmv(w, known.T, torch.mv(known, w), alpha=-1.0)
        betas.append(float(torch.linalg.vector_norm(w)))
        if j + 1 == count or betas[-1] < 1e-12 or j % 5 == 4:
            least, settled = _ritz(alphas, betas)
            if settled:
                break
        q = w / betas[-1]
    return least


def _ritz(alphas: list[float], betas: list[float]) -> tuple[float, bool]:
    """Least Ritz value less its residual, and whether it is settled to 1 %."""
    if not np.isfinite(alphas).all() or not np.isfinite(betas).all():
        return float("-inf"), True
    values, vectors = eigh_tridiagonal(np.array(alphas), np.array(betas[:-1]))
    residual = abs(betas[-1] * vectors[-1, 0])
    return float(values[0] - residual), residual <= 1e-2 * abs(values[0])
