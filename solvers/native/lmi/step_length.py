"""How far one may go: Lanczos on the scaled direction, never an eigendecomposition.

The largest step a with ``K K' + a D >= 0`` is ``-1 / lambda_min(K^{-1} D K^{-T})``.  Lanczos with
full reorthogonalisation finds the least eigenvalue in a few products; its residual is subtracted,
so that the step errs on the short side.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from ...phases import phase
from .block_cholesky import Band, Cliques, Factor, block_slices

PRODUCTS = 30


@phase("step length")
def slack_step(factor: Factor, direction: Band, accuracy: float = 1e-2) -> float:
    """Largest a with ``S + a dS >= 0``, S given by its factor; ``inf`` if there is no limit."""
    inverses, below = factor.inverses, factor.below
    at = block_slices([p.shape[0] for p in factor.pivots])
    last = len(at) - 1

    def product(x: Tensor) -> Tensor:
        y = [x[s] for s in at]
        y[last] = torch.mv(inverses[last].T, y[last])
        for k in range(last - 1, -1, -1):
            y[k] = torch.mv(inverses[k].T, torch.addmv(y[k], below[k].T, y[k + 1], alpha=-1.0))
        z = [torch.mv(d, v) for d, v in zip(direction.diagonal, y, strict=True)]
        for k, block in enumerate(direction.lower):
            z[k + 1].addmv_(block, y[k])
            z[k].addmv_(block.T, y[k + 1])
        z[0] = torch.mv(inverses[0], z[0])
        for k, block in enumerate(below):
            z[k + 1] = torch.mv(inverses[k + 1], z[k + 1].addmv_(block, z[k], alpha=-1.0))
        return torch.cat(z)

    return _step(product, at[-1].stop, factor.pivots[0], accuracy)


@phase("step length")
def cliques_step(cliques: Cliques, direction: Band, accuracy: float = 1e-2) -> float:
    """Largest a for which every clique of ``Z + a dZ`` is positive semidefinite.

    The cliques are independent, so they form one block-diagonal operator.
    """
    sizes = [d.shape[0] for d in direction.diagonal]
    at = block_slices([n for pair in pairwise(sizes) for n in pair])

    def product(x: Tensor) -> Tensor:
        out = []
        for k, block in enumerate(direction.lower):
            (top, rest), side = cliques.inverses[k], cliques.below[k]
            y2 = torch.mv(rest.T, x[at[2 * k + 1]])
            y1 = torch.mv(top.T, torch.addmv(x[at[2 * k]], side.T, y2, alpha=-1.0))
            z1 = torch.mv(direction.diagonal[k], y1).addmv_(block.T, y2)
            z2 = torch.mv(direction.diagonal[k + 1], y2).addmv_(block, y1)
            out.append(torch.mv(top, z1))
            out.append(torch.mv(rest, z2.addmv_(side, out[-1], alpha=-1.0)))
        return torch.cat(out)

    return _step(product, at[-1].stop, cliques.pivots[0], accuracy)


def _step(product: Callable[[Tensor], Tensor], order: int, like: Tensor, accuracy: float) -> float:
    least = least_eigenvalue(product, order, like, accuracy)
    return -1.0 / least if least < 0.0 else float("inf")


def least_eigenvalue(
    product: Callable[[Tensor], Tensor], order: int, like: Tensor, accuracy: float
) -> float:
    """Lower estimate of the least eigenvalue of a symmetric operator: Ritz value less residual.

    Stops when the residual is below ``accuracy`` times the value, or after ``PRODUCTS`` products.
    """
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
