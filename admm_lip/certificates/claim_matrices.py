"""What a certificate speaks of, as a chain of matrices whose l2 constant is the bound to prove.

Three changes turn the chain of a network into the chain that a claim is about:

* **a linear functional** ``c' f`` of the outputs: the last matrix becomes the row ``c' W_l``;
* **raw units**: a model that takes ``x / s`` and gives ``f`` for what is ``S f`` has
  ``W_0 diag(1 / s)`` as its first matrix and ``diag(S) W_l`` as its last one (``units.py``);
* **inputs measured in linf**: a layer of neurons ``x_j = phi_j(r)`` with slopes [-1, 1], all fed by
  one number r, stands in front.  Their constraint is ``x_j^2 <= r^2``, so the matrix inequality of
  the longer chain says ``||f(x) - f(y)||_2 <= L r`` whenever ``||x - y||_inf <= r``.  With
  ``tau = 2 t_0`` its first two blocks are ``L^2 - sum tau`` and ``diag(tau)``: the inequality with
  ``diag(tau)`` in place of ``L^2 I`` and ``L^2 >= sum tau``.

Every rounding made here is bounded in ``errors``.  NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import block_diag

from ..errors import CertificateError, UnitsError
from ..float64 import U
from ..lipschitz import NORMS as NORMS
from ..networks.layers import AFFINE, Array
from ..networks.network import Chain, Network, Slopes
from ..units import SCALES, Units

# Covers the rounding of the error bounds themselves.
_SLACK = 1.01


@dataclass(frozen=True, eq=False)
class Matrices:
    """A chain without biases and names: what a proof of an l2 constant needs.

    Attributes:
        weights: ``(W_0, ..., W_l)``, float64.
        slopes: one :class:`~admm_lip.networks.network.Slopes` per hidden layer.
        errors: ``errors[k]`` bounds the Frobenius norm of the rounding error of ``W_k``.
    """

    weights: tuple[Array, ...]
    slopes: tuple[Slopes, ...]
    errors: tuple[float, ...]

    @staticmethod
    def of(chain: Chain) -> Matrices:
        """The matrices of a network's chain."""
        return Matrices(chain.weights, chain.slopes, chain.errors)

    @property
    def widths(self) -> tuple[int, ...]:
        """``(n_0, n_1, ..., n_l, n_{l+1})``."""
        return (self.weights[0].shape[1], *(w.shape[0] for w in self.weights))


def measured(chain: Chain, norm: str, units: Units | None) -> Matrices:
    """The chain whose l2 constant is that of the network for these inputs.

    Args:
        chain: of the network.
        norm: of the inputs, ``"l2"`` or ``"linf"``; outputs are measured in l2.
        units: of what is measured; ``None`` is what the network takes and gives.

    Raises:
        CertificateError: for an unknown norm, or units that do not fit the network.
    """
    check_norm(norm)
    matrices = Matrices.of(chain)
    if units is not None:
        matrices = _scaled(matrices, *scales_of(units, chain.widths[0], chain.widths[-1]))
    return _with_norm_layer(matrices) if norm == "linf" else matrices


def scales_of(units: Units | None, inputs: int, outputs: int) -> tuple[Array, Array]:
    """The scales of inputs and of outputs, 1 without units.

    Raises:
        CertificateError: for units of another number of inputs or outputs.
    """
    if units is None:
        return np.ones(inputs), np.ones(outputs)
    check_units(units, inputs, outputs)
    return np.array(units.input_scales(inputs)), np.array(units.output_scales(outputs))


def check_norm(norm: str) -> None:
    """Raise :class:`CertificateError` unless inputs are measured in such a norm."""
    if norm not in NORMS:
        raise CertificateError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")


def check_units(units: Units, inputs: int, outputs: int | None = None) -> None:
    """Raise :class:`CertificateError` unless units are of so many inputs (and outputs)."""
    try:
        units.check_fits(inputs, outputs)
    except UnitsError as error:
        raise CertificateError(f"units.{error}") from None


def units_given(units: Units | None, input_scale: Any) -> Units | None:
    """The units of a call that takes ``input_scale`` as a short form of them.

    Raises:
        CertificateError: for both at once, or a scale that is none.
    """
    if units is not None and not isinstance(units, Units):
        raise CertificateError(f"units: expected admm_lip.Units, got {type(units).__name__}")
    if input_scale is None:
        return units
    if units is not None:
        raise CertificateError("units, input_scale: give one of them; units hold the scale too")
    try:
        found = Units(input_scale=input_scale)
    except UnitsError as error:
        raise CertificateError(str(error)) from None
    scale = found.input_scale
    return Units(input_scale=scale[0]) if isinstance(scale, tuple) and len(scale) == 1 else found


def units_of_scale(input_scale: Sequence[float], inputs: int) -> Units:
    """The units of inputs alone, for so many of them.

    Raises:
        CertificateError: unless there is one finite number > 0 per input.
    """
    try:
        units = Units(input_scale=tuple(input_scale))
        units.input_scales(inputs)
    except UnitsError as error:
        raise CertificateError(str(error)) from None
    return units


def distance_of(network: Network, norm: str, raw: bool) -> str:
    """How input distances, and with them radii, are measured: one line for a person.

    Args:
        network: the network that a certificate is of.
        norm: the certificate's.
        raw: whether it has an ``input_scale``.

    Example:
        >>> import numpy as np
        >>> from admm_lip.networks.network import LayerSpec, Network
        >>> net = Network((LayerSpec("linear", "std", {}),), {"std.weight": np.diag([0.5, 2.0])})
        >>> distance_of(net, "l2", raw=False)
        "l2, in the units of the model's input, which its layer 'std' then scales"
    """
    if raw:
        return f"{norm}, in raw units: the model takes raw / input_scale and a constant"
    affine = (spec for spec in network.layers if spec.kind in AFFINE)
    weights = ((spec, network.arrays.get(f"{spec.name}.weight")) for spec in affine)
    # What only shifts, or moves entries about, has no weight.
    first, weight = next(((s, w) for s, w in weights if w is not None), (None, None))
    line = f"{norm}, in the units of the model's input"
    if first is not None and first.kind == "elementwise":
        return f"{line}, which its layer {first.name!r} then scales"
    if first is None or first.kind != "linear" or weight is None:
        return line
    square = weight.shape[0] == weight.shape[1] > 1
    scales = square and not np.any(weight - np.diag(np.diag(weight)))
    return f"{line}, which its layer {first.name!r} then scales" if scales else line


def functional(matrices: Matrices, direction: Array, outputs: Array | None = None) -> Matrices:
    """The chain of ``direction' diag(outputs) f``, one output (``outputs``: 1 where not given).

    Sums are split into their value and its exact rounding error (D. Knuth's two-sum), so that rows
    that cancel exactly, those of twin outputs, give an exact zero.
    """
    last = matrices.weights[-1]
    row, error = np.zeros(last.shape[1]), np.zeros(last.shape[1])
    scales = np.ones(len(direction)) if outputs is None else outputs
    factors = direction * scales
    rounding = _product_error(direction, scales, factors)
    for c, off, w in zip(factors, rounding, last, strict=True):
        if c == 0.0:
            continue
        term = c * w
        error += _product_error(c, w, term) + off * np.abs(w)
        total = row + term
        part = total - row
        error += np.abs((row - (total - part)) + (term - part))
        row = total
    stored = matrices.errors[-1] * float(np.linalg.norm(factors))
    off = _SLACK * (float(error.sum()) + stored)
    return replace(
        matrices,
        weights=(*matrices.weights[:-1], row[None]),
        errors=(*matrices.errors[:-1], off),
    )


def off_centre(matrices: Matrices, direction: Array, column: int, centre: float) -> Matrices:
    """The chain of ``c' f - centre x_j`` as a function of ``x_j`` alone, the other inputs held.

    ``c'f`` never falls in ``x_j`` if that function's constant is at most ``centre``: its slope s
    then has ``|s - centre| <= centre``, so ``0 <= s <= 2 centre``.  The input is carried past the
    activations by neurons of slope 1, which the proof substitutes.
    """
    chain = functional(matrices, direction)
    weights = [chain.weights[0][:, [column]], *chain.weights[1:]]
    errors = list(chain.errors)
    if len(weights) == 1:
        weights[0] = weights[0] - centre
        errors[0] = _SLACK * (errors[0] + U * float(np.abs(weights[0]).sum()))
        return replace(chain, weights=tuple(weights), errors=tuple(errors))
    one = np.ones((1, 1))
    between = (block_diag(weight, one) for weight in weights[1:-1])
    past = (np.vstack([weights[0], one]), *between, np.hstack([weights[-1], -centre * one]))
    slopes = tuple(Slopes(np.append(s.alpha, 1.0), np.append(s.beta, 1.0)) for s in chain.slopes)
    return Matrices(past, slopes, chain.errors)


def functionals_of(kind: str, directions: Any, outputs: int) -> Array:
    """The linear functionals that a kind speaks of, one per row.

    Args:
        kind: ``"pairwise"``: ``e_i - e_j`` for all ``i < j``, in lexicographic order;
            ``"per_output"``: every ``e_i``; ``"directions"``: those given.
        directions: shape ``(functionals, outputs)``; read for ``"directions"`` only.
        outputs: number of outputs.

    Raises:
        CertificateError: for directions that do not fit, or pairs of a single output.
    """
    if kind == "directions":
        if directions is None:
            raise CertificateError("directions: goes with kind='directions', got None")
        return _checked_directions(directions, outputs)
    if kind == "pairwise" and outputs == 1:
        raise CertificateError("kind: expected at least two outputs for pairwise, got one")
    return _FUNCTIONALS[kind](outputs)


def _pairs(outputs: int) -> Array:
    eye = np.eye(outputs)
    first, second = np.triu_indices(outputs, 1)
    return np.asarray(eye[first] - eye[second])


_FUNCTIONALS: Mapping[str, Callable[[int], Array]] = {
    "pairwise": _pairs,
    "per_output": lambda outputs: np.eye(outputs),
}


def _checked_directions(directions: Any, outputs: int) -> Array:
    rows = np.array(directions, dtype=np.float64)
    low, high = SCALES
    size = np.abs(rows)
    admitted = bool(((size == 0.0) | ((size >= low) & (size <= high))).all())
    if rows.ndim != 2 or 0 in rows.shape or rows.shape[1] != outputs or not admitted:
        raise CertificateError(
            f"directions: expected a matrix of {outputs} columns, one per output, and finite "
            f"entries, got shape {rows.shape}" + ("" if admitted else " with others")
        )
    return rows


def _scaled(matrices: Matrices, inputs: Array, outputs: Array) -> Matrices:
    """``W_0 diag(1 / s)`` and ``diag(S) W_l``: one rounding per entry and scale, none where all
    scales are powers of two."""
    first = matrices.weights[0] / inputs
    rounding = _product_error(inputs, matrices.weights[0], first)
    matrices = _exchanged(matrices, 0, first, rounding, 1.0 / float(inputs.min()))
    rows = outputs[:, None]
    last = rows * matrices.weights[-1]
    rounding = _product_error(rows, matrices.weights[-1], last)
    return _exchanged(matrices, -1, last, rounding, float(outputs.max()))


def outputs_times(matrices: Matrices, factor: float) -> Matrices:
    """The chain of the outputs times a number."""
    last = factor * matrices.weights[-1]
    rounding = _product_error(factor, matrices.weights[-1], last)
    return _exchanged(matrices, -1, last, rounding, factor)


def _exchanged(
    matrices: Matrices, layer: int, weight: Array, rounding: Array, growth: float
) -> Matrices:
    """One matrix replaced by a scaled one: its error has grown with it, and rounding is added."""
    weights, errors = list(matrices.weights), list(matrices.errors)
    weights[layer] = weight
    errors[layer] = _SLACK * (float(rounding.sum()) + growth * errors[layer])
    return replace(matrices, weights=tuple(weights), errors=tuple(errors))


def _product_error(factor: Array | float, values: Array, result: Array) -> Array:
    """Bound on the rounding of ``values`` times or over ``factor``, entry by entry.

    Powers of two round nothing; what is so small that it may have underflowed is counted apart.
    """
    inexact = np.abs(np.frexp(factor)[0]) != 0.5
    lost = (values != 0.0) & (np.abs(result) < 2.0**-1020)
    return np.asarray(U * np.abs(result) * inexact + 2.0**-1074 * lost)


def _with_norm_layer(matrices: Matrices) -> Matrices:
    """The chain with the layer of the module's docstring in front."""
    inputs = matrices.widths[0]
    unit = Slopes(np.full(inputs, -1.0), np.ones(inputs))
    return Matrices(
        (np.ones((inputs, 1)), *matrices.weights),
        (unit, *matrices.slopes),
        (0.0, *matrices.errors),
    )
