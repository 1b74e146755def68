"""The product of the layers' norms: the bound that every certificate is compared with.

NumPy only: a check computes it again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..networks.layers import Array
from ..networks.network import Chain
from .restate import Matrices


def norm_product(chain: Chain | Matrices, norms: Sequence[float] | None = None) -> float:
    """Product of the layers' spectral norms and greatest absolute slopes (computed, not proven)."""
    if norms is None:
        norms = [spectral_norm(w) for w in chain.weights]
    return math.prod(norms) * math.prod(_steepest(chain))


def product_multiplier(
    chain: Chain | Matrices, norms: Sequence[float] | None = None
) -> tuple[Array, ...]:
    """The multiplier in closed form that proves the product of norms.

    With m the greatest absolute slope, ``(x - alpha v)(x - beta v) <= 0`` implies
    ``x^2 <= m^2 v^2``, and the S-procedure's factor for that is ``2 m / (beta - alpha)``.  Summing
    the layers with weights ``c_l = ||W_l||^2, c_{k-1} = c_k m_k^2 ||W_{k-1}||^2`` telescopes to
    ``||W_l x_l||^2 <= (product)^2 ||x_0||^2``, hence ``t_k = c_k m_k / (beta_k - alpha_k)``.
    """
    if norms is None:
        norms = [spectral_norm(w) for w in chain.weights]
    steepest, weight, multiplier = _steepest(chain), 1.0, []
    for k in range(len(chain.slopes) - 1, -1, -1):
        alpha, beta = float(chain.slopes[k].alpha.min()), float(chain.slopes[k].beta.max())
        weight *= norms[k + 1] ** 2
        t = weight * steepest[k] / (beta - alpha)
        multiplier.append(np.full(chain.slopes[k].alpha.shape, t))
        weight *= steepest[k] ** 2
    return tuple(multiplier[::-1])


def spectral_norm(matrix: Array) -> float:
    """Largest singular value, from the smaller Gram matrix."""
    largest = float(np.abs(matrix).max())
    if largest == 0.0:
        return 0.0
    scaled = matrix / largest
    gram = scaled @ scaled.T if len(scaled) <= scaled.shape[1] else scaled.T @ scaled
    return largest * math.sqrt(max(float(np.linalg.eigvalsh(gram)[-1]), 0.0))


def _steepest(chain: Chain | Matrices) -> list[float]:
    return [float(np.maximum(np.abs(s.alpha), np.abs(s.beta)).max()) for s in chain.slopes]
