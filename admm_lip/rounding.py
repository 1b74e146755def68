"""Upper bounds through rounding: sums, products, lengths and norms, at every scale.

``gamma_n = n u / (1 - n u)`` bounds the relative error of a sum of n products in any order.  Sums
of positive terms are rounded too: every bound is raised by ``SLACK``, which covers some thousands
of them.  A product below 2^-1022 loses up to 2^-1075 whatever its size, so each bound that is
multiplied further is raised by ``TINY`` as well; a square does so below 2^-511 already, so lengths
and norms are taken of multiples by a power of two, which rounds nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import float64
from .float64 import TINY, U

SLACK = 1.0 + 1e-9


def gamma(terms: int) -> float:
    """``gamma_n`` for n terms and four roundings more."""
    return float64.gamma(terms + 4)


def affine_error(
    value: Tensor,
    error: Tensor,
    absolute: Callable[[Tensor], Tensor],
    bias: Tensor | None,
    terms: int,
    weight_error: float = 0.0,
    bias_error: float = 0.0,
    spread: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """How far a float64 evaluation of ``W x + b`` is from the exact one, entry by entry.

    In any order of summation, with x within e of the value that was taken,

        |W| e + gamma_n (|W| |value| + |b|) + ||dW||_F (||value|| + ||e||) + |db|.

    Args:
        value: ``(batch, n_in)``.
        error: e, of the same shape.
        absolute: ``|W| y`` of such rows, or more where W is evaluated step by step: the steps'
            absolute values.
        bias: b, flat.
        terms: n, the entries of a row.
        weight_error: bound on the Frobenius norm of stored minus exact weights.
        bias_error: bound on every entry's error of the bias.
        spread: ``|W| y``, where ``absolute`` is more.
    """
    summed = absolute(value.abs())
    if bias is not None:
        summed = summed + bias.abs()
    off = (spread or absolute)(error) + gamma(terms) * summed + bias_error
    if weight_error > 0.0:
        off = off + weight_error * (lengths(value) + lengths(error))[:, None]
    return SLACK * off + TINY


def unit_scale(largest: Tensor) -> Tensor:
    """Powers of two that bring numbers >= 0 to about 1; 1 for what is 0 or not finite."""
    most = 1000 if largest.dtype == torch.float64 else 120
    return torch.ldexp(torch.ones_like(largest), -torch.frexp(largest)[1].clamp(-most, most))


def upper_product(first: Tensor, *factors: Tensor | float) -> Tensor:
    """Upper bound of a product of numbers >= 0, also where a part of it underflows."""
    product = first
    for factor in factors:
        product = product * factor * (1.0 + 4.0 * U) + TINY
    return product


def lengths(vectors: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """The 2-norms along ``dim``, at every scale; upper bounds in float64.

    Example:
        >>> vectors = torch.tensor([[3e-200, 4e-200], [3e200, 4e200]], dtype=torch.float64)
        >>> [f"{length:.6g}" for length in lengths(vectors).tolist()]
        ['5e-200', '5e+200']
    """
    size = vectors.abs()
    scale = unit_scale(size.amax(dim=dim, keepdim=True))
    total = (size * scale).square().sum(dim=dim, keepdim=True)
    length: Tensor = (total.sqrt() * SLACK / scale + TINY).squeeze(dim)
    return length


def proven_norms(matrices: Tensor) -> Tensor:
    """Upper bounds of the spectral norms of a batch of matrices, proven by Cholesky factors.

    With ``c = s^2 (1 + e)`` and the Gram matrix G on the smaller side, scaled by a power of two, a
    factor of ``c I - G - (errors) I`` that runs to completion proves ``||A||^2 <= c`` (S. Rump, BIT
    46, 2006; see ``proof.py``).  The Frobenius norm stands in where none succeeds, inf where a
    matrix is not finite.
    """
    scale = unit_scale(matrices.abs().amax(dim=(-2, -1), keepdim=True))
    scaled = matrices * scale
    finite = torch.isfinite(scaled).all(dim=-1).all(dim=-1)
    scaled = torch.where(finite[..., None, None], scaled, 0.0)
    total = scaled.square().sum(dim=(-2, -1)) * SLACK + TINY
    gram = scaled @ scaled.mT if scaled.shape[-2] <= scaled.shape[-1] else scaled.mT @ scaled
    n, terms = gram.shape[-1], max(scaled.shape[-2:])
    eye = torch.eye(n, dtype=torch.float64, device=gram.device)
    top = torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0.0)
    best = total
    for excess in (1e-6, 1e-9):
        bound = top * (1.0 + excess) + 4.0 * TINY
        error = gamma(terms) * total + 2.0 * gamma(n + 4) * n * bound + TINY
        shifted = (bound - error * SLACK)[..., None, None] * eye - gram
        proven = torch.linalg.cholesky_ex(shifted)[1] == 0
        best = torch.where(proven & (bound < best), bound, best)
    norms = best.sqrt() * (SLACK / scale[..., 0, 0]) + TINY
    return torch.where(finite, norms, torch.inf)
