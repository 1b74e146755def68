"""The products of ``markov.py`` where all layers are of one width: most of them in one call each.

With ``C_k = D_kk + D_k,k+1 B_k + A_k' D_k+1,k`` only ``M_k = C_k + A_k' (M_k+1 B_k)`` waits for
the layer after it, and with everything else of ``Y_k+1,k+1`` in ``E_k`` only
``Y_k+1,k+1 = E_k + (A_k Y_kk) B_k'`` for the one before.  NumPy's products of narrow blocks take
two thirds of the time of torch's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


class Chain(NamedTuple):
    """Diagonal blocks, gains and noises of a :class:`~.markov.Markov`, ``(layers, n, n)`` each."""

    diagonal: Array
    gains: Array
    noises: Array


def band_between(z: Chain, diagonal: Tensor, lower: Tensor, p: Chain) -> tuple[Tensor, Tensor]:
    """The band of ``(Y + Y') / 2``, ``Y = Z D P``, from the band of D."""
    corner, a, b = lower.numpy(), z.gains, p.gains
    inner, ahead = _accumulated(a, diagonal.numpy(), corner, b)
    below = z.noises[1:] @ ((corner + ahead) @ p.diagonal[:-1])
    right = (z.diagonal[:-1] @ (corner.mT + a.mT @ inner[1:])) @ p.noises[1:]
    middle = z.noises @ inner @ p.noises
    middle[1:] += below @ b.mT
    middle[1:] += a @ right
    pulled = np.empty_like(below)
    for k in range(len(pulled)):
        np.matmul(a[k], middle[k], out=pulled[k])
        middle[k + 1] += pulled[k] @ b[k].T
    below += pulled
    right += middle[:-1] @ b.mT
    found = (0.5 * (middle + middle.mT), 0.5 * (below + right.mT))
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def _accumulated(a: Array, diagonal: Array, lower: Array, b: Array) -> tuple[Array, Array]:
    """``M_k``, and ``M_k+1 B_k``."""
    inner, ahead = diagonal.copy(), np.empty_like(b)
    inner[:-1] += lower.mT @ b
    inner[:-1] += a.mT @ lower
    for k in range(len(ahead) - 1, -1, -1):
        np.matmul(inner[k + 1], b[k], out=ahead[k])
        inner[k] += a[k].T @ ahead[k]
    return inner, ahead
