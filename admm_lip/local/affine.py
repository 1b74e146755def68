"""One affine map in float64, with the norms and error factors that every bound uses.

``gamma_n = n u / (1 - n u)`` bounds the relative error of a sum of n products in any order.  Sums
of positive terms are rounded too: every bound is raised by ``SLACK``, which covers some thousands
of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CertificateError
from .curves import U

SLACK = 1.0 + 1e-9
# Added where a bound may be zero by underflow.
TINY = 2.0**-1000


def gamma(terms: int) -> float:
    """``gamma_n`` for n terms and two roundings more."""
    n = terms + 2
    return n * U / (1.0 - n * U)


def chunks(rows: Tensor, size: int) -> list[Tensor]:
    """Consecutive parts of at most ``size`` rows, at least one row each."""
    size = max(1, size)
    return [rows[k : k + size] for k in range(0, len(rows), size)]


@dataclass(frozen=True, eq=False)
class Affine:
    """One affine map: ``W``, ``|W|``, ``b``, and what is known of their errors.

    Attributes:
        weight: ``(n_out, n_in)``.
        size: its absolute values.
        bias: ``(n_out,)``.
        error: bound on the Frobenius norm of stored minus exact weights.
        bias_error: bound on every entry's error.
        norm: an upper bound of the spectral norm of the exact matrix, proven.
        frobenius: an upper bound of the Frobenius norm.
        rows: upper bounds of the norms of the rows, ``(n_out,)``.
    """

    weight: Tensor
    size: Tensor
    bias: Tensor
    error: float
    bias_error: float
    norm: float
    frobenius: float
    rows: Tensor

    @property
    def gamma(self) -> float:
        """Relative error of a row's sum."""
        return gamma(self.weight.shape[1])


def affine_of(weight: Tensor, bias: Tensor, error: float, bias_error: float) -> Affine:
    """A map with its norms."""
    rows = weight.norm(dim=1) * SLACK + error + TINY
    return Affine(
        weight=weight,
        size=weight.abs(),
        bias=bias,
        error=error,
        bias_error=bias_error,
        norm=float(proven_norms(weight[None])[0]) * SLACK + error,
        frobenius=float(weight.norm()) * SLACK + error + TINY,
        rows=rows,
    )


def first_factor(first: Affine) -> Tensor:
    """A factor F with ``F F' >= W W'``: a Cholesky factor of a Gram matrix shifted by its error.

    The product is off by ``gamma_n ||W||_F^2``, the factorisation by ``gamma_n tr``, the stored
    weights by ``(2 ||W|| + e) e``.
    """
    gram = first.weight @ first.weight.T
    total = first.frobenius**2
    n = first.weight.shape[0]
    shift = (first.gamma + 4.0 * gamma(n + 4)) * total + (2.0 * first.norm + first.error) * (
        first.error
    )
    shift = shift * SLACK + TINY
    for _ in range(20):
        shifted = gram + shift * torch.eye(n, dtype=torch.float64)
        found, info = torch.linalg.cholesky_ex(shifted)
        factor: Tensor = found
        if int(info) == 0:
            return factor
        shift *= 4.0
    raise CertificateError(
        "the first layer's weights overflow or underflow when squared; rescale them"
    )


def proven_norms(matrices: Tensor) -> Tensor:
    """Upper bounds of the spectral norms of a batch of matrices, proven by Cholesky factors.

    With ``c = s^2 (1 + e)`` and the Gram matrix G on the smaller side, scaled by a power of two, a
    factor of ``c I - G - (errors) I`` that runs to completion proves ``||A||^2 <= c`` (S. Rump, BIT
    46, 2006; see ``proof.py``).  The Frobenius norm stands in where none succeeds.
    """
    largest = matrices.abs().amax(dim=(-2, -1), keepdim=True)
    scale = torch.ldexp(torch.ones_like(largest), -torch.frexp(largest)[1].clamp(-1000, 1000))
    scaled = matrices * scale
    total = scaled.square().sum(dim=(-2, -1)) * SLACK + TINY
    gram = scaled @ scaled.mT if scaled.shape[-2] <= scaled.shape[-1] else scaled.mT @ scaled
    n, terms = gram.shape[-1], max(scaled.shape[-2:])
    eye = torch.eye(n, dtype=torch.float64, device=gram.device)
    top = torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0.0)
    best = total
    for excess in (1e-6, 1e-9):
        bound = top * (1.0 + excess) + TINY
        error = gamma(terms) * total + 2.0 * gamma(n + 4) * n * bound
        shifted = (bound - error * SLACK)[..., None, None] * eye - gram
        proven = torch.linalg.cholesky_ex(shifted)[1] == 0
        best = torch.where(proven & (bound < best), bound, best)
    return best.sqrt() * (SLACK / scale[..., 0, 0])
