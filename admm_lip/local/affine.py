"""One affine map in float64, with the norms and error factors that every bound uses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CertificateError
from ..rounding import SLACK, TINY, gamma, lengths, proven_norms, unit_scale


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
    return Affine(
        weight=weight,
        size=weight.abs(),
        bias=bias,
        error=error,
        bias_error=bias_error,
        norm=(float(proven_norms(weight[None])[0]) + error) * SLACK,
        frobenius=(float(lengths(weight, dim=(0, 1))) + error) * SLACK,
        rows=(lengths(weight, dim=1) + error) * SLACK,
    )


def first_factor(first: Affine) -> Tensor:
    """A factor F with ``F F' >= W W'``: a Cholesky factor of a Gram matrix shifted by its error.

    The product is off by ``gamma_n ||W||_F^2``, the factorisation by ``gamma_n tr``, the stored
    weights by ``(2 ||W|| + e) e``.
    """
    scale = float(unit_scale(first.size.max()))
    weight, error = first.weight * scale, first.error * scale
    total = (first.frobenius * scale) ** 2
    n = first.weight.shape[0]
    shift = (first.gamma + 4.0 * gamma(n + 4)) * total
    shift = (shift + (2.0 * first.norm * scale + error) * error) * SLACK + TINY
    for _ in range(20):
        shifted = weight @ weight.T + shift * torch.eye(n, dtype=torch.float64)
        found, info = torch.linalg.cholesky_ex(shifted)
        if int(info) == 0:
            factor: Tensor = found / scale
            return factor
        shift *= 4.0
    raise CertificateError(
        "model: the first layer's weights leave the range of float64; rescale them"
    )
