"""Activations by name: the checks of their options and arrays, and their slope ranges."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ..errors import NetworkError, UnsupportedModule
from .activation_formulas import PROMISED_NAME
from .activation_formulas import promised_only as promised_only
from .activation_row import Options as Options
from .activation_row import SlopeRange as SlopeRange
from .activation_table import ACTIVATIONS as ACTIVATIONS

# The kind of activations that are known by a user's promise of their slopes.
PROMISED = "promised"
_NUMBER = r"(-?\d+(?:\.\d+)?(?:e[-+]\d+)?)"
_LABEL = re.compile(rf"{PROMISED} ({PROMISED_NAME.pattern}) \[{_NUMBER}, {_NUMBER}\]")


def is_known(kind: str) -> bool:
    """Whether what a layer of this kind computes is known, not its slopes alone."""
    return kind not in ACTIVATIONS or ACTIVATIONS[kind].known


def label_of_kind(kind: str, options: Options) -> str:
    """The kind as a certificate states it: of a promised activation also what is promised.

    Example:
        >>> label_of_kind("promised", {"name": "Bend", "alpha": 0, "beta": 1.25})
        'promised Bend [0.0, 1.25]'
    """
    if is_known(kind):
        return kind
    alpha, beta = ACTIVATIONS[kind].slopes(options)
    return f"{kind} {options['name']} [{alpha!r}, {beta!r}]"


def promises_in(label: str) -> list[tuple[str, SlopeRange]]:
    """The promises that such a text states, several where activations stand side by side.

    Example:
        >>> promises_in("relu + promised Bend [0.0, 1.25]")
        [('Bend', SlopeRange(alpha=0.0, beta=1.25))]
    """
    return [(n, SlopeRange(float(low), float(high))) for n, low, high in _LABEL.findall(label)]


def check_activation(kind: str, name: str, options: Options) -> None:
    """Raise :class:`UnsupportedModule` unless ``options`` are what ``kind`` takes.

    Numbers must be finite; ``name`` is the layer's qualified name, for the message.
    """
    row = ACTIVATIONS[kind]
    if set(options) != set(row.defaults):
        raise UnsupportedModule(
            f"{name}: {kind} takes the options {sorted(row.defaults)}, got {sorted(options)}"
        )
    for key, default in row.defaults.items():
        value = options[key]
        if isinstance(default, float) and not _is_finite_number(value):
            raise UnsupportedModule(
                f"{name}: {kind}'s {key}: expected a finite number, got {value!r}"
            )
    problem = row.problem(options)
    if problem is not None:
        raise UnsupportedModule(f"{name}: {kind}'s {problem}, got {dict(options)}")


def slope_range(kind: str, options: Options | None = None) -> SlopeRange:
    """Slope range ``[alpha, beta]`` of one activation; missing options take their defaults.

    Example:
        >>> slope_range("relu")
        SlopeRange(alpha=0.0, beta=1.0)
        >>> slope_range("leaky_relu", {"negative_slope": 1.5})
        SlopeRange(alpha=1.0, beta=1.5)

    Raises:
        UnsupportedModule: for a kind that is not in the table, or options it does not take.
    """
    if kind not in ACTIVATIONS:
        raise UnsupportedModule(
            f"activation {kind!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    complete = {**ACTIVATIONS[kind].defaults, **(options or {})}
    check_activation(kind, kind, complete)
    return ACTIVATIONS[kind].slopes(complete)


def as_computed(kind: str, options: Options, types: Collection[Any]) -> Options:
    """The options of an activation as they act between weights of these NumPy types.

    Kernels of float32 (and of shorter types) round them to float32: ``LeakyReLU(1.1)`` there has
    the slope 1.10000002384, which its ONNX file holds as well.

    Example:
        >>> import numpy as np
        >>> as_computed("leaky_relu", {"negative_slope": 1.1}, {np.dtype("float32")})
        {'negative_slope': 1.100000023841858}
    """
    if kind not in ACTIVATIONS or not types or any(np.dtype(t).itemsize > 4 for t in types):
        return options
    if not is_known(kind):  # no kernel computes with a promise
        return options
    with np.errstate(over="ignore"):
        return {k: v if isinstance(v, str) else float(np.float32(v)) for k, v in options.items()}


def check_arrays(kind: str, name: str, arrays: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """Raise :class:`NetworkError` unless an activation's arrays fit an input of ``shape``."""
    row = ACTIVATIONS[kind]
    for key in row.arrays:
        array, (expected, words) = arrays.get(f"{name}.{key}"), row.array_shapes(shape)
        flat = len(shape) == 1 and array is not None and array.size == expected[0][0]
        odd = kind == "pair_clip" and shape[0] % 2
        if array is None or odd or not (array.shape in expected or flat):
            raise NetworkError(
                f"{name}.{key}: expected an array of shape "
                f"{' or '.join(map(str, dict.fromkeys(expected)))}, {words}, got "
                f"{'none' if array is None else array.shape}"
            )
        if key == "threshold" and float(array.min()) < 0.0:
            raise NetworkError(
                f"{name}.threshold: expected thresholds >= 0, got {float(array.min()):g}; "
                "clamp them (admm_lip.networks.clipped.keep_thresholds)"
            )


def values_of(
    kind: str, options: Options, arrays: Mapping[str, Any], name: str, shape: tuple[int, ...]
) -> Options:
    """The options of a layer with its arrays among them, one entry per neuron of a sample."""
    row = ACTIVATIONS[kind]
    if not row.arrays:
        return options
    own = {key: np.asarray(arrays[f"{name}.{key}"], dtype=np.float64) for key in row.arrays}
    return {**options, **row.per_neuron(own, shape)}


def _is_finite_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # a whole number of more than 308 digits
        return False
