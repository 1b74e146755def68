"""The band of the Schur complement H: every layer with itself and with the next one.

``H_ij = tr(A_i Z A_j P)`` falls off with the distance of two layers as Z and P do together.  The
band of H alone, every clique positive definite because it is a part of H, determines a positive
definite M whose inverse is block tridiagonal (``block_cholesky.completion``).  M stands in for H as
the preconditioner of conjugate gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...phases import phase
from ..lmi.block_cholesky import Band
from ..lmi.lmi_operator import LmiOperator
from .markov import Blocks, Markov

Side = tuple[Tensor | None, Tensor]


def bordered_band(op: LmiOperator, z: Markov, p: Markov) -> Band:
    """The band of H with rho as a layer of one variable before the first."""
    inner = _inner_band(op, z, p)
    (pu, pv), (zu, zv) = _first_rows(op, p.band), _first_rows(op, z.band)
    border = (zu * pv).sum(1) + (zv * pu).sum(1)
    corner = (z.band.diagonal[0] * p.band.diagonal[0]).sum().reshape(1, 1)
    return Band([corner, *inner.diagonal], [border[:, None], *inner.lower])


def _first_rows(op: LmiOperator, band: Band) -> tuple[Tensor, Tensor]:
    """``U'P`` and ``V'P`` of the first layer, input columns."""
    top, below = band.diagonal[0], band.lower[0]
    return below - op.into_u[0] @ top, below - op.into_v[0] @ top


@phase("products")
def _inner_band(op: LmiOperator, z: Markov, p: Markov) -> Band:
    """``tr(A_i Z A_j P)`` for every layer with itself and with the next one."""
    by_v = list(op.into_v)
    by_u: list[Tensor] | list[None] = list(op.into_u) if op.has_alpha else [None] * len(by_v)
    sides = list(zip(by_u, by_v, strict=True))
    diagonal, lower = [], []
    for k, here in enumerate(sides):
        diagonal.append(_hadamard(z.same(k), p.same(k), here, here))
        if k + 1 < len(sides):
            lower.append(_hadamard(z.next(k), p.next(k), sides[k + 1], here))
    return Band(diagonal, lower)


def _hadamard(z: Blocks, p: Blocks, rows: Side, columns: Side) -> Tensor:
    """``V'ZU * U'PV + U'ZV * V'PU + U'ZU * V'PV + V'ZV * U'PU`` for two layers.

    ``rows`` and ``columns`` are what U and V hold of the layers before, negated, ``None`` for
    nothing.
    """
    zuu, zuv, zvu, zvv = _forms(z, rows, columns)
    puu, puv, pvu, pvv = _forms(p, rows, columns)
    return (zvu * puv).addcmul_(zuv, pvu).addcmul_(zuu, pvv).addcmul_(zvv, puu)


def _forms(p: Blocks, rows: Side, columns: Side) -> list[Tensor]:
    """``U'PU, U'PV, V'PU, V'PV`` for two layers."""
    forms: list[Tensor] = []
    for into in rows:
        first, second = _less(p.left, into, p.before), _less(p.corner, into, p.upper)
        forms.extend(_less(second, first, None if c is None else c.T) for c in columns)
    return forms


def _less(whole: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """``whole - left right``; ``None`` is a zero matrix."""
    if left is None or right is None:
        return whole
    return torch.addmm(whole, left, right, alpha=-1.0)
