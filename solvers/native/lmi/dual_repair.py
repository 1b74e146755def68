"""A feasible dual point from any positive definite band, hence a proven lower bound.

The dual of the certification problem is

    maximise tr(W_l Z_ll W_l')   subject to   Z >= 0,   tr Z_00 = 1,   u_i' Z v_i = 0.

Read Z as a covariance: ``x_k`` is the signal of layer k, ``z = W x_{k-1}`` what its neurons see.
With ``m = (alpha + beta)/2`` and ``h = (beta - alpha)/2`` the constraint of neuron i says

    E (x_i - m_i z_i)^2 = h_i^2 E z_i^2.

So keep the conditional law of the layers as it is (``x_k = G x_{k-1} + noise``, which a band alone
defines) and, layer by layer, multiply the deviation ``x_i - m_i z_i`` by the one factor that makes
this exact.  Every step keeps the covariance positive semidefinite, never fails, and costs n^3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...phases import phase
from ...problem import CertifyProblem
from .block_cholesky import Band, factorize_cliques


@phase("repair of the dual")
def repaired_value(problem: CertifyProblem, band: Band) -> float:
    """``L^2`` of the repaired dual point; 0 where the band is not positive definite."""
    cliques = factorize_cliques(band)
    if cliques is None:
        return 0.0
    state = band.diagonal[0] / torch.diagonal(band.diagonal[0]).sum()
    scale = 1.0 / torch.diagonal(band.diagonal[0]).sum()
    for k, slopes in enumerate(problem.slopes):
        w = problem.weights[k]
        middle, half = (slopes.alpha + slopes.beta) / 2.0, (slopes.beta - slopes.alpha) / 2.0
        gain = torch.linalg.solve_triangular(
            cliques.pivots[k], cliques.below[k], upper=False, left=False
        )
        noise = cliques.rest[k] @ cliques.rest[k].T * scale
        nominal = middle[:, None] * w
        off = gain - nominal  # deviation = off x_{k-1} + noise
        deviation = (off @ state * off).sum(1) + torch.diagonal(noise)
        seen = (w @ state * w).sum(1)
        factor = half * (seen / deviation.clamp(min=torch.finfo(w.dtype).tiny)).clamp(min=0).sqrt()
        step = nominal + factor[:, None] * off
        state = step @ state @ step.T + factor[:, None] * noise * factor
    w = problem.weights[-1]
    value = float((w @ state * w).sum())
    return value if 0.0 <= value < float("inf") else 0.0


def reachable_band(problem: CertifyProblem, share: float = 0.5) -> Band:
    """A strictly feasible band known in closed form, from independent noise per neuron.

    ``x_k = m z + share (h z) + noise`` with the noise's variance ``(1 - share^2) h^2 E z^2``.
    """
    n = problem.weights[0].shape[1]
    state = torch.eye(n).to(problem.weights[0]) / n
    diagonal: list[Tensor] = [state]
    lower: list[Tensor] = []
    for w, slopes in zip(problem.weights, problem.slopes, strict=False):
        middle, half = (slopes.alpha + slopes.beta) / 2.0, (slopes.beta - slopes.alpha) / 2.0
        gain = (middle + share * half)[:, None] * w
        seen = (w @ state * w).sum(1)
        lower.append(gain @ state)
        state = lower[-1] @ gain.T + torch.diag((1.0 - share**2) * half**2 * seen)
        diagonal.append(state)
    return Band(diagonal, lower)
