"""The check of a certificate in exact arithmetic: slow, and with nothing to round.

What ``verify`` proves in floating point with a margin for rounding, this proves in whole numbers.
Every stored float is a dyadic rational, so the matrices of the network, the multiplier and the
bound are exact rationals; none of ``verify``'s bounds on rounding, nor its matrices, enters here.

To prove, with x_0 the input, x_{k+1} the output of hidden layer k and t_k its multiplier,

    L^2 |x_0|^2 - |W_l x_l|^2 + 2 sum_k (x_{k+1} - a W_k x_k)' T_k (x_{k+1} - b W_k x_k)  >=  0,

where a and b are the ends of the slope range.  The sum is never positive on the network's own
values, so the form bounds its slope by L.  Every step that makes the form smaller is exact: the
output is eliminated as it stands; an input without a square term of its own by ``C C' / L^2``;
another one, if it is the longer side, by the substitution ``x_0 = W_0' y``, which reaches all of
x_0 that the rest of the form sees.

Small forms are decided by fraction-free elimination (E. H. Bareiss, 1968), semidefinite ones
included; larger ones in whole multiples of 2^-256 with the rounding taken off beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CertificateError
from ..networks.activations import ACTIVATIONS, SlopeRange
from ..networks.layers import Array, Shape, Window
from ..networks.network import LayerSpec, Network
from ..networks.sorting import DIFFERENCE, HALF_ABS, SORTS, half_abs_slopes
from .certificate import Certificate, LayerSlopes
from .verify import check_belongs

Whole = npt.NDArray[Any]

# Unknowns up to which a form is decided, and up to which it is treated at all.
_DECIDED = 24
_LARGEST = 600
_BITS = 256


@dataclass(frozen=True, eq=False)
class Rational:
    """A matrix of rationals: whole numbers (Python's, of any length) over one denominator > 0."""

    over: Whole
    under: int

    @staticmethod
    def of(values: Array) -> Rational:
        """Finite floats, exactly."""
        fraction, exponent = np.frexp(np.asarray(values, dtype=np.float64))
        whole = np.ldexp(fraction, 53).astype(np.int64).astype(object)
        power = exponent.astype(np.int64) - 53
        least = int(min(power[fraction != 0.0].min(initial=0), 0))
        shifts = np.where(fraction != 0.0, power - least, 0).astype(object)
        return Rational(whole * 2**shifts, 2**-least)

    def __matmul__(self, other: Rational) -> Rational:
        return Rational(self.over.dot(other.over), self.under * other.under)

    def __mul__(self, other: Rational) -> Rational:
        return Rational(self.over * other.over, self.under * other.under)

    def __add__(self, other: Rational) -> Rational:
        under = math.lcm(self.under, other.under)
        a, b = under // self.under, under // other.under
        return Rational(self.over * a + other.over * b, under)

    def __neg__(self) -> Rational:
        return Rational(-self.over, self.under)

    @property
    def T(self) -> Rational:
        """The transpose."""
        return Rational(self.over.T, self.under)

    def rows(self) -> Rational:
        """A vector as a column, to scale the rows of a matrix."""
        return Rational(self.over[:, None], self.under)


def exact_check(network: Network, certificate: Certificate) -> None:
    """Prove in exact arithmetic that ``certificate.lip`` bounds the network's l2 slope.

    Args:
        network: at most some hundred hidden neurons; the time grows with their cube.
        certificate: a global one, for the l2 norm.

    Raises:
        CertificateError: where the certificate is of another network, norm, kind or units, states
            other slopes, or does not prove its bound; or where the network is too large.
    """
    if (certificate.norm, certificate.kind, certificate.units) != ("l2", "global", "model input"):
        raise CertificateError(
            "norm / kind / units: the exact check knows l2 / global / model input, got "
            f"{certificate.norm} / {certificate.kind} / {certificate.units}"
        )
    check_belongs(certificate, network)
    weights, activations = exact_chain(network)
    _check_slopes(certificate.slopes, activations)
    sizes = [w.over.shape[0] for w in weights[:-1]]
    given = [len(t) for t in certificate.multiplier]
    if given != sizes:
        raise CertificateError(f"multiplier: expected {sizes} entries per layer, got {given}")
    if not all(value >= 0.0 for t in certificate.multiplier for value in t):
        raise CertificateError("multiplier: expected numbers >= 0")
    if certificate.lip == 0.0:
        if not _is_constant(weights):
            raise CertificateError("lip: 0 is not proven: the network is not constant")
        return
    form = _form(weights, activations, certificate)
    if len(form) > _LARGEST:
        raise CertificateError(
            f"the exact check is for at most {_LARGEST} neurons, got {len(form)}; use verify"
        )
    proves = is_semidefinite if len(form) <= _DECIDED else is_definite
    if not proves(form):
        raise CertificateError(
            f"lip: {certificate.lip!r} is not proven: the matrix inequality does not hold exactly"
        )


def exact_chain(network: Network) -> tuple[list[Rational], list[LayerSpec]]:
    """The matrices ``W_0, ..., W_l`` without any rounding, and the activations between them."""
    shape, size = network.input_shape or (), network.size_in
    weights: list[Rational] = []
    activations: list[LayerSpec] = []
    current: Rational | None = None  # since the last activation; None is the identity
    for spec in network.layers:
        if spec.kind in _MATRICES:
            matrix, shape = _MATRICES[spec.kind](network, spec, shape)
            current = matrix if current is None else matrix @ current
            size = matrix.over.shape[0]
        elif spec.kind == "flatten":
            shape = (math.prod(shape),)
        elif spec.kind in (*SORTS, HALF_ABS):
            if spec.kind in SORTS:
                turn = _rotation(shape)
                current = turn if current is None else turn @ current
            activations.append(LayerSpec(HALF_ABS, spec.name, {}))
            weights.append(_identity(size) if current is None else current)
            current = _rotation_back(spec.kind, shape) if spec.kind in SORTS else None
        elif spec.kind in ACTIVATIONS and set(ACTIVATIONS[spec.kind].slopes(spec.options)) != {1.0}:
            activations.append(spec)
            weights.append(_identity(size) if current is None else current)
            current = None
    return [*weights, _identity(size) if current is None else current], activations


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


def _form(
    weights: Sequence[Rational], activations: Sequence[LayerSpec], certificate: Certificate
) -> Whole:
    """The quadratic form without its output, and without its input where that can go."""
    lip = Rational.of(np.array(certificate.lip))
    square = lip * lip
    last = weights[-1]
    if not activations:
        gram = last @ last.T if last.over.shape[0] < last.over.shape[1] else last.T @ last
        scaled_identity = _identity(len(gram.over)) * square
        return (scaled_identity + -gram).over
    slopes = [
        _slopes_of(a, len(t)) for a, t in zip(activations, certificate.multiplier, strict=True)
    ]
    known = [np.flatnonzero((alpha + -beta).over == 0) for alpha, beta in slopes]
    products = [bool((alpha * beta).over.any()) for alpha, beta in slopes]
    blocks: list[Rational] = []
    lower: list[Rational] = []
    first = weights[0]
    if products[0]:
        blocks, first = _input_block(first, square)
    for k, weight in enumerate((first, *weights[1:-1])):
        alpha, beta = slopes[k]
        t = Rational.of(np.array(certificate.multiplier[k]))
        t.over[known[k]] = 0  # a linear neuron is substituted below
        doubled = t + t
        if products[k]:
            own = weight.T @ ((doubled * alpha * beta).rows() * weight)
            blocks[-1] = blocks[-1] + own
        lower.append(-((t * (alpha + beta)).rows() * weight))
        blocks.append(_diagonal(doubled))
    if not products[0]:
        gram = lower[0] @ lower[0].T
        inverse = Rational(np.array(square.under, dtype=object), int(square.over))
        blocks[0] = blocks[0] + -(gram * inverse)
        lower = lower[1:]
    blocks[-1] = blocks[-1] + -(last.T @ last)
    widths = [len(block.over) for block in blocks]
    return _substituted(_assembled(blocks, lower), widths, (first, *weights[1:-1]), slopes, known)


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


def _input_block(weight: Rational, square: Rational) -> tuple[list[Rational], Rational]:
    """The input's own block and the first matrix, after ``x_0 = W_0' y`` where that is shorter."""
    outputs, inputs = weight.over.shape
    if inputs <= outputs:
        return [_identity(inputs) * square], weight
    seen = [i for i in range(outputs) if weight.over[i].any()]
    basis = Rational(weight.over[seen], weight.under).T
    return [(basis.T @ basis) * square], weight @ basis


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


def _rotation(shape: Shape) -> Rational:
    """Sums, then differences, of the pairs of neighbouring features or channels."""
    size = math.prod(shape)
    order = np.arange(size).reshape(shape[0] // 2, 2, -1)
    even, odd = order[:, 0].ravel(), order[:, 1].ravel()
    unit = _identity(size).over
    return Rational(np.concatenate([unit[even] + unit[odd], unit[even] - unit[odd]]), 1)


def _rotation_back(kind: str, shape: Shape) -> Rational:
    """From the sums and the folded differences to the sorted pairs."""
    turn = _rotation(shape).over.T
    half = turn.shape[1] // 2
    sign = 1 if SORTS[kind].descending else -1
    return Rational(np.concatenate([turn[:, :half], sign * turn[:, half:]], axis=1), 2)


def _is_constant(weights: Sequence[Rational]) -> bool:
    """Whether no input reaches the output."""
    reached = np.ones(weights[0].over.shape[1], dtype=bool)
    for weight in weights:
        reached = (weight.over != 0)[:, reached].any(axis=1)
    return not bool(reached.any())


def _identity(size: int) -> Rational:
    return Rational(np.array(np.eye(size, dtype=np.int64), dtype=object), 1)


def _diagonal(values: Rational) -> Rational:
    return Rational(_identity(len(values.over)).over * values.over, values.under)


def _linear(network: Network, spec: LayerSpec, shape: Shape) -> tuple[Rational, Shape]:
    weight = network.arrays[f"{spec.name}.weight"]
    return Rational.of(weight), weight.shape[:1]


def _conv2d(network: Network, spec: LayerSpec, shape: Shape) -> tuple[Rational, Shape]:
    weight = network.arrays[f"{spec.name}.weight"]
    outputs, per_group = weight.shape[:2]
    window = Window.of(spec.options, weight.shape[2:], shape, spec.name)
    kernel, group = Rational.of(weight), outputs // spec.options["groups"]
    full = (outputs, *window.out)
    matrix = np.zeros((*full, *shape), dtype=object)
    for out, row, column, y, x, a, b in _places(window, shape, outputs):
        first = (out // group) * per_group
        matrix[out, row, column, first : first + per_group, y, x] = kernel.over[out, :, a, b]
    return Rational(matrix.reshape(math.prod(full), math.prod(shape)), kernel.under), full


def _avg_pool2d(network: Network, spec: LayerSpec, shape: Shape) -> tuple[Rational, Shape]:
    options = {**spec.options, "dilation": [1, 1]}
    window = Window.of(options, tuple(options["kernel_size"]), shape, spec.name)
    full = (shape[0], *window.out)
    matrix = np.zeros((*full, *shape), dtype=object)
    for channel, row, column, y, x, _, _ in _places(window, shape, shape[0]):
        matrix[channel, row, column, channel, y, x] = 1
    matrix = matrix.reshape(math.prod(full), math.prod(shape))
    counts = [math.prod(window.kernel)] * len(matrix)
    if options["divisor_override"] is not None:
        counts = [options["divisor_override"]] * len(matrix)
    elif not options["count_include_pad"]:
        counts = [int(count) for count in matrix.sum(axis=1)]
    under = math.lcm(*counts)
    return Rational(matrix * np.array([[under // c] for c in counts], dtype=object), under), full


def _places(window: Window, shape: Shape, channels: int) -> Any:
    """Every (channel, output row and column, input row and column, kernel row and column)."""
    for out, row, column, a, b in np.ndindex(channels, *window.out, *window.kernel):
        y = row * window.stride[0] - window.padding[0] + a * window.dilation[0]
        x = column * window.stride[1] - window.padding[2] + b * window.dilation[1]
        if 0 <= y < shape[1] and 0 <= x < shape[2]:
            yield out, row, column, y, x, a, b


_MATRICES: dict[str, Callable[[Network, LayerSpec, Shape], tuple[Rational, Shape]]] = {
    "linear": _linear,
    "conv2d": _conv2d,
    "avg_pool2d": _avg_pool2d,
}
