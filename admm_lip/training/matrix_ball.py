"""The spectral-norm ball of one matrix: its singular values cut, or found by a splitting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..solvers import ProjectProblem, SolverConfig, Structure, solve_project
from ..solvers.spectrum import eigenpairs_above, gram, is_below
from .kernel_ball import SINGLE
from .terms import LayerBall

# From this order on single precision is the faster one; how far inside the ball it cuts singular
# values, relatively; and how often it looks for them before all of them are found in double.
_WIDE, _ROOM, _TRIES = 100, 3e-6, 3
# By how much a matrix may be shrunk for what was missed.
_MISSED = (0.0, 1e-3)


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
    ) -> tuple[Tensor, Any, int]:
        """The singular values cut at ``radius``: in one step, exact but for the precision asked."""
        if tol >= SINGLE and min(anchor.shape) >= _WIDE:
            found, warm = _clipped_in_single(anchor, radius, warm)
            return found, warm, 1
        return _clipped_in_double(anchor, radius), None, 1


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
    return is_below(gram(matrix), radius**2)


def spectrum(matrix: Tensor) -> Spectrum:
    """Singular values and vectors of one side, from the smaller Gram matrix."""
    return _spectrum(matrix, gram(matrix))


def _spectrum(matrix: Tensor, whole: Tensor) -> Spectrum:
    squares, vectors = torch.linalg.eigh(whole)
    return Spectrum(matrix, squares, vectors, matrix.shape[0] < matrix.shape[1])


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


def _clipped_in_double(matrix: Tensor, radius: float) -> Tensor:
    whole = gram(matrix)
    return matrix if is_below(whole, radius**2) else clipped(_spectrum(matrix, whole), radius)


def _clipped_in_single(
    matrix: Tensor, radius: float, basis: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """:func:`clipped` by the vectors that single precision finds, near a basis if there is one.

    Whether nothing was missed is seen in double: of the matrix ``(I - P K P') A`` that is returned
    the Gram matrix is that of A, known already, less one of low rank.
    """
    whole, level = gram(matrix).div_(radius**2), 1.0 - _ROOM
    rough, short = whole.to(torch.float32), matrix.shape[0] < matrix.shape[1]
    for _ in range(_TRIES):
        squares, vectors, basis = eigenpairs_above(rough, level**2, basis)
        if len(squares) == 0 or float(squares[-1]) <= (1.0 + _ROOM) ** 2:
            break  # inside perhaps, where nothing may move
        known = Spectrum(matrix, squares.to(whole), vectors.to(whole), short)
        left = _gram_of_clipped(whole, known, level)
        for missed in _MISSED:
            if is_below(left, (1.0 + missed) ** 2):
                return clipped(known, level).div_(1.0 + missed), basis
    return _clipped_in_double(matrix, radius), basis


def _gram_of_clipped(whole: Tensor, known: Spectrum, level: float) -> Tensor:
    """``(I - P K P') G (I - P K P')``, with K what clipping takes from each value, relatively."""
    taken = known.vectors * (1.0 - level / known.squares.sqrt())
    image = whole @ taken
    half = image - 0.5 * known.vectors @ (taken.T @ image)
    both = torch.cat([half, known.vectors], 1), torch.cat([known.vectors, half], 1)
    return torch.addmm(whole, both[0], both[1].T, alpha=-1.0)


def spectral_norm(matrix: Tensor) -> float:
    """``||A||_2`` from the smaller Gram matrix."""
    top = float(matrix.abs().max())
    if top == 0.0:
        return 0.0
    return top * math.sqrt(max(float(torch.linalg.eigvalsh(gram(matrix / top))[-1]), 0.0))
