"""Exact reduction of a projection whose inputs (or outputs) outnumber their neighbours.

The LMI sees ``W_0`` only through ``W_0 W_0'`` and the distance is Frobenius, so with orthonormal
rows Q spanning the rows of the anchor, ``V_0 = R Q``, the nearest point is ``W_0 = W_R Q`` where
``W_R`` solves the problem with R in the place of ``V_0``: 784 inputs become n_1.  Likewise
``V_l = P R`` on the last layer where the outputs outnumber the last hidden layer.  Layers with a
metric, ties or held entries are left alone, because there the distance is not invariant.

R comes from the Cholesky factor of ``V_0 V_0'`` (its diagonal positive, so that R moves
continuously with the anchor and restart data of the reduced problem stays good from one anchor to
the next); where that factor is too ill-conditioned to give orthonormal rows, from a QR.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .phases import phase
from .problem import ProjectProblem, Weights
from .spectrum import gram

# Q = R^{-1} V loses about cond(R)^2 units in the last place of its orthogonality.
SAFE_DIAGONAL = 1e-2


@dataclass(frozen=True, eq=False)
class RowFactor:
    """``V = R Q``: R square and lower triangular, its diagonal >= 0; Q with orthonormal rows.

    Attributes:
        factor: R.
        basis: Q, or where ``implicit`` the matrix V itself: then ``Q = R^{-1} V`` is never formed.
        implicit: whether ``basis`` is V.
    """

    factor: Tensor
    basis: Tensor
    implicit: bool

    def times_rows(self, square: Tensor) -> Tensor:
        """``square @ Q``."""
        if not self.implicit:
            return square @ self.basis
        half: Tensor = torch.linalg.solve_triangular(self.factor, square, upper=False, left=False)
        return half @ self.basis


@dataclass(frozen=True, eq=False)
class ReducedProject:
    """A smaller projection and the way back.

    Attributes:
        problem: the reduced problem (the given one where there is nothing to reduce).
        first: the factors of ``V_0``, or ``None`` where it is kept.
        last: the factors of ``V_l'``, or ``None`` where it is kept.
    """

    problem: ProjectProblem
    first: RowFactor | None = None
    last: RowFactor | None = None

    def lift(self, weights: Weights) -> Weights:
        """Weights of the given problem from weights of the reduced one."""
        lifted = list(weights)
        if self.first is not None:
            lifted[0] = self.first.times_rows(lifted[0])
        if self.last is not None:
            lifted[-1] = self.last.times_rows(lifted[-1].T).T.contiguous()
        return tuple(lifted)


@phase("set-up")
def reduce_project(problem: ProjectProblem) -> ReducedProject:
    """Reduce the first and the last layer where they are plain and it makes them smaller.

    Example:
        >>> import torch
        >>> from admm_lip.solvers.problem import ProjectProblem
        >>> wide = torch.ones(2, 50, dtype=torch.float64)
        >>> reduced = reduce_project(ProjectProblem((wide,), (), (), bound=1.0))
        >>> tuple(reduced.problem.anchor[0].shape)
        (2, 2)
    """
    anchor = list(problem.anchor)
    first = last = None
    if _plain(problem, 0) and anchor[0].shape[1] > anchor[0].shape[0]:
        first = row_factor(anchor[0])
        anchor[0] = first.factor
    if _plain(problem, -1) and anchor[-1].shape[0] > anchor[-1].shape[1]:
        last = row_factor(anchor[-1].T)
        anchor[-1] = last.factor.T.contiguous()
    if first is None and last is None:
        return ReducedProject(problem)
    return ReducedProject(replace(problem, anchor=tuple(anchor)), first, last)


def row_factor(wide: Tensor) -> RowFactor:
    """Factors of a matrix of any rank with at least as many columns as rows."""
    factor, info = torch.linalg.cholesky_ex(gram(wide.T))
    diagonal = factor.diagonal()
    if int(info) == 0 and float(diagonal.min()) > SAFE_DIAGONAL * float(diagonal.max()):
        return RowFactor(factor, wide, implicit=True)
    columns, upper = torch.linalg.qr(wide.T)
    signs = torch.where(upper.diagonal() < 0, -1.0, 1.0).to(wide.dtype)
    factor = (signs[:, None] * upper).T.contiguous()
    return RowFactor(factor, (columns * signs).T.contiguous(), implicit=False)


def _plain(problem: ProjectProblem, layer: int) -> bool:
    return not problem.structure or problem.structure[layer].is_plain
