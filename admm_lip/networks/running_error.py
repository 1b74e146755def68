"""Running error bounds: how far a network evaluated layer by layer is from the exact one.

For ``W x + b`` with rows of n entries, in any order of summation and with e the error of x,

    |W| e + gamma_{n+4} (|W| (|x| + e) + |b|) + |dW| (||x|| + ||e||) + |db|,
    gamma_n = n u / (1 - n u),

dW and db being what the stored numbers are known to (N. Higham, 2002, sections 3.1 and 3.3).  An
activation multiplies by its steepest slope and adds what evaluating it takes.  No matrix of a
convolution is formed.  NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..float64 import TINY, U
from .activations import ACTIVATIONS
from .affine import AffineKind, stored_errors
from .forward import apply_layer
from .joins import JOINS
from .layer_spec import INPUT, neuron_slopes, scalar_parts
from .layers import AFFINE, Array
from .network import LayerSpec, Network
from .sorting import SORTS
from .vector_functions import VECTOR_FUNCTIONS

# Covers the rounding of the bounds themselves.
_SLACK = 1.01
# Numbers held at once, of samples evaluated together: 64 MiB.
_TOGETHER = 2**23


class Precision(NamedTuple):
    """Of an evaluation.

    Attributes:
        unit: roundoff.
        tiny: the least normal number.
        largest: the greatest number.
        jumps: whether activations are torch's own, which may be off by a jump of their rows.
    """

    unit: float
    tiny: float
    largest: float
    jumps: bool = False


FLOAT64 = Precision(U, 2.0**-1022, float(np.finfo(np.float64).max))


def enclosed(
    network: Network, x: npt.ArrayLike, off: npt.ArrayLike | None = None
) -> tuple[Array, Array]:
    """Outputs in float64, and a bound on each one's distance from the real-valued network's.

    For functions of the mathematical library an accuracy of 32 units in the last place is assumed.

    Args:
        network: with activations whose values are known.
        x: inputs ``(batch, *input_shape)``, or flattened.
        off: bounds on the errors of their entries; ``None`` where they are exact.

    Returns:
        two arrays ``(batch, *)``.

    Example:
        >>> layers = (LayerSpec("linear", "in", {}), LayerSpec("relu", "act", {}))
        >>> net = Network(layers, {"in.weight": np.array([[0.1, 0.2]])})
        >>> value, error = enclosed(net, [[1.0, 1.0]])
        >>> bool(abs(value - 0.3).max() <= error.max() < 1e-15)
        True
    """
    shape = network.input_shape or ()
    value = np.asarray(x, dtype=np.float64)
    value = value.reshape(len(value), *shape)
    error = np.zeros_like(value) if off is None else np.reshape(np.asarray(off), value.shape)
    rows = max(1, _TOGETHER // _entries(network))
    starts = range(0, len(value), rows)
    parts = [_enclosed(network, value[k : k + rows], error[k : k + rows]) for k in starts]
    none = np.zeros((0, *network.shapes()[network.output]))
    values, errors = (np.concatenate([none, *(part[k] for part in parts)]) for k in (0, 1))
    return values, errors


def _enclosed(network: Network, value: Array, error: Array) -> tuple[Array, Array]:
    sources = network.sources()
    last_use = {name: k for k, taken in enumerate(sources.values()) for name in taken}
    known = {INPUT: (value, error)}
    with np.errstate(over="ignore", invalid="ignore"):
        for k, spec in enumerate(network.layers):
            xs, errors = zip(*(known[name] for name in sources[spec.name]), strict=True)
            out = apply_layer(network, spec, *xs)
            moved = layer_error(network, spec, (list(xs), out), list(errors), FLOAT64)
            known[spec.name] = out, moved
            for name in sources[spec.name]:
                if last_use[name] == k:
                    known.pop(name, None)
    return known[network.output]


def _entries(network: Network) -> int:
    """Numbers of one sample: what is kept, and the windows of the widest layer."""
    shapes, sources = network.shapes(), network.sources()
    windows = [0]
    for spec in network.layers:
        if spec.kind in AFFINE and AFFINE[spec.kind].spatial:
            shape = shapes[sources[spec.name][0]]
            terms = AFFINE[spec.kind].terms(spec.name, spec.options, network.arrays, shape)
            groups = spec.options.get("groups", shape[0])
            windows.append(groups * terms * math.prod(shapes[spec.name][1:]))
    return 2 * sum(map(math.prod, shapes.values())) + max(windows)


def layer_error(
    network: Network,
    spec: LayerSpec,
    ends: tuple[list[Array], Array],
    errors: list[Array],
    precision: Precision,
) -> Array:
    """How far an evaluation of one layer may be from the exact one, entry by entry.

    Args:
        network: whose layer it is.
        spec: the layer.
        ends: its inputs ``(batch, *shape)``, one for each source, and its outputs.
        errors: bounds on the inputs' errors.
        precision: of the evaluation.
    """
    (x, *_), out = ends
    error = errors[0]
    if spec.kind in JOINS:
        return _join_error(spec, ends[0], errors, precision)
    if spec.kind in AFFINE:
        return _affine_error(network, spec, x, error, precision)
    if spec.kind in ACTIVATIONS:
        row = ACTIVATIONS[spec.kind]
        slopes = neuron_slopes(scalar_parts(spec, network.arrays, x.shape[1:]))
        steepest = np.maximum(np.abs(slopes.alpha), np.abs(slopes.beta)).reshape(x.shape[1:])
        evaluated = row.evaluation_error(spec.options, x, out, precision.unit)
        evaluated = evaluated + row.jump(spec.options) if precision.jumps else evaluated
        return np.asarray(_SLACK * (steepest * error + evaluated) + precision.tiny)
    if spec.kind in VECTOR_FUNCTIONS:
        return VECTOR_FUNCTIONS[spec.kind].moved(spec.options, x, error, precision.unit)
    if spec.kind in SORTS:
        pairs = error.reshape(len(error), error.shape[1] // 2, 2, -1).max(axis=2, keepdims=True)
        return np.repeat(pairs, 2, axis=2).reshape(error.shape)
    return error.reshape(out.shape)


def _join_error(
    spec: LayerSpec, given: list[Array], errors: list[Array], precision: Precision
) -> Array:
    """The errors joined, and for a sum one rounding for each value added."""
    apply = JOINS[spec.kind].apply
    unit = 2.0 * len(given) * precision.unit if spec.kind == "add" else 0.0
    sizes = [np.abs(x) + e for x, e in zip(given, errors, strict=True)]
    found: Array = _SLACK * (apply(errors) + unit * apply(sizes))
    return found


def _affine_error(
    network: Network, spec: LayerSpec, x: Array, error: Array, precision: Precision
) -> Array:
    row = AFFINE[spec.kind]
    terms = row.terms(spec.name, spec.options, network.arrays, x.shape[1:])
    relative = (terms + 4) * precision.unit if terms else 0.0
    gamma = relative / (1.0 - relative) if relative < 1.0 else math.inf
    size = np.abs(x)
    arrays, largest = _sizes(row, spec.name, network.arrays, gamma)
    spread = row.apply(spec.name, spec.options, arrays, error + gamma * (size + error))
    # Every product may underflow, and every number be flushed to zero before it.
    least = (terms + 4) * (1.0 + max(largest, float(size.max(initial=0.0)))) * precision.tiny
    found: Array = _SLACK * spread + least
    if "error" in row.arrays:
        off, bias_off = stored_errors(spec.name, network.arrays)
        if off or bias_off:
            length = (_lengths(x) + _lengths(error)).reshape(len(x), *[1] * (found.ndim - 1))
            found = found + _SLACK * (off * length + bias_off)
    return found


def _sizes(
    row: AffineKind, name: str, held: Mapping[str, Any], gamma: float
) -> tuple[dict[str, Any], float]:
    """``|W|`` and ``gamma |b|`` in place of W and b, and their largest entry."""
    names = [f"{name}.{key}" for key in row.arrays]
    arrays = {key: held[key] for key in names if key in held}
    largest = 0.0
    for key, factor in ((f"{name}.weight", 1.0), (f"{name}.bias", gamma)):
        if key in arrays:
            size = np.abs(np.asarray(arrays[key], dtype=np.float64))
            largest = max(largest, float(size.max(initial=0.0)))
            arrays[key] = factor * size
    return arrays, largest


def _lengths(x: Array) -> Array:
    """2-norms of samples, at every scale."""
    flat = np.abs(x).reshape(len(x), -1)
    largest = flat.max(axis=1, keepdims=True, initial=TINY)
    return np.asarray(largest[:, 0] * np.linalg.norm(flat / largest, axis=1))
