"""The one table of affine layers, :data:`AFFINE`, and of the layers that only reshape.

Each row turns a layer's options and arrays into an :class:`AffineMap`.  NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import NetworkError, UnsupportedModule
from .activations import ACTIVATIONS, Options
from .affine import MAX_ENTRIES as MAX_ENTRIES
from .affine import (
    AffineKind,
    is_int,
    stored_array,
    stored_bias,
)
from .affine import AffineMap as AffineMap
from .affine import Array as Array
from .affine import Shape as Shape
from .affine import check_size as check_size
from .affine import stored_errors as stored_errors
from .convolution import AVG_POOL2D, CONV2D
from .convolution import Window as Window
from .convolution import conv_matrix as conv_matrix
from .elementwise import ELEMENTWISE
from .index_maps import SUM, TAKE
from .vector_functions import VECTOR_FUNCTIONS


def _linear_shape(name: str, options: Options, arrays: Mapping[str, Array], shape: Shape) -> Shape:
    weight = stored_array(name, arrays, "weight", 2)
    if shape != weight.shape[1:]:
        hint = "; put a Flatten before it" if len(shape) > 1 else ""
        raise NetworkError(
            f"{name}: expected an input of {weight.shape[1]} features, got shape {shape}{hint}"
        )
    return weight.shape[:1]


def _linear(name: str, options: Options, arrays: Mapping[str, Array], shape: Shape) -> AffineMap:
    weight = stored_array(name, arrays, "weight", 2)
    error, bias_error = stored_errors(name, arrays)
    bias = stored_bias(name, arrays, weight.shape[0])
    return AffineMap(weight, bias, error, weight.shape[:1], bias_error)


def _apply_linear(name: str, options: Options, arrays: Mapping[str, Array], x: Array) -> Array:
    weight = stored_array(name, arrays, "weight", 2)
    out: Array = x @ weight.T + stored_bias(name, arrays, weight.shape[0])
    return out


AFFINE: Mapping[str, AffineKind] = {
    "linear": AffineKind(
        {},
        _linear_shape,
        _linear,
        _apply_linear,
        lambda name, options, arrays, shape: shape[0],
    ),
    "conv2d": CONV2D,
    "avg_pool2d": AVG_POOL2D,
    "elementwise": ELEMENTWISE,
    "take": TAKE,
    "sum": SUM,
}

# Layers that do not change the vector; flatten's ``size`` is the length it asserts, if any.
RESHAPES: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "flatten": {"size": lambda v: v is None or is_int(1)(v)},
    "identity": {},
    "reshape": {"shape": lambda v: isinstance(v, list | tuple) and all(map(is_int(1), v))},
}

KINDS = (*AFFINE, *RESHAPES, *ACTIVATIONS, *VECTOR_FUNCTIONS)


def array_keys(kind: str) -> tuple[str, ...]:
    """Which arrays a layer of this kind may hold."""
    row = AFFINE.get(kind) or ACTIVATIONS.get(kind)
    return row.arrays if row is not None else ()


def check_options(kind: str, name: str, options: Options) -> None:
    """Raise :class:`UnsupportedModule` unless an affine or reshaping kind takes ``options``."""
    row = AFFINE.get(kind) or VECTOR_FUNCTIONS.get(kind)
    schema = RESHAPES[kind] if row is None else row.options
    if set(options) != set(schema):
        raise UnsupportedModule(
            f"{name}: {kind} takes the options {sorted(schema)}, got {sorted(options)}"
        )
    for key, check in schema.items():
        if not check(options[key]):
            raise UnsupportedModule(f"{name}: {kind}'s {key} cannot be {options[key]!r}")
