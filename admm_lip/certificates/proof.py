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

Chains with neurons of known slope are proven layer by layer instead (``dissipation_proof.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..float64 import U, gamma
from ..networks.layers import Array
from ..networks.network import Chain
from .claim_matrices import Matrices, functional
from .definite import SLACK, ScaledLmi, failing_block, inverse_root
from .dissipation_proof import any_known, storage_margin, storage_unproven

# Squares and products of admitted numbers neither overflow nor vanish.
PROOF_RANGE = (2.0**-400, 2.0**400)


def unproven(chain: Chain | Matrices, multiplier: Sequence[Array], lip: float) -> str | None:
    """Why ``multiplier`` does not prove that ``lip`` bounds the l2 Lipschitz constant of ``chain``.

    Args:
        chain: matrices, slope ranges and error bounds: of the network itself, or restated for
            another norm or a functional (``claim_matrices.py``).
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
        if any_known(chain):
            return storage_unproven(chain, multiplier, lip)
        lmi = scaled_lmi(chain, multiplier, lip)
        return failing_block(lmi, lmi.shift())


def rounding_margin(chain: Chain | Matrices, multiplier: Sequence[Array], lip: float) -> float:
    """How far above zero the scaled matrix must stay for the proof to succeed; 0.1 if undefined."""
    if _out_of_range(chain, multiplier, lip) is not None:
        return 0.1
    with np.errstate(all="ignore"):
        if any_known(chain):
            margin = storage_margin(chain, multiplier, lip)
        else:
            margin = scaled_lmi(chain, multiplier, lip).shift()
    return margin if margin < 0.1 else 0.1


def is_constant(chain: Chain | Matrices) -> bool:
    """Whether no input can reach the output, read off the exact zeros of the weights."""
    reached = np.ones(chain.widths[0], dtype=bool)
    for weight, error in zip(chain.weights, chain.errors, strict=True):
        links = (weight != 0.0) | (error > 0.0)
        reached = links[:, reached].any(axis=1)
    return not bool(reached.any())


def is_constant_functional(chain: Chain, direction: Array, outputs: Array) -> bool:
    """Whether ``direction' diag(outputs) f`` is constant, read off exact zeros.

    Rows of twin outputs cancel only where their scales agree; elsewhere each output that is
    looked at must be constant by itself.
    """
    matrices, looked_at = Matrices.of(chain), np.flatnonzero(direction)
    if len(set(outputs[looked_at].tolist())) <= 1:
        return is_constant(functional(matrices, direction))
    return all(is_constant(functional(matrices, np.eye(len(outputs))[i])) for i in looked_at)


def scaled_lmi(chain: Chain | Matrices, multiplier: Sequence[Array], lip: float) -> ScaledLmi:
    """Steps 1 and 2: the scaled blocks and the bound on their error."""
    base = [np.full(chain.widths[0], lip * lip), *(2.0 * t for t in multiplier)]
    base.append(np.ones(chain.widths[-1]))
    scale = [inverse_root(d) for d in base]
    diagonal: list[Array] = [d * s * s for d, s in zip(base, scale, strict=True)]
    lower, error = [], 2.0 * U
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
        error += 3.01 * U * float(np.linalg.norm(block))
        error += float(np.max(np.abs(row))) * float(np.max(scale[k])) * off
    return ScaledLmi(tuple(diagonal), tuple(lower), SLACK * error)


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
    rounding = gamma(weight.shape[0] + 5) * (2.0 + trace)
    shaken = float(np.max(scale)) * off
    norm = float(np.linalg.norm(scaled))
    stored = 2.0 * float(np.max(np.abs(middle))) * (2.0 * norm * shaken + shaken**2)
    return (term + term.T) / 2.0, SLACK * (rounding + stored)


def _out_of_range(chain: Chain | Matrices, multiplier: Sequence[Array], lip: float) -> str | None:
    low, high = PROOF_RANGE
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
