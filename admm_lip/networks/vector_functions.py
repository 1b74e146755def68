"""Layers that are neither affine nor one function per neuron: max pooling, and a final softmax.

**Max pooling** is a graph of other layers: ``max(a, b) = b + relu(a - b)``, along one axis after
the other and pair by pair, so that a window of k x k takes about ``2 log2 k`` hidden layers.  The
matrix inequality of that graph loses nothing: with ``w = relu(a - b)`` and multiplier 1,

    (b + w)^2 + 2 w (a - b - w) = a^2 + b^2 - (a - w)^2 <= a^2 + b^2,

the constant 1 of one maximum; windows that overlap share their comparisons.

**Softmax** p has the Jacobian ``diag(p) - p p'``, and ``v'(diag(p) - p p')v`` is the variance of v
under p: at most ``(max v - min v)^2 / 4 <= ||v||^2 / 2`` (T. Popoviciu, 1935).  Its constant is 1/2
in l2, and 1/2 in linf, where row i sums to ``2 p_i (1 - p_i)``.

**LogSoftmax** has ``I - 1 p'``, an oblique projection, whose norm is that of ``1 p'``:
``sqrt(n) ||p|| <= sqrt(n)``, reached where p is a corner; in linf 2.  NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from ..errors import NetworkError
from .activation_row import LIBRARY, Options
from .affine import Array, Shape, are_ints, check_size

Check = Callable[[Any], bool]


@dataclass(frozen=True)
class VectorFunction:
    """One row of the table.

    Attributes:
        options: from an option's name to whether a value of it is admitted.
        shape: checks the shape of the input, and gives that of the output.
        apply: the layer on samples ``(batch, *shape)``.
        moved: bound on the error of its outputs, from the options, the inputs, a bound on their
            error and the unit roundoff.
        constant: of a last layer of so many outputs, its l2 Lipschitz constant, rounded upwards.
        differences: whether differences of outputs are those of its inputs.
    """

    options: Mapping[str, Check]
    shape: Callable[[str, Options, Shape], Shape]
    apply: Callable[[Options, Array], Array]
    moved: Callable[[Options, Array, Array, float], Array]
    constant: Callable[[int], float] | None = None
    differences: bool = False


def windows(name: str, options: Options, shape: Shape) -> list[list[list[int]]]:
    """Of rows and columns, the input positions that each place of the output sees."""
    if len(shape) != 3:
        raise NetworkError(
            f"{name}: expected an input of shape (channels, height, width), got {shape}; "
            "give input_shape"
        )
    found = []
    pads = (options["padding"][0:2], options["padding"][2:4])
    for size, kernel, stride, dilation, (before, after) in zip(
        shape[1:], options["kernel_size"], options["stride"], options["dilation"], pads, strict=True
    ):
        # More padding than a window reaches leaves one without any entry.
        if max(before, after) > dilation * (kernel - 1):
            raise NetworkError(f"{name}: a window of {kernel} lies wholly in the padding")
        check_size(f"{name} with its padding", size + before + after, kernel)
        places = range(0, size + before + after - dilation * (kernel - 1), stride)
        reach = [k * dilation - before for k in range(kernel)]
        seen = [[p + k for k in reach if 0 <= p + k < size] for p in places]
        if not seen or not all(seen):
            raise NetworkError(
                f"{name}: a window of {kernel} does not fit an input of {shape}, or lies wholly in "
                "the padding"
            )
        found.append(seen)
    return found


def side_by_side(sizes: Sequence[int]) -> dict[str, list[int]]:
    """Windows of these sizes one after the other; a sequence is an image of one row."""
    kernel = [*[1] * (2 - len(sizes)), *sizes]
    return {"kernel_size": kernel, "stride": kernel, "padding": [0] * 4, "dilation": [1, 1]}


def widened(options: Options, shape: Shape) -> dict[str, Any]:
    """The padding with which a pool has a last window wherever one begins within the input.

    A window that would begin in the padding behind it is left out (``ceil_mode`` of torch and
    ONNX).
    """
    padding = list(options["padding"])
    rows = zip(
        shape[1:], options["kernel_size"], options["stride"], options["dilation"], strict=True
    )
    for axis, (size, kernel, stride, dilation) in enumerate(rows):
        before, after = padding[2 * axis : 2 * axis + 2]
        reach = dilation * (kernel - 1)
        last = -(-(size + before + after - reach - 1) // stride) * stride
        last -= stride if last >= size + before else 0
        padding[2 * axis + 1] = max(after, last + reach + 1 - size - before)
    return {**options, "padding": padding}


def _pool_shape(name: str, options: Options, shape: Shape) -> Shape:
    rows, columns = windows(name, options, shape)
    return (shape[0], len(rows), len(columns))


def _max_pool(options: Options, x: Array) -> Array:
    rows, columns = windows("max_pool2d", options, x.shape[1:])
    tall = np.stack([x[:, :, seen].max(axis=2) for seen in rows], axis=2)
    return np.stack([tall[:, :, :, seen].max(axis=3) for seen in columns], axis=3)


def _outputs(name: str, options: Options, shape: Shape) -> Shape:
    if len(shape) != 1 or shape[0] < 2:
        raise NetworkError(
            f"{name}: works on a value of shape {shape}; it is supported along two outputs or more "
            "of a vector: put a Flatten before it"
        )
    return shape


def _library(x: Array, unit: float) -> Array:
    size = 1.0 + np.abs(x).max(axis=1, keepdims=True) + math.log(x.shape[1])
    return np.asarray(LIBRARY * unit * size * np.ones_like(x))


def _largest(error: Array) -> Array:
    return np.asarray(np.broadcast_to(error.max(axis=1, keepdims=True), error.shape))


VECTOR_FUNCTIONS: Mapping[str, VectorFunction] = {
    "max_pool2d": VectorFunction(
        {
            "kernel_size": are_ints(2, 1),
            "stride": are_ints(2, 1),
            "padding": are_ints(4, 0),
            "dilation": are_ints(2, 1),
        },
        _pool_shape,
        _max_pool,
        lambda o, x, error, unit: _max_pool(o, error),
    ),
    "softmax": VectorFunction(
        {},
        _outputs,
        lambda o, x: np.asarray(special.softmax(x, axis=1)),
        lambda o, x, error, unit: 0.5 * _largest(error) + _library(x, unit),
        constant=lambda n: 0.5 if n > 1 else 0.0,
    ),
    "log_softmax": VectorFunction(
        {},
        _outputs,
        lambda o, x: np.asarray(special.log_softmax(x, axis=1)),
        lambda o, x, error, unit: 2.0 * _largest(error) + _library(x, unit),
        constant=lambda n: math.nextafter(math.sqrt(n), math.inf) if n > 1 else 0.0,
        differences=True,
    ),
}
