"""The check of a certificate in exact arithmetic: slow, and with nothing to round.

What ``verify`` proves in floating point with a margin for rounding, this proves in whole numbers.
Every stored float is a dyadic rational, so the matrices of the network, the multiplier and the
bound are exact rationals; none of ``verify``'s bounds on rounding, nor its matrices, enters here.

To prove, with x_0 the input, x_{k+1} the output of hidden layer k and t_k its multiplier,

    x_0' D x_0 - |W_l x_l|^2 + 2 sum_k (x_{k+1} - a W_k x_k)' T_k (x_{k+1} - b W_k x_k)  >=  0,

where a and b are the ends of the slope range.  The sum is never positive on the network's own
values, so ``|W_l x_l|^2 <= x_0' D x_0``, and D is such that this says what is claimed: ``L^2 S^2``
for l2, with S the input scales; ``2 T_0 S^2`` with ``2 tr T_0 <= L^2`` for linf, where ``x_0' D
x_0`` is at most ``L^2`` times the square of the largest scaled entry.  A linear functional of the
outputs has its row in place of ``W_l``.

Every step that makes the form smaller is exact: the output is eliminated as it stands; an input
without a square term of its own by ``C Q C'``; another one, if it is the longer side, by the
substitution ``x_0 = Q W_0' y``, which reaches all of x_0 that the rest of the form sees.  Q is
``D^-1``, or dyadic numbers above it, which prove the claim for a smaller D.

Small forms are decided by fraction-free elimination (E. H. Bareiss, 1968), semidefinite ones
included; larger ones in whole multiples of 2^-256 with the rounding taken off beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CertificateError
from ..networks.activations import ACTIVATIONS, SlopeRange
from ..networks.network import LayerSpec, Network
from ..networks.sorting import DIFFERENCE, HALF_ABS, half_abs_slopes
from .certificate import AnyCertificate, Certificate, FunctionalBound
from .claim_matrices import scales_of
from .document import LayerSlopes
from .exact_network import Rational, Whole, diagonal, exact_chain, identity
from .torus.unrolled import unrolled
from .verify import check_belongs, check_outputs

# Unknowns up to which a form is decided, and up to which it is treated at all.
_DECIDED = 24
_LARGEST = 600
_BITS = 256
# Bits of the numbers above the inverses of D.
_INVERSE_BITS = 128


@dataclass(frozen=True, eq=False)
class Claim:
    """One bound to prove.

    Attributes:
        name: put before the fields in errors.
        lip: the bound.
        multiplier: of the hidden layers.
        weights: ``W_0, ..., W_l``, the last one with the functional taken.
        square: the diagonal of D.
        inverse: the diagonal of Q.
    """

    name: str
    lip: float
    multiplier: tuple[tuple[float, ...], ...]
    weights: tuple[Rational, ...]
    square: Rational
    inverse: Rational


def exact_check(network: Network, certificate: AnyCertificate) -> None:
    """Prove in exact arithmetic every bound of a certificate for all inputs.

    Args:
        network: at most some hundred hidden neurons; the time grows with their cube.
        certificate: of any kind but local, for l2 or linf, in any units; multipliers per channel
            are those of every pixel.

    Raises:
        CertificateError: where the certificate is of another network, norm, kind or units, states
            other slopes, or does not prove its bounds; or where the network is too large.
    """
    check_belongs(certificate, network)
    certificate = unrolled(network, certificate)
    weights, activations = exact_chain(network)
    _check_slopes(certificate.slopes, activations)
    for claim in _claims(certificate, tuple(weights)):
        _check_claim(claim, activations)


def _claims(certificate: AnyCertificate, weights: tuple[Rational, ...]) -> Iterator[Claim]:
    """What is to be proven, one claim per bound."""
    inputs, outputs = weights[0].over.shape[1], weights[-1].over.shape[0]
    scale_in, scale_out = scales_of(certificate.units, inputs, outputs)
    scale = Rational.of(scale_in)
    weights = (*weights[:-1], Rational.of(np.diag(scale_out)) @ weights[-1])
    if isinstance(certificate, Certificate):
        yield _claim("", certificate, certificate.norm, scale, weights)
        return
    check_outputs(certificate, outputs)
    for k, bound in enumerate(certificate.bounds):
        last = Rational.of(np.array([bound.direction])) @ weights[-1]
        name, own = f"bounds[{k}].", (*weights[:-1], last)
        yield _claim(name, bound, certificate.norm, scale, own)


def _claim(
    name: str,
    bound: Certificate | FunctionalBound,
    norm: str,
    scale: Rational,
    weights: tuple[Rational, ...],
) -> Claim:
    """One claim; for linf the multiplier of the inputs says what D is."""
    lip = Rational.of(np.array(bound.lip))
    layers = [("input", scale.over.shape[0])] if norm == "linf" else []
    layers += [("hidden", w.over.shape[0]) for w in weights[:-1]]
    given = [len(t) for t in bound.multiplier]
    if given != [n for _, n in layers] and bound.lip != 0.0:
        raise CertificateError(
            f"{name}multiplier: expected {[n for _, n in layers]} entries per layer, got {given}"
        )
    if not all(value >= 0.0 for t in bound.multiplier for value in t):
        raise CertificateError(f"{name}multiplier: expected numbers >= 0")
    square = lip * lip
    hidden = bound.multiplier
    if norm == "linf" and bound.lip != 0.0:
        tau = Rational.of(2.0 * np.array(bound.multiplier[0]))
        if sum(tau.over.tolist()) * square.under > int(square.over) * tau.under:
            raise CertificateError(f"{name}multiplier[0]: twice its sum exceeds lip^2")
        square, hidden = tau, bound.multiplier[1:]
    square = square * scale * scale
    return Claim(name, bound.lip, hidden, weights, square, _inverse(square))


def _inverse(square: Rational) -> Rational:
    """``1 / square``: exactly where all entries are equal, otherwise from above; 0 for 0."""
    entries = [int(v) for v in square.over]
    if len(set(entries)) == 1 and entries[0] > 0:
        return Rational(np.array([square.under] * len(entries), dtype=object), entries[0])
    top = max(max(entries), square.under).bit_length() + _INVERSE_BITS
    rounded = [-((-square.under << top) // v) if v > 0 else 0 for v in entries]
    return Rational(np.array(rounded, dtype=object), 1 << top)


def _check_claim(claim: Claim, activations: Sequence[LayerSpec]) -> None:
    if claim.lip == 0.0:
        if not _is_constant(claim.weights):
            raise CertificateError(f"{claim.name}lip: 0 is not proven: the network is not constant")
        return
    form = _form(claim, activations)
    if form is not None and len(form) > _LARGEST:
        raise CertificateError(
            f"the exact check is for at most {_LARGEST} neurons, got {len(form)}; use verify"
        )
    if form is None or not (is_semidefinite if len(form) <= _DECIDED else is_definite)(form):
        raise CertificateError(
            f"{claim.name}lip: {claim.lip!r} is not proven: the matrix inequality does not hold "
            "exactly"
        )


def is_semidefinite(form: Whole) -> bool:
    """Whether a symmetric matrix of whole numbers has no negative eigenvalue; exact."""
    rest, before = form.copy(), 1
    while len(rest):
        pivot, column = rest[0, 0], rest[1:, 0]
        if pivot < 0 or (pivot == 0 and any(column)):
            return False
        # A zero row drops out: it is deleted, and the division stays with the last pivot.
        if pivot == 0:
            rest = rest[1:, 1:]
            continue
        rest = (pivot * rest[1:, 1:] - np.multiply.outer(column, column)) // before
        before = pivot
    return True


def is_definite(form: Whole) -> bool:
    """Whether a symmetric matrix of whole numbers is proven to have only positive eigenvalues.

    Scaled by powers of two to a diagonal near 2^256 and cut to whole numbers (an error below N in
    norm).  Each of the N steps of elimination rounds its entries by less than 1, below N in norm;
    so if ``N (N + 1)`` is taken off the diagonal first and every pivot is positive, then the
    matrix is positive definite.  A matrix whose least eigenvalue is below about 2^-230 of its
    diagonal is not proven.
    """
    size = len(form)
    if any(form[k, k] <= 0 for k in range(size)):
        return False
    shifts = [(_BITS - int(form[k, k]).bit_length()) // 2 for k in range(size)]
    rest = np.empty_like(form)
    for i in range(size):
        for j in range(size):
            shift, value = shifts[i] + shifts[j], form[i, j]
            rest[i, j] = value << shift if shift >= 0 else value >> -shift
        rest[i, i] -= size * (size + 1)
    for k in range(size):
        pivot = rest[k, k]
        if pivot <= 0:
            return False
        # Only what the pivot's column touches: the form is block tridiagonal.
        touched = k + 1 + np.flatnonzero(rest[k + 1 :, k])
        column = rest[touched, k]
        rest[np.ix_(touched, touched)] -= np.multiply.outer(column, column) // pivot
    return True


def _form(claim: Claim, activations: Sequence[LayerSpec]) -> Whole | None:
    """The quadratic form without its output, and without its input where that can go.

    ``None`` where it cannot be >= 0: an input that D leaves free moves the network.
    """
    first = claim.weights[0]
    free = np.array([v == 0 for v in claim.square.over])
    if bool((first.over[:, free] != 0).any()):
        return None
    if not activations:
        return _affine_form(claim)
    slopes = [_slopes_of(a, len(t)) for a, t in zip(activations, claim.multiplier, strict=True)]
    known = [np.flatnonzero((alpha + -beta).over == 0) for alpha, beta in slopes]
    own_square = bool((slopes[0][0] * slopes[0][1]).over.any())
    blocks: list[Rational] = []
    if own_square:
        block, first = _input_block(claim)
        blocks.append(block)
    matrices = (first, *claim.weights[1:-1])
    blocks, lower = _blocks(claim, matrices, slopes, known, blocks)
    if not own_square:
        scaled = Rational(lower[0].over * claim.inverse.over, lower[0].under * claim.inverse.under)
        blocks[0] = blocks[0] + -(scaled @ lower[0].T)
        lower = lower[1:]
    last = claim.weights[-1]
    blocks[-1] = blocks[-1] + -(last.T @ last)
    widths = [len(block.over) for block in blocks]
    return _substituted(_assembled(blocks, lower), widths, matrices, slopes, known)


def _affine_form(claim: Claim) -> Whole:
    """Without a hidden layer: ``D - W'W``, or ``I - W Q W'`` where that is the smaller one."""
    last = claim.weights[-1]
    if last.over.shape[0] < last.over.shape[1]:
        scaled = Rational(last.over * claim.inverse.over, last.under * claim.inverse.under)
        return (identity(len(last.over)) + -(scaled @ last.T)).over
    return (diagonal(claim.square) + -(last.T @ last)).over


def _blocks(
    claim: Claim,
    matrices: Sequence[Rational],
    slopes: Sequence[tuple[Rational, Rational]],
    known: Sequence[Any],
    blocks: list[Rational],
) -> tuple[list[Rational], list[Rational]]:
    """Diagonal blocks, the input's own first where it has one, and those below them."""
    lower: list[Rational] = []
    for k, weight in enumerate(matrices):
        alpha, beta = slopes[k]
        t = Rational.of(np.array(claim.multiplier[k]))
        t.over[known[k]] = 0  # a linear neuron is substituted later
        doubled = t + t
        if bool((alpha * beta).over.any()):
            own = weight.T @ ((doubled * alpha * beta).rows() * weight)
            blocks[-1] = blocks[-1] + own
        lower.append(-((t * (alpha + beta)).rows() * weight))
        blocks.append(diagonal(doubled))
    return blocks, lower


def _substituted(
    form: Whole,
    widths: Sequence[int],
    matrices: Sequence[Rational],
    slopes: Sequence[tuple[Rational, Rational]],
    known: Sequence[Any],
) -> Whole:
    """The form with ``x_i = a (W x)_i`` put in for every linear neuron i, from the last layer on.

    Up to a positive factor, which keeps the numbers whole.
    """
    # Without a block of its own for the input, the first layer has no linear neuron.
    matrices = matrices[len(matrices) - len(widths) + 1 :]
    starts = np.cumsum([0, *widths])
    for k in range(len(matrices), 0, -1):
        which = known[k - 1 - len(matrices)]
        if not len(which):
            continue
        alpha = slopes[k - 1 - len(matrices)][0]
        rows = alpha.rows() * matrices[k - 1]
        gone = starts[k] + which
        before = slice(starts[k - 1], starts[k])
        for _ in range(2):  # the columns, then the rows
            column = form[:, gone].dot(rows.over[which])
            form = form * rows.under
            form[:, before] = form[:, before] + column
            form = np.delete(form, gone, axis=1).T
    return form


def _slopes_of(spec: LayerSpec, size: int) -> tuple[Rational, Rational]:
    """The slope range of every neuron of a layer."""
    if spec.kind == HALF_ABS:
        ends = half_abs_slopes(size)
        return Rational.of(ends[0]), Rational.of(ends[1])
    low, high = ACTIVATIONS[spec.kind].slopes(spec.options)
    return Rational.of(np.full(size, low)), Rational.of(np.full(size, high))


def _input_block(claim: Claim) -> tuple[Rational, Rational]:
    """The input's own block and the first matrix, after ``x_0 = Q W_0' y`` where that is shorter.

    Then the block is ``W_0 Q W_0'``, and so is the matrix.
    """
    weight = claim.weights[0]
    outputs, inputs = weight.over.shape
    if inputs <= outputs:
        return diagonal(claim.square), weight
    seen = [i for i in range(outputs) if weight.over[i].any()]
    rows = Rational(weight.over[seen], weight.under)
    scaled = Rational(weight.over * claim.inverse.over, weight.under * claim.inverse.under)
    mapped = scaled @ rows.T
    return Rational(mapped.over[seen], mapped.under), mapped


def _assembled(blocks: Sequence[Rational], lower: Sequence[Rational]) -> Whole:
    """The block tridiagonal matrix, times the common denominator."""
    under = math.lcm(*(part.under for part in (*blocks, *lower)))
    starts = np.cumsum([0, *(len(block.over) for block in blocks)])
    form = np.zeros((starts[-1], starts[-1]), dtype=object)
    for k, block in enumerate(blocks):
        here = slice(starts[k], starts[k + 1])
        form[here, here] = block.over * (under // block.under)
        if k < len(lower):
            below = slice(starts[k + 1], starts[k + 2])
            form[below, here] = lower[k].over * (under // lower[k].under)
            form[here, below] = form[below, here].T
    return form


def _check_slopes(claimed: Sequence[LayerSlopes], activations: Sequence[LayerSpec]) -> None:
    true = [(a.kind, *_widest(a)) for a in activations]
    if [tuple(slopes) for slopes in claimed] != true:
        raise CertificateError(f"slopes: expected {true!r:.200}, got {[*claimed]!r:.200}")


def _widest(spec: LayerSpec) -> SlopeRange:
    return DIFFERENCE if spec.kind == HALF_ABS else ACTIVATIONS[spec.kind].slopes(spec.options)


def _is_constant(weights: Sequence[Rational]) -> bool:
    """Whether no input reaches the output."""
    reached = np.ones(weights[0].over.shape[1], dtype=bool)
    for weight in weights:
        reached = (weight.over != 0)[:, reached].any(axis=1)
    return not bool(reached.any())
