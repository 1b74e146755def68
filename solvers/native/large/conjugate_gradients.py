"""Conjugate gradients for several right sides of one matrix, and the preconditioner of a band.

The directions ``d_i`` that a solve has searched are conjugate, ``d_i' H d_j = 0``, and their images
``H d_i`` are known.  For the next right side b they give

    x = sum_i d_i (d_i' b) / (d_i' H d_i)

without a product, and the solve goes on among what is conjugate to them (J. Erhel and
F. Guyomarc'h, SIAM J. Matrix Anal. 21, 2000): 1 to 3 products more where the first side took 12.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...phases import phase
from ..lmi.block_cholesky import Band, Cliques

Product = Callable[[Tensor], Tensor]


class Searched(NamedTuple):
    """Conjugate directions and their images, one a row of ``(count, N)``, and ``d' H d``."""

    directions: Tensor
    images: Tensor
    curvatures: Tensor

    def coefficients(self, rhs: Tensor) -> Tensor:
        """Of the directions in the solution nearest to that of ``rhs``."""
        return (self.directions @ rhs) / self.curvatures

    def without(self, x: Tensor) -> Tensor:
        """The part of x that is conjugate to the directions."""
        return x - self.directions.T @ ((self.images @ x) / self.curvatures)


class Solved(NamedTuple):
    """A solution, and the directions that were searched for it, new ones alone."""

    x: Tensor
    searched: Searched


@phase("iterative solves")
def conjugate_gradients(
    product: Product,
    precondition: Product,
    rhs: Tensor,
    accuracy: float,
    most: int,
    known: Searched | None = None,
) -> Solved:
    """``H^{-1} rhs`` until the preconditioned residual has fallen to ``accuracy``.

    Args:
        product: ``x -> H x``, symmetric and positive definite.
        precondition: what stands in for its inverse.
        rhs: the right side, shape ``(N,)``.
        accuracy: of the residual, relative to ``rhs``, in the norm of the preconditioner.
        most: no more products than that.
        known: what an earlier solve with the same H has searched.
    """
    x, residual = torch.zeros_like(rhs), rhs
    better = precondition(residual)
    enough = accuracy**2 * float(torch.dot(residual, better))
    if known is not None:
        share = known.coefficients(rhs)
        x, residual = known.directions.T @ share, rhs - known.images.T @ share
        better = known.without(precondition(residual))
    left, direction = float(torch.dot(residual, better)), better
    found: list[tuple[Tensor, Tensor, float]] = []
    while left > enough and len(found) < most:
        image = product(direction)
        curvature = float(torch.dot(direction, image))
        if not curvature > 0.0:  # rounding
            break
        found.append((direction, image, curvature))
        x = x + (left / curvature) * direction
        residual = residual - (left / curvature) * image
        better = precondition(residual)
        better = better if known is None else known.without(better)
        now = float(torch.dot(residual, better))
        direction, left = better + (now / left) * direction, now
    return Solved(x, _together(found, rhs))


def _together(found: Sequence[tuple[Tensor, Tensor, float]], like: Tensor) -> Searched:
    rows = like.new_empty(2, len(found), len(like))
    for i, (direction, image, _) in enumerate(found):
        rows[0, i], rows[1, i] = direction, image
    return Searched(rows[0], rows[1], like.new_tensor([curvature for *_, curvature in found]))


def solve_completed(band: Band, cliques: Cliques, rhs: Tensor) -> Tensor:
    """``M^{-1} rhs`` for the completion M of a band of two blocks or more with these cliques."""
    parts = torch.split(rhs, [d.shape[0] for d in band.diagonal])
    halves = [torch.mv(i, r) for (i, _), r in zip(cliques.inverses, parts, strict=False)]
    out = [torch.mv(cliques.inverses[0][0].T, halves[0])]
    for k, (pivot, rest) in enumerate(cliques.inverses):
        left = torch.addmv(parts[k + 1], cliques.below[k], halves[k], alpha=-1.0)
        out.append(torch.mv(rest.T, torch.mv(rest, left)))
        back = torch.mv(cliques.below[k].T, out[k + 1])
        out[k] = torch.addmv(out[k], pivot.T, back, alpha=-1.0)
    return torch.cat(out)
