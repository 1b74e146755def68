"""The transposed chain: the same bound, another size.

Reading a network from its outputs to its inputs, ``W_k'`` in reversed order, leaves the optimal
bound as it is.  If ``T`` proves L for the network then

    T'_k = L^2 (beta - alpha)^-2 T_k^{-1}

proves it for the transposed one.  For slopes [0, 1] this is the congruence by ``T_k^{-1}`` on the
hidden blocks followed by a scaling; in general it is the duality of dissipation inequalities, in
which a supply rate is replaced by its inverse.  After the reduction of wide ends the LMI has order
``min(n_0, n_1) + N``, so a classifier is best read from its few outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...problem import CertifyProblem, Multiplier, Slopes

# The multiplier of a neuron whose slope is known does not survive the inversion.
_NARROW = 1e-6


def transposed(problem: CertifyProblem) -> CertifyProblem:
    """The chain read backwards."""
    weights = tuple(w.T.contiguous() for w in reversed(problem.weights))
    return CertifyProblem(weights, tuple(reversed(problem.slopes)))


def inverted(problem: CertifyProblem, multiplier: Multiplier, lip_sq: float) -> Multiplier:
    """What proves ``lip_sq`` for ``transposed(problem)``, from what does for ``problem``."""
    return inverse_slopes(problem.slopes, multiplier, lip_sq)


def inverse_slopes(
    slopes: Sequence[Slopes], multiplier: Sequence[Tensor], lip_sq: float | Tensor
) -> Multiplier:
    """:func:`inverted` by the slopes alone; ``lip_sq`` of chains side by side is a column."""
    pairs = zip(slopes, multiplier, strict=True)
    return tuple(lip_sq / ((s.beta - s.alpha) ** 2 * t) for s, t in pairs)[::-1]


def invertible(problem: CertifyProblem) -> bool:
    """Whether no slope is known so well that its multiplier would overflow."""
    return all(
        bool((s.beta - s.alpha > _NARROW * s.beta.abs().maximum(s.alpha.abs())).all())
        for s in problem.slopes
    )


def order(problem: CertifyProblem) -> int:
    """Order of the LMI once its input side is reduced."""
    widths = problem.widths
    return min(widths[0], widths[1]) + sum(widths[1:-1])
