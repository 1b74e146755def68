"""The product of the layers' norms: the bound that every certificate is compared with.

Norms are kept as a share and a power of two, so that layers of any scale have a product.  NumPy and
SciPy only: a check computes it again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse.linalg import ArpackError, svds

from ..networks.layers import Array
from ..networks.network import Chain
from .claim_matrices import Matrices

# Up to this width a decomposition is as fast as Lanczos; at 6,272 it takes 44 s.
_DECOMPOSED = 1000


class Norm(NamedTuple):
    """A spectral norm ``share * 2^power``, share in [1/2, 1); ``(0, 0)`` for a zero matrix."""

    share: float
    power: int


def spectral_norm(matrix: Array) -> Norm:
    """Largest singular value (computed, not proven), of entries of any size.

    Example:
        >>> spectral_norm(np.array([[3e-200, 4e-200]])), spectral_norm(np.zeros((1, 2)))
        (Norm(share=0.9568..., power=-662), Norm(share=0.0, power=0))
    """
    power = math.frexp(float(np.abs(matrix).max()))[1]
    share, more = math.frexp(_largest_singular_value(np.ldexp(matrix, -power)))
    return Norm(share, power + more) if share else Norm(0.0, 0)


def _largest_singular_value(matrix: Array) -> float:
    """The spectral norm of a matrix whose squares neither overflow nor vanish."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    if len(wide) > _DECOMPOSED:
        start = np.random.default_rng(0).standard_normal(len(wide))
        try:
            found = svds(wide, 1, ncv=32, tol=1e-7, v0=start, return_singular_vectors=False)
            return float(found[0])
        except ArpackError:  # no convergence among them
            pass
    return math.sqrt(max(float(np.linalg.eigvalsh(wide @ wide.T)[-1]), 0.0))


def scaled(value: float, power: int) -> float:
    """``value * 2^power``, infinite where that overflows."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.ldexp(value, power))


def norm_product(chain: Chain | Matrices, norms: Sequence[Norm] | None = None) -> float:
    """Product of the layers' spectral norms and greatest absolute slopes (computed, not proven)."""
    if norms is None:
        norms = [spectral_norm(w) for w in chain.weights]
    share = math.prod(n.share for n in norms) * math.prod(_steepest(chain))
    return scaled(share, sum(n.power for n in norms))


def product_multiplier(
    chain: Chain | Matrices, norms: Sequence[float] | None = None
) -> tuple[Array, ...]:
    """The multiplier in closed form that proves the product of norms.

    With m the greatest absolute slope, ``(x - alpha v)(x - beta v) <= 0`` implies
    ``x^2 <= m^2 v^2``, and the S-procedure's factor for that is ``2 m / (beta - alpha)``.  Summing
    the layers with weights ``c_l = ||W_l||^2, c_{k-1} = c_k m_k^2 ||W_{k-1}||^2`` telescopes to
    ``||W_l x_l||^2 <= (product)^2 ||x_0||^2``, hence ``t_k = c_k m_k / (beta_k - alpha_k)``.  Where
    all slopes of a layer are one number its multipliers are not read, and are 1 here.
    """
    if norms is None:
        norms = [scaled(*spectral_norm(w)) for w in chain.weights]
    steepest, weight, multiplier = _steepest(chain), 1.0, []
    for k in range(len(chain.slopes) - 1, -1, -1):
        width = float(chain.slopes[k].beta.max()) - float(chain.slopes[k].alpha.min())
        weight *= norms[k + 1] * norms[k + 1]
        t = weight * steepest[k] / width if width > 0.0 else 1.0
        multiplier.append(np.full(chain.slopes[k].alpha.shape, t))
        weight *= steepest[k] * steepest[k]
    return tuple(multiplier[::-1])


def _steepest(chain: Chain | Matrices) -> list[float]:
    return [float(np.maximum(np.abs(s.alpha), np.abs(s.beta)).max()) for s in chain.slopes]
