"""Every entry by itself times a number, plus a number: ``w x + b``.

Standardisation, scalings and batch normalisation in evaluation are such rows.  ``w`` and ``b`` are
aligned with the sample's last axes, as NumPy and torch broadcast; leading axes of size 1 are left
out.  What no float64 holds, ``1 / std`` and ``1 / sqrt(var + eps)``, is rounded, and by how much is
kept with the layer.  NumPy and SciPy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..errors import NetworkError, UnsupportedModule
from ..float64 import U
from .activations import Options
from .affine import AffineKind, AffineMap, Array, Shape, stored_errors

Numbers = npt.NDArray[Any]
_SLACK = 1.01
# Below it a result may have underflowed, which loses up to the least number of all.
_NORMAL, _LEAST = 2.0**-1020, 2.0**-1074


class Scaling(NamedTuple):
    """The arrays of one row; ``None`` are ones, zeros, and no rounding."""

    weight: Numbers | None = None
    bias: Numbers | None = None
    error: Array | None = None

    @property
    def arrays(self) -> dict[str, Numbers]:
        """Those that are there, by their keys."""
        return {key: array for key, array in self._asdict().items() if array is not None}


def arithmetic(operation: str, constant: Numbers | None = None, first: bool = False) -> Scaling:
    """``x op c``, or ``c op x``: ``op`` is ``add``, ``sub``, ``mul``, ``div`` or ``neg``.

    Args:
        operation: what is done.
        constant: finite numbers of a shape that broadcasts against x.
        first: whether the constant stands in front.

    Raises:
        UnsupportedModule: for ``c / x``, which is not affine.
        NetworkError: for constants that are not finite, or a division by zero.

    Example:
        >>> arithmetic("sub", np.array([[3.0, 4.0]]), first=True)[:2]
        (array(-1.), array([3., 4.]))
    """
    if operation == "neg":
        return Scaling(np.array(-1.0))
    assert constant is not None
    if not np.isfinite(constant).all():
        raise NetworkError("its constant holds a value that is NaN or infinite")
    constant = aligned(constant)
    if operation == "add":
        return Scaling(bias=constant)
    if operation == "sub":
        return Scaling(np.array(-1.0), constant) if first else Scaling(bias=-constant)
    if operation == "mul":
        return Scaling(constant)
    if first:
        raise UnsupportedModule("divides a constant by a value, which is not affine")
    return _divided(constant)


def aligned(array: Numbers) -> Numbers:
    """Without leading axes of size 1."""
    while array.ndim and array.shape[0] == 1:
        array = array[0]
    return array


def _divided(constant: Numbers) -> Scaling:
    """Powers of two divide exactly; else the quotient is rounded once."""
    if not np.all(constant):
        raise NetworkError("divides by zero")
    wide = np.asarray(constant, dtype=np.float64)
    with np.errstate(over="ignore"):
        inverse = 1.0 / wide
    exact = np.abs(np.frexp(wide)[0]) == 0.5
    return Scaling(inverse, error=_error(inverse, np.where(exact, 0.0, U)))


def _error(values: Array, relative: Array | float) -> Array | None:
    """What ``layers.stored_errors`` reads, of values known to a relative error."""
    if not np.isfinite(values).all():
        raise NetworkError("its constants overflow")
    size = np.abs(values)
    off = relative * size + np.where((size < _NORMAL) & (np.asarray(relative) > 0.0), _LEAST, 0.0)
    # hypot does not underflow, as squares do.
    frobenius = _SLACK * math.hypot(*off.ravel().tolist())
    return np.array([frobenius, 0.0]) if frobenius else None


def normalisation(
    mean: Numbers, variance: Numbers, weight: Numbers | None, bias: Numbers | None, eps: float
) -> tuple[Scaling, Scaling]:
    """Batch normalisation in evaluation: ``x - mean``, then ``w x + b``, of equal shapes.

    ``w = weight / sqrt(variance + eps)`` takes a sum, a root and a division in float64, each
    rounded once: with u = 2^-53 the root of a sum known to u is known to u / 2 + u, and the
    quotient to less than 3 u.

    Raises:
        NetworkError: where ``variance + eps`` is not positive.

    Example:
        >>> ones = np.ones(2)
        >>> normalisation(0.0 * ones, 4.0 * ones, None, ones, 0.0)[1].weight
        array([0.5, 0.5])
    """
    spread = np.asarray(variance, dtype=np.float64) + float(eps)
    if not (np.isfinite(spread).all() and (spread > 0.0).all()):
        raise NetworkError(f"variance + eps: expected numbers > 0, got {float(spread.min())!r}")
    scale = np.ones(spread.shape) if weight is None else np.asarray(weight, dtype=np.float64)
    with np.errstate(over="ignore"):
        scale = scale / np.sqrt(spread)
    return Scaling(bias=-mean), Scaling(scale, bias, _error(scale, 3.0 * U))


def changes_nothing(arrays: Mapping[str, Numbers], name: str) -> bool:
    """Whether a row multiplies by 1 and adds 0."""
    weight, bias = (arrays.get(f"{name}.{key}") for key in ("weight", "bias"))
    return (weight is None or bool((weight == 1.0).all())) and (bias is None or not bias.any())


def _shape(name: str, options: Options, arrays: Mapping[str, Array], shape: Shape) -> Shape:
    for key in ("weight", "bias"):
        given = arrays.get(f"{name}.{key}")
        if given is None:
            continue
        sizes = zip(given.shape[::-1], shape[::-1], strict=False)
        if given.ndim > len(shape) or any(n not in (1, size) for n, size in sizes):
            raise NetworkError(
                f"{name}.{key}: a constant of shape {given.shape} does not broadcast to a value "
                f"of shape {shape}, batch apart"
            )
    stored_errors(name, arrays)
    return shape


def _factors(name: str, arrays: Mapping[str, Array]) -> tuple[Array, Array]:
    found = (arrays.get(f"{name}.{key}", empty) for key, empty in (("weight", 1.0), ("bias", 0.0)))
    weight, bias = (np.asarray(array, dtype=np.float64) for array in found)
    return weight, bias


def _build(name: str, options: Options, arrays: Mapping[str, Array], shape: Shape) -> AffineMap:
    _shape(name, options, arrays, shape)
    weight, bias = _factors(name, arrays)
    error, bias_error = stored_errors(name, arrays)
    # A number stands once for every entry that it multiplies.
    error *= math.sqrt(math.prod(shape) / weight.size) * (1.0 + 1e-9)
    full = (np.broadcast_to(array, shape).ravel() for array in (weight, bias))
    diagonal, shift = (np.array(array) for array in full)
    return AffineMap(sp.csr_array(sp.diags_array(diagonal)), shift, error, shape, bias_error)


def _apply(name: str, options: Options, arrays: Mapping[str, Array], x: Array) -> Array:
    weight, bias = _factors(name, arrays)
    return np.asarray(x * weight + bias)


ELEMENTWISE = AffineKind({}, _shape, _build, _apply, lambda *layer: 1)
