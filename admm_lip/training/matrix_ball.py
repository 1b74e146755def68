"""The spectral-norm ball of one matrix: its singular values cut, or found by a splitting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..solvers import ProjectProblem, SolverConfig, Structure, solve_project
from .kernel_ball import SINGLE
from .terms import LayerBall

# From this order on single precision is the faster one; how far inside the ball it cuts singular
# values, relatively.
_WIDE, _ROOM = 100, 3e-6


class Spectrum(NamedTuple):
    """A matrix, the squares of its singular values in rising order, and the vectors of one side.

    ``short`` says whether the vectors stand on the side of the rows.
    """

    matrix: Tensor
    squares: Tensor
    vectors: Tensor
    short: bool


class DenseBall(LayerBall):
    """Matrices by their spectral norm."""

    def norm(self, weight: Tensor) -> float:
        """The largest singular value."""
        return spectral_norm(weight)

    def nearest(
        self, anchor: Tensor, radius: float, tol: float, warm: Any = None
    ) -> tuple[Tensor, None, int]:
        """The singular values cut at ``radius``: in one step, exact but for the precision asked."""
        rough = tol >= SINGLE and min(anchor.shape) >= _WIDE
        found = _clipped_in_single(anchor, radius) if rough else None
        if found is None and not is_inside(anchor, radius):
            found = clipped(spectrum(anchor), radius)
        return anchor if found is None else found, None, 1


DENSE = DenseBall()


@dataclass(frozen=True, eq=False)
class HeldBall(LayerBall):
    """Matrices by their spectral norm, of which some entries stay.

    Attributes:
        mask: ``True`` where an entry stays at the anchor's.
    """

    mask: Tensor

    def norm(self, weight: Tensor) -> float:
        """The largest singular value."""
        return spectral_norm(weight)

    def nearest(
        self, anchor: Tensor, radius: float, tol: float, warm: Any = None
    ) -> tuple[Tensor, Any, int]:
        """By the projection of a single affine map."""
        if is_inside(anchor, radius):
            return anchor, warm, 1
        structure = (Structure(held=self.mask),)
        problem = ProjectProblem((anchor,), (), (), bound=radius, structure=structure)
        found = solve_project(problem, SolverConfig(tol=tol), warm=warm)
        return found.weights[0], found.warm, found.iterations


def is_inside(matrix: Tensor, radius: float) -> bool:
    """Whether ``||A||_2 < radius``, by one Cholesky factorisation."""
    slack = _gram(matrix).neg_()
    slack.diagonal().add_(radius**2)
    return int(torch.linalg.cholesky_ex(slack)[1]) == 0


def spectrum(matrix: Tensor) -> Spectrum:
    """Singular values and vectors of one side, from the smaller Gram matrix."""
    squares, vectors = torch.linalg.eigh(_gram(matrix))
    return Spectrum(matrix, squares, vectors, matrix.shape[0] <= matrix.shape[1])


def clipped(found: Spectrum, radius: float) -> Tensor:
    """The matrix with its singular values cut at ``radius``: the nearest one in that ball."""
    above = int((found.squares > radius**2).sum())
    if above == 0:
        return found.matrix
    part = found.vectors[:, -above:]
    taken = part * (1.0 - radius / found.squares[-above:].sqrt())
    if found.short:
        return torch.addmm(found.matrix, taken, part.T @ found.matrix, alpha=-1.0)
    return torch.addmm(found.matrix, found.matrix @ part, taken.T, alpha=-1.0)


def _clipped_in_single(matrix: Tensor, radius: float) -> Tensor | None:
    """:func:`clipped` where single precision finds it, checked in double, else ``None``."""
    known = spectrum((matrix / radius).to(torch.float32))
    if float(known.squares[-1]) <= (1.0 + _ROOM) ** 2:  # inside perhaps, where nothing may move
        return None
    found = radius * clipped(known, 1.0 - _ROOM).to(matrix.dtype)
    return found if is_inside(found, radius) else None


def spectral_norm(matrix: Tensor) -> float:
    """``||A||_2`` from the smaller Gram matrix."""
    top = float(matrix.abs().max())
    if top == 0.0:
        return 0.0
    return top * math.sqrt(max(float(torch.linalg.eigvalsh(_gram(matrix / top))[-1]), 0.0))


def _gram(matrix: Tensor) -> Tensor:
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
