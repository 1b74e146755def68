"""Centring steps that are linear in depth: the Newton equations without their N x N matrix.

With rho held, ``centring.py`` maximises ``logdet S(rho, t)``: ``H dt = g`` with
``H_ij = tr(A_i P A_j P)``, ``P = S^{-1}`` and ``g_i = tr(A_i P)``.  Neither side needs more than
blocks near the diagonal:

* ``P``'s band changes by the band of ``-P dS P``, which the derivative of the block elimination
  gives; its adjoint is ``-H dt``.  One product costs a few matrix products per layer.
* H falls off with the distance of two layers as the square of P does.  The band of H alone, every
  clique positive definite because it is a part of H, determines a positive definite M whose
  inverse is block tridiagonal (``block_cholesky.completion``).  M stands in for H as the
  preconditioner of conjugate gradients, which need about 5 products at the first steps and 10 at
  the last ones, whatever the depth.

The directions are inexact (Dembo, Eisenstat and Steihaug, SIAM J. Numer. Anal. 19, 1982); the
last step, whose Z has to be exactly feasible, is left to ``centring.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ...phases import phase
from ..lmi.block_cholesky import Band, Factor, factorize, factorize_cliques, inverse_band
from ..lmi.checkpoints import Stage, Trouble
from ..lmi.lmi_operator import LmiOperator
from ..lmi.progress import Progress
from ..lmi.step_length import slack_step
from .conjugate_gradients import Product, conjugate_gradients, solve_completed
from .markov import Blocks, Markov, markov

Side = tuple[Tensor | None, Tensor]

# Close enough to the centre for one dense step to finish.
_NEAR = 0.5
_MAX_STEPS = 300
# How well a direction solves its equation, and the products it may cost.
_ACCURACY = 0.15
_MAX_PRODUCTS = 60
# A step is shortened by this factor, down to this share of what was tried first.
SHRINK, LEAST_SHARE = 0.6, 1e-9
_SHORT_OF_BOUNDARY = 0.5
_ROUGH = 0.1
# Below these the dense equations are cheaper.
_LEAST_LAYERS = 6
_LEAST_WIDTH = 40


def worthwhile(op: LmiOperator) -> bool:
    """Whether the network is deep and wide enough for these steps to be the cheaper ones."""
    layers = len(op.sizes) - 1
    return (
        op.free is None and layers >= _LEAST_LAYERS and sum(op.sizes[1:]) >= _LEAST_WIDTH * layers
    )


def approach(op: LmiOperator, y: Tensor, run: Progress) -> Tensor:
    """Go from a strictly feasible ``y`` to a point near the central path at the same rho.

    Returns the last point reached; where the steps fail that is simply not yet the centre.
    """
    factor = factorize(op.slack(y))
    if factor is None:
        run.checkpoint(Stage.APPROACH, Trouble.NO_FACTOR)
        return y
    for _ in range(_MAX_STEPS):
        moved = _nearer(op, y, factor, run)
        if moved is None:
            return y
        if isinstance(moved, Trouble):
            run.checkpoint(Stage.APPROACH, moved)
            return y
        y, factor = moved
        run.centring += 1
        run.count(y)
    run.checkpoint(Stage.APPROACH, Trouble.SLOW)
    return y


def _nearer(
    op: LmiOperator, y: Tensor, factor: Factor, run: Progress
) -> tuple[Tensor, Factor] | Trouble | None:
    """One step; ``None`` where there is no need of it."""
    if not run.may_go_on(approaches=1):
        return Trouble.LIMIT
    found = run.timed("approaches", partial(newton_direction, op, factor))
    if isinstance(found, Trouble):
        return found
    return None if found[1] < _NEAR else _damped(op, y, factor, *found, run)


def newton_direction(op: LmiOperator, factor: Factor) -> tuple[Tensor, float] | Trouble:
    """``dt`` with ``H dt = g`` nearly, and the Newton decrement ``sqrt(g' dt)``."""
    band = inverse_band(factor)
    g = op.adjoint(band)[1:]
    inverse = markov(band)
    if inverse is None:
        return Trouble.NO_FACTOR
    near = hessian_band(op, inverse, inverse)
    cliques = factorize_cliques(near)
    if cliques is None or not bool(torch.isfinite(g).all()):
        return Trouble.NO_FACTOR
    product, precondition = (
        hessian_product(op, factor, band),
        partial(solve_completed, near, cliques),
    )
    dt = conjugate_gradients(product, precondition, g, _ACCURACY, _MAX_PRODUCTS).x
    squared = float(torch.dot(g, dt))
    return (dt, squared**0.5) if 0.0 <= squared < float("inf") else Trouble.ROUNDING


def hessian_product(op: LmiOperator, factor: Factor, band: Band) -> Product:
    """``dt -> H dt``: minus the adjoint of the change of the band of ``P = S^{-1}``.

    With ``X_k`` the Schur complements of the elimination from the first block on and
    ``G_k = S_{k+1,k} X_k^{-1}``: ``P_k+1,k = -P_k+1 G_k`` and ``P_k = X_k^{-1} + G_k' P_k+1 G_k``.
    """
    inverses = [i.T @ i for i in factor.inverses]
    gains = [b @ i for b, i in zip(factor.below, factor.inverses, strict=False)]

    def product(dt: Tensor) -> Tensor:
        ds = op.direction(torch.cat([dt.new_zeros(1), dt]))
        dx, dgains = _eliminated(ds, inverses, gains)
        change = -(inverses[-1] @ dx[-1] @ inverses[-1])
        diagonal, lower = [change], []
        for k in range(len(gains) - 1, -1, -1):
            carried = change @ gains[k]
            lower.append(torch.addmm(carried, band.diagonal[k + 1], dgains[k]).neg_())
            turned = dgains[k].T @ band.lower[k]
            change = (gains[k].T @ carried).sub_(inverses[k] @ dx[k] @ inverses[k])
            change.sub_(turned).sub_(turned.T)
            diagonal.append(change)
        return -op.adjoint(Band(diagonal[::-1], lower[::-1]))[1:]

    return product


def _eliminated(
    ds: Band, inverses: Sequence[Tensor], gains: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Changes of the Schur complements ``X_k`` and of the gains ``G_k``."""
    dx, dgains = [ds.diagonal[0]], []
    for k, below in enumerate(ds.lower):
        rest = torch.addmm(below, gains[k], dx[-1], alpha=-1.0)
        dgains.append(rest @ inverses[k])
        across = below @ gains[k].T
        dx.append(ds.diagonal[k + 1] - across - gains[k] @ rest.T)
    return dx, dgains


@phase("products")
def hessian_band(op: LmiOperator, z: Markov, p: Markov) -> Band:
    """``tr(A_i Z A_j P)`` for every layer with itself and with the next one."""
    by_v = list(op.into_v)
    by_u: list[Tensor] | list[None] = list(op.into_u) if op.has_alpha else [None] * len(by_v)
    sides = list(zip(by_u, by_v, strict=True))
    diagonal, lower = [], []
    for k, here in enumerate(sides):
        diagonal.append(_hadamard(z.same(k), p.same(k), z is p, here, here))
        if k + 1 < len(sides):
            lower.append(_hadamard(z.next(k), p.next(k), z is p, sides[k + 1], here))
    return Band(diagonal, lower)


def _hadamard(z: Blocks, p: Blocks, equal: bool, rows: Side, columns: Side) -> Tensor:
    """``V'ZU * U'PV + U'ZV * V'PU + U'ZU * V'PV + V'ZV * U'PU`` for two layers.

    ``rows`` and ``columns`` are what U and V hold of the layers before, negated, ``None`` for
    nothing.
    """
    zuu, zuv, zvu, zvv = _forms(z, rows, columns)
    if equal:
        return (zvu * zuv).addcmul_(zuu, zvv).mul_(2.0)
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


def _damped(
    op: LmiOperator, y: Tensor, factor: Factor, dt: Tensor, decrement: float, run: Progress
) -> tuple[Tensor, Factor] | Trouble:
    """Shorten the step until S stays positive definite and its determinant grows.

    Never more than half way to the boundary: from close to it every step back only doubles the
    distance.
    """
    dy = torch.cat([dt.new_zeros(1), dt])
    longest = slack_step(factor, op.direction(dy), _ROUGH)
    most = min(1.0, 4.0 / (1.0 + decrement), _SHORT_OF_BOUNDARY * longest)

    def move(length: float) -> tuple[Tensor, Factor] | None:
        found = factorize(op.slack(y + length * dy))
        grown = found is not None and found.logdet > factor.logdet
        return (y + length * dy, found) if found is not None and grown else None

    return run.shortened(Stage.APPROACH, most, SHRINK, LEAST_SHARE * most, move)
