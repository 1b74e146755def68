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

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ...phases import phase
from ...problem import CertifyProblem, Slopes, Weights
from .block_cholesky import Band
from .even_blocks import clique_factors


def repaired_value(problem: CertifyProblem, band: Band) -> float:
    """``L^2`` of the repaired dual point; 0 where the band is not positive definite."""
    return float(repaired_values(problem.weights, problem.slopes, band))


@phase("repair of the dual")
def repaired_values(weights: Weights, slopes: Sequence[Slopes], band: Band) -> Tensor:
    """:func:`repaired_value` of one chain, or of each of many with a leading dimension."""
    trace = torch.diagonal(band.diagonal[0], dim1=-2, dim2=-1).sum(-1)[..., None, None]
    state, scale, sound = band.diagonal[0] / trace, 1.0 / trace, trace[..., 0, 0] > 0.0
    for w, s, (gain, rest, definite) in zip(weights, slopes, _conditionals(band), strict=False):
        middle, half = (s.alpha + s.beta) / 2.0, (s.beta - s.alpha) / 2.0
        sound, noise = sound & definite, rest * scale
        nominal = middle[..., None] * w
        off = gain - nominal  # deviation = off x_{k-1} + noise
        deviation = (off @ state * off).sum(-1) + torch.diagonal(noise, dim1=-2, dim2=-1)
        seen = (w @ state * w).sum(-1)
        factor = half * (seen / deviation.clamp(min=torch.finfo(w.dtype).tiny)).clamp(min=0).sqrt()
        step = nominal + factor[..., None] * off
        state = step @ state @ step.mT + factor[..., None] * noise * factor[..., None, :]
    value = (weights[-1] @ state * weights[-1]).sum((-2, -1))
    return torch.where(sound & (value >= 0.0) & torch.isfinite(value), value, 0.0)


def _conditionals(band: Band) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """:func:`_conditional` of every layer, side by side where the blocks stand in one tensor."""
    if isinstance(band.diagonal, Tensor) and isinstance(band.lower, Tensor):
        found = _conditional(band.diagonal[:-1], band.lower, band.diagonal[1:])
        return zip(*(part.unbind() for part in found), strict=True)
    return map(_conditional, band.diagonal[:-1], band.lower, band.diagonal[1:])


def _conditional(here: Tensor, lower: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``[here, .; lower, there]`` the gain G and the noise's covariance; whether definite."""
    pivot, below, rest, definite = clique_factors(here, lower, there)
    gain = torch.linalg.solve_triangular(pivot, below, upper=False, left=False)
    return gain, rest @ rest.mT, definite


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
