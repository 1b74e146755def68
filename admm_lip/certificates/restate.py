"""What a certificate speaks of, as a chain of matrices whose l2 constant is the bound to prove.

Three changes turn the chain of a network into the chain that a claim is about:

* **a linear functional** ``c' f`` of the outputs: the last matrix becomes the row ``c' W_l``;
* **raw units**: a model that takes ``x / s`` has ``W_0 diag(1 / s)`` as its first matrix;
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

from ..errors import CertificateError
from ..networks.layers import AFFINE, Array
from ..networks.network import Chain, Network, Slopes
from .norms import NORMS as NORMS

_U = 2.0**-53
# Covers the rounding of the error bounds themselves.
_SLACK = 1.01
# Scales outside this range would overflow a weight or make it vanish.
_SCALES = (2.0**-200, 2.0**200)


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


def measured(chain: Chain, norm: str, input_scale: Sequence[float] | None) -> Matrices:
    """The chain whose l2 constant is that of the network for these inputs.

    Args:
        chain: of the network.
        norm: of the inputs, ``"l2"`` or ``"linf"``; outputs are measured in l2.
        input_scale: ``s``, where the network takes ``x / s`` and x is measured; ``None`` is 1.

    Raises:
        CertificateError: for an unknown norm, or scales that do not fit the inputs.
    """
    if norm not in NORMS:
        raise CertificateError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")
    matrices = Matrices.of(chain)
    if input_scale is not None:
        matrices = _scaled(matrices, checked_scale(input_scale, chain.widths[0]))
    return _with_norm_layer(matrices) if norm == "linf" else matrices


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
    first = next((spec for spec in network.layers if spec.kind in AFFINE), None)
    weight = network.arrays.get(f"{first.name}.weight") if first is not None else None
    line = f"{norm}, in the units of the model's input"
    if first is None or first.kind != "linear" or weight is None:
        return line
    square = weight.shape[0] == weight.shape[1] > 1
    scales = square and not np.any(weight - np.diag(np.diag(weight)))
    return f"{line}, which its layer {first.name!r} then scales" if scales else line


def functional(matrices: Matrices, direction: Array) -> Matrices:
    """The chain of ``direction' f``, one output.

    Sums are split into their value and its exact rounding error (D. Knuth's two-sum), so that rows
    that cancel exactly, those of twin outputs, give an exact zero.
    """
    last = matrices.weights[-1]
    row, error = np.zeros(last.shape[1]), np.zeros(last.shape[1])
    for c, w in zip(direction, last, strict=True):
        if c == 0.0:
            continue
        term = c * w
        error += _product_error(c, w, term)
        total = row + term
        part = total - row
        error += np.abs((row - (total - part)) + (term - part))
        row = total
    stored = matrices.errors[-1] * float(np.linalg.norm(direction))
    off = _SLACK * (float(error.sum()) + stored)
    return replace(
        matrices,
        weights=(*matrices.weights[:-1], row[None]),
        errors=(*matrices.errors[:-1], off),
    )


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
    low, high = _SCALES
    size = np.abs(rows)
    admitted = bool(((size == 0.0) | ((size >= low) & (size <= high))).all())
    if rows.ndim != 2 or 0 in rows.shape or rows.shape[1] != outputs or not admitted:
        raise CertificateError(
            f"directions: expected a matrix of {outputs} columns, one per output, and finite "
            f"entries, got shape {rows.shape}" + ("" if admitted else " with others")
        )
    return rows


def checked_scale(input_scale: Sequence[float], inputs: int) -> Array:
    """The scales as an array.

    Raises:
        CertificateError: unless there is one finite number > 0 per input.
    """
    scale = np.asarray(input_scale, dtype=np.float64)
    low, high = _SCALES
    if scale.shape != (inputs,) or not ((scale >= low) & (scale <= high)).all():
        got = f"shape {scale.shape}" if scale.shape != (inputs,) else "others"
        raise CertificateError(
            f"input_scale: expected {inputs} finite numbers > 0, one per input feature, got {got}"
        )
    return scale


def _scaled(matrices: Matrices, scale: Array) -> Matrices:
    """``W_0 diag(1 / s)``: one rounding per entry, none where all scales are powers of two."""
    first = matrices.weights[0] / scale
    rounding = float(_product_error(scale, matrices.weights[0], first).sum())
    stored = matrices.errors[0] / float(scale.min())
    off = _SLACK * (rounding + stored)
    return replace(
        matrices,
        weights=(first, *matrices.weights[1:]),
        errors=(off, *matrices.errors[1:]),
    )


def _product_error(factor: Array | float, values: Array, result: Array) -> Array:
    """Bound on the rounding of ``values`` times or over ``factor``, entry by entry.

    Powers of two round nothing; what is so small that it may have underflowed is counted apart.
    """
    inexact = np.abs(np.frexp(factor)[0]) != 0.5
    lost = (values != 0.0) & (np.abs(result) < 2.0**-1020)
    return np.asarray(_U * np.abs(result) * inexact + 2.0**-1074 * lost)


def _with_norm_layer(matrices: Matrices) -> Matrices:
    """The chain with the layer of the module's docstring in front."""
    inputs = matrices.widths[0]
    unit = Slopes(np.full(inputs, -1.0), np.ones(inputs))
    return Matrices(
        (np.ones((inputs, 1)), *matrices.weights),
        (unit, *matrices.slopes),
        (0.0, *matrices.errors),
    )
