"""A floating-point proof of the matrix inequality: what runs to completion holds exactly.

To prove: ``M(L^2, W, T) >= 0`` for the real-valued weights (``solvers/lmi.py`` states M; the output
block is the identity).  The method is S. M. Rump's (Verification of positive definiteness, BIT
Numerical Mathematics 46, 2006), applied block by block:

1. **Scale.** ``S M S`` with S diagonal, powers of two, so that nothing is rounded and the diagonal
   ``L^2, 2 T_k, 1`` moves into [1/2, 2).  Call A the exact scaled matrix and F what is assembled.
2. **Assemble.** ``||A - F||_2 <= e``.  An entry ``(((alpha + beta) t s_i) W_ij) s_j`` carries three
   roundings, so a block C adds ``3.01 u ||C||_F``; ``L^2`` adds ``2 u``; a block
   ``2 W' (alpha beta T) W`` of n terms adds ``gamma_{n+4}`` times the trace of the same product in
   absolute values, which bounds its norm; merged layers add what ``Chain.errors`` says of them.
3. **Shift.** With ``c >= e + phi tr(F) + (rounding of F - c I)`` factor ``F - c I``, block by block
   from the input on.  M is block tridiagonal, so no entry of the factor sums more than
   ``p = max_k (n_{k-1} + n_k)`` products.  In whatever order these are summed, and allowing an
   extra rounding where a division is done by a reciprocal, the factor R satisfies
   ``|R R' - (F - c I)| <= gamma_{p+4} |R| |R'|``, and as the rows of R have squared norms at most
   ``f_ii / (1 - gamma)`` (Demmel 1989; Higham, Accuracy and Stability, theorem 10.5),
   ``||R R' - (F - c I)||_2 <= phi tr(F)`` with ``phi = gamma / (1 - gamma)``.
4. If every pivot is positive and finite then ``R R' >= 0``, hence
   ``A >= F - e I >= R R' + (c - e - phi tr(F)) I >= 0``.

Assumed: IEEE double arithmetic rounding to nearest (fused multiply-add and flushing of underflows
to zero are fine) and a BLAS that multiplies matrices the conventional way, not Strassen's.
``u = 2^-53`` and ``gamma_n = n u / (1 - n u)``.  Underflows are covered by ``2^-600`` per row,
which the admitted ranges of L and T allow for.  NumPy and SciPy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sl

from .layers import Array
from .network import Chain
from .restate import Matrices

_U = 2.0**-53
# Squares and products of admitted numbers neither overflow nor vanish.
_RANGE = (2.0**-400, 2.0**400)
_UNDERFLOW = 2.0**-600
# Covers the rounding of the bound itself, which sums some thousands of positive terms.
_SLACK = 1.01


@dataclass(frozen=True, eq=False)
class ScaledLmi:
    """The assembled matrix F, scaled to a diagonal near 1, and how far it is from the exact one.

    Attributes:
        diagonal: the diagonal blocks; a vector stands for a diagonal matrix.
        lower: ``lower[k]`` is block ``(k+1, k)``.
        error: bound on the spectral norm of exact minus assembled.
    """

    diagonal: tuple[Array, ...]
    lower: tuple[Array, ...]
    error: float

    def shift(self) -> float:
        """The c of the module's docstring."""
        sizes = [len(d) for d in self.diagonal]
        terms = max(a + b for a, b in zip([0, *sizes], sizes, strict=False)) + 4
        gamma = _gamma(terms)
        trace = sum(float(np.sum(_diag(d))) for d in self.diagonal)
        largest = max(float(np.max(np.abs(_diag(d)))) for d in self.diagonal)
        cholesky = gamma / (1.0 - gamma) * trace
        subtraction = 2.0 * _U * (1.0 + largest)
        return _SLACK * (self.error + cholesky + subtraction) + sum(sizes) * terms * _UNDERFLOW


def unproven(chain: Chain | Matrices, multiplier: Sequence[Array], lip: float) -> str | None:
    """Why ``multiplier`` does not prove that ``lip`` bounds the l2 Lipschitz constant of ``chain``.

    Args:
        chain: matrices, slope ranges and error bounds: of the network itself, or restated for
            another norm or a functional (``restate.py``).
        multiplier: ``(t_1, ..., t_l)``, float64, ``t_k`` of shape ``(n_k,)``.
        lip: the claimed bound; 0 is proven by structure alone (:func:`is_constant`).

    Returns:
        ``None`` when the proof of the module's docstring succeeds, else the reason, for a person.
    """
    if lip == 0.0:
        return None if is_constant(chain) else "lip is 0, but the network is not constant"
    reason = _out_of_range(chain, multiplier, lip)
    if reason is not None:
        return reason
    with np.errstate(all="ignore"):  # what overflows is not finite, and fails below
        lmi = scaled_lmi(chain, multiplier, lip)
        return _failing_block(lmi, lmi.shift())


def rounding_margin(chain: Chain | Matrices, multiplier: Sequence[Array], lip: float) -> float:
    """How far above zero the scaled matrix must stay for the proof to succeed; 0.1 if undefined."""
    if _out_of_range(chain, multiplier, lip) is not None:
        return 0.1
    with np.errstate(all="ignore"):
        margin = scaled_lmi(chain, multiplier, lip).shift()
    return margin if margin < 0.1 else 0.1


def is_constant(chain: Chain | Matrices) -> bool:
    """Whether no input can reach the output, read off the exact zeros of the weights."""
    reached = np.ones(chain.widths[0], dtype=bool)
    for weight, error in zip(chain.weights, chain.errors, strict=True):
        links = (weight != 0.0) | (error > 0.0)
        reached = links[:, reached].any(axis=1)
    return not bool(reached.any())


def scaled_lmi(chain: Chain | Matrices, multiplier: Sequence[Array], lip: float) -> ScaledLmi:
    """Steps 1 and 2: the scaled blocks and the bound on their error."""
    base = [np.full(chain.widths[0], lip * lip), *(2.0 * t for t in multiplier)]
    base.append(np.ones(chain.widths[-1]))
    scale = [_inverse_root(d) for d in base]
    diagonal: list[Array] = [d * s * s for d, s in zip(base, scale, strict=True)]
    lower, error = [], 2.0 * _U
    for k, (weight, off) in enumerate(zip(chain.weights, chain.errors, strict=True)):
        row = scale[k + 1]
        if k < len(multiplier):
            alpha, beta = chain.slopes[k]
            row = (alpha + beta) * multiplier[k] * row
            term, excess = _product_term(weight, alpha * beta * multiplier[k], scale[k], off)
            error += excess
            if term is not None:
                diagonal[k] = np.diag(diagonal[k]) + term
        block = (row[:, None] * weight) * scale[k]
        lower.append(-block)
        error += 3.01 * _U * float(np.linalg.norm(block))
        error += float(np.max(np.abs(row))) * float(np.max(scale[k])) * off
    return ScaledLmi(tuple(diagonal), tuple(lower), _SLACK * error)


def _product_term(
    weight: Array, middle: Array, scale: Array, off: float
) -> tuple[Array | None, float]:
    """``S 2 W' diag(alpha beta t) W S`` and a bound on its error; ``None`` where it is zero.

    Adding it to the diagonal rounds once more, at most ``u (2 + trace)``.
    """
    if not np.any(middle):
        return None, 0.0
    scaled = weight * scale
    term = scaled.T @ ((2.0 * middle)[:, None] * scaled)
    trace = float(np.sum(2.0 * np.abs(middle)[:, None] * scaled**2))
    rounding = _gamma(weight.shape[0] + 5) * (2.0 + trace)
    shaken = float(np.max(scale)) * off
    norm = float(np.linalg.norm(scaled))
    stored = 2.0 * float(np.max(np.abs(middle))) * (2.0 * norm * shaken + shaken**2)
    return (term + term.T) / 2.0, _SLACK * (rounding + stored)


def _failing_block(lmi: ScaledLmi, shift: float) -> str | None:
    """Step 3: the Cholesky factorisation of ``F - shift I``, from the input to the output."""
    if not shift < 0.1:
        return f"the rounding margin is {shift:.2g}, too large for a proof in double precision"
    half: Array | None = None
    for k, block in enumerate(lmi.diagonal):
        if half is None and block.ndim == 1:  # a diagonal block of its own: its factor is known
            pivots = block - shift
            if not (np.isfinite(pivots).all() and pivots.min() > 0.0):
                return _not_definite(k)
            half = lmi.lower[0].T / np.sqrt(pivots)[:, None]
            continue
        schur: Array = np.diag(block) if block.ndim == 1 else block.copy()
        schur[np.diag_indices_from(schur)] -= shift
        if half is not None:
            schur = schur - half.T @ half
        factor = _cholesky(schur)
        if factor is None:
            return _not_definite(k)
        if k < len(lmi.lower):
            half = sl.solve_triangular(factor, lmi.lower[k].T, lower=True, check_finite=False)
    return None


def _cholesky(matrix: Array) -> Array | None:
    """Lower factor, or ``None`` unless every pivot is positive and every entry finite."""
    if not np.isfinite(matrix).all():
        return None
    try:
        factor = np.asarray(np.linalg.cholesky(matrix), dtype=np.float64)
    except np.linalg.LinAlgError:
        return None
    sound = bool(np.isfinite(factor).all()) and bool((np.diag(factor) > 0.0).all())
    return factor if sound else None


def _not_definite(k: int) -> str:
    return f"the matrix inequality does not hold through rounding (it fails in block {k})"


def _out_of_range(chain: Chain | Matrices, multiplier: Sequence[Array], lip: float) -> str | None:
    low, high = _RANGE
    if not (math.isfinite(lip) and low <= lip <= high):
        return f"lip is {lip!r}; a proof needs a number from 2^-400 to 2^400"
    if len(multiplier) != len(chain.slopes):
        return f"{len(chain.slopes)} hidden layers, but {len(multiplier)} multipliers"
    for k, t in enumerate(multiplier):
        if t.shape != chain.slopes[k].alpha.shape:
            return f"multiplier[{k}] has shape {t.shape}, not {chain.slopes[k].alpha.shape}"
        if not (np.isfinite(t).all() and (t >= low).all() and (t <= high).all()):
            return f"multiplier[{k}] has an entry outside 2^-400 to 2^400"
    return None


def _inverse_root(values: Array) -> Array:
    """Powers of two s with ``s^2 values`` in [1/2, 2)."""
    return np.asarray(np.ldexp(1.0, -(np.frexp(values)[1] // 2)), dtype=np.float64)


def _gamma(terms: int) -> float:
    return terms * _U / (1.0 - terms * _U)


def _diag(block: Array) -> Array:
    return block if block.ndim == 1 else np.diag(block)
