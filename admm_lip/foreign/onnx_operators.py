"""The operators of ONNX that a chain may hold, and what each becomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NetworkError, UnsupportedModule
from ..networks.layers import Shape
from ..networks.refusals import BY_BATCH, RANDOM
from .activation_operators import onnx_activations
from .aten_moves import sample_axes
from .graph import BATCH, Fold, Operator
from .network_builder import Layers, Position
from .node_parameters import Call, ChainValue
from .onnx_moves import MOVES
from .written_out import ONNX_INPUTS

Array = npt.NDArray[Any]

# A folded array is a shape; a permuted or renamed weight is not copied.
_MAX_FOLDED = 1024


def _gemm(layers: Layers, call: Call) -> None:
    """``alpha A B + beta C``, with A the data: a linear layer."""
    call.need("transA", 0)
    weight = call.array("B")
    weight = weight if call.flag("transB") else weight.T
    bias = None
    if call["C"] is not None:
        bias = _per_output(call, _times(call, call.array("C"), "beta"), weight.shape[0])
    layers.linear(call, _times(call, weight, "alpha"), bias)


def _matmul(layers: Layers, call: Call) -> None:
    layers.linear(call, call.array("B").T, None)


def _times(call: Call, array: Array, key: str) -> Array:
    """``array`` times a factor, refused where that is not exact in float64."""
    factor = call.number(key)
    if factor == 1.0:
        return array
    product = array.astype(np.float64) * factor
    # Two 24-bit significands; else only a power of two is exact, short of underflow.
    narrow = array.dtype.itemsize <= 4 and float(np.float32(factor)) == factor
    shifted = abs(math.frexp(factor)[0]) == 0.5 and bool((product / factor == array).all())
    if not (narrow or shifted):
        raise UnsupportedModule(
            f"{call.label}: multiplying its weights by {key}={factor!r} rounds them, so a bound "
            "would be of another network; multiply them before exporting"
        )
    return product


def _per_output(call: Call, bias: Array, outputs: int) -> Array:
    if bias.size not in (1, outputs) or bias.shape[:-1] not in ((), (1,)):
        raise UnsupportedModule(
            f"{call.label}: a bias of shape {bias.shape} is not supported; expected one number "
            f"per output ({outputs})"
        )
    return np.broadcast_to(bias.reshape(-1), (outputs,))


def _arithmetic(operation: str) -> Callable[[Layers, Call], None]:
    """The data with a constant, which may stand in front."""

    def apply(layers: Layers, call: Call) -> None:
        first = isinstance(call["B"], ChainValue)
        layers.arithmetic(call, operation, call.array("A" if first else "B"), first)

    return apply


def _negate(layers: Layers, call: Call) -> None:
    layers.arithmetic(call, "neg")


def _batch_norm(layers: Layers, call: Call) -> None:
    if call.flag("training_mode"):
        raise UnsupportedModule(f"{call.label}: {BY_BATCH}")
    arrays = [call.array(key) for key in ("input_mean", "input_var", "scale", "B")]
    layers.normalise(call, arrays, call.number("epsilon"))


def _sum(layers: Layers, call: Call, places: list[Position]) -> None:
    layers.add(call, places)


def _difference(layers: Layers, call: Call, places: list[Position]) -> None:
    layers.subtract(call, places)


def _concatenate(layers: Layers, call: Call, places: list[Position]) -> None:
    (axis,) = sample_axes(call, "axis", places[0].shape)
    layers.concatenate(call, places, axis)


def _scaler(layers: Layers, call: Call) -> None:
    """``(x - offset) * scale``, per feature or by one number."""
    for operation, key in (("sub", "offset"), ("mul", "scale")):
        numbers = np.asarray(call[key], dtype=np.float32)
        if layers.shape != (layers.shape[0],) or numbers.size not in (1, layers.shape[0]):
            raise NetworkError(
                f"{call.label}: {key} of {numbers.size} numbers does not fit a value of shape "
                f"{layers.shape}, batch apart"
            )
        layers.arithmetic(call, operation, numbers)


def _linear_regressor(layers: Layers, call: Call) -> None:
    call.need("post_transform", "NONE")
    rows = np.asarray(call["coefficients"], dtype=np.float32)
    targets = call.integer("targets")
    if targets < 1 or rows.size % targets or len(call["intercepts"]) not in (0, targets):
        raise NetworkError(
            f"{call.label}: {rows.size} coefficients and {len(call['intercepts'])} intercepts do "
            f"not fit {targets} targets"
        )
    bias = np.asarray(call["intercepts"], dtype=np.float32) if call["intercepts"] else None
    layers.linear(call, rows.reshape(targets, -1), bias)


def _cast_value(layers: Layers, call: Call) -> None:
    """To float32 or float64, as ONNX numbers them; others round the values."""
    call.need("to", 1, 11)


def _conv(layers: Layers, call: Call) -> None:
    weight = call.array("W")
    kernel = [*weight.shape[2:]]
    if call["kernel_shape"] is not None and call.integers("kernel_shape") != kernel:
        raise NetworkError(
            f"{call.label}: kernel_shape={call['kernel_shape']} is not that of its weight, "
            f"{weight.shape}"
        )
    bias = None if call["B"] is None else call.array("B")
    window = _window(layers, call, kernel)
    del window["kernel_size"]
    layers.convolution(call, weight, bias, {**window, "groups": call.integer("group")})


def _conv_transposed(layers: Layers, call: Call) -> None:
    """Without stride: a convolution."""
    call.need("output_shape", None)
    call.need("auto_pad", "NOTSET", "VALID")
    weight = call.array("W")
    window = _window(layers, call, [*weight.shape[2:]])
    del window["kernel_size"]
    more = {"output_padding": call.integers("output_padding")}
    bias = None if call["B"] is None else call.array("B")
    options = {**window, "groups": call.integer("group")}
    layers.transposed_convolution(call, weight, bias, options, more)


def _average_pool(layers: Layers, call: Call) -> None:
    call.need("ceil_mode", 0)
    window = _window(layers, call, call.integers("kernel_shape"))
    if set(window.pop("dilation")) != {1}:
        raise UnsupportedModule(f"{call.label}: dilations other than 1 are not supported")
    # Without padding there is nothing to count, and torch's default is the plain form.
    counted = call.flag("count_include_pad") or not any(window["padding"])
    layers.avg_pool(call, {**window, "count_include_pad": counted, "divisor_override": None})


def _max_pool(layers: Layers, call: Call) -> None:
    call.need("storage_order", 0)
    window = _window(layers, call, call.integers("kernel_shape"))
    layers.max_pool(call, window, ceil=call.flag("ceil_mode"))


def _softmax(kind: str) -> Callable[[Layers, Call], None]:
    """Along the outputs of a vector."""

    def apply(layers: Layers, call: Call) -> None:
        call.need("axis", 1, -1)
        layers.vector_function(call, kind, {})

    return apply


def _window(layers: Layers, call: Call, kernel: list[int]) -> dict[str, list[int]]:
    """How a kernel slides, as of an image; a sequence is one of one row.

    The padding is top, bottom, left, right, from ``pads`` (top, left, bottom, right) or
    ``auto_pad``.
    """
    axes = len(kernel)
    stride, dilation = (_list(call, key, [1] * axes) for key in ("strides", "dilations"))
    pads = _list(call, "pads", [0] * (2 * axes))
    if axes not in (1, 2) or len(stride) != axes or len(dilation) != axes or min(stride) < 1:
        raise UnsupportedModule(
            f"{call.label}: a kernel of {kernel} with strides {stride} and dilations {dilation} "
            "is not supported; only 1-d and 2-d ones are"
        )
    call.need("auto_pad", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    auto = call.text("auto_pad")
    if len(pads) != 2 * axes or (auto != "NOTSET" and any(pads)):
        raise NetworkError(f"{call.label}: pads={pads} with auto_pad={auto!r} is not valid")
    if len(layers.shape) != 1 + axes:
        raise UnsupportedModule(
            f"{call.label}: a kernel of {kernel} on a value of shape {layers.shape}, batch apart, "
            "is not supported"
        )
    sides = [side for k in range(axes) for side in (pads[k], pads[k + axes])]
    if auto.startswith("SAME"):
        sides = _same(layers.shape[1:], kernel, stride, dilation, auto == "SAME_LOWER")
    one = [1] * (2 - axes)
    return {
        "kernel_size": one + kernel,
        "stride": one + stride,
        "padding": [0] * (4 - 2 * axes) + sides,
        "dilation": one + dilation,
    }


def _same(
    sizes: Shape, kernel: list[int], stride: list[int], dilation: list[int], large_first: bool
) -> list[int]:
    """The padding that gives one output for every stride."""
    sides = []
    for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        sides += [large, small] if large_first else [small, large]
    return sides


def _list(call: Call, key: str, default: list[int]) -> list[int]:
    return default if call[key] is None else call.integers(key)


def _identity(layers: Layers, call: Call) -> None:
    """Nothing to add."""


def _dropout(layers: Layers, call: Call) -> None:
    if call.number("ratio") != 0.0 and call.flag("training_mode"):
        raise UnsupportedModule(f"{call.label}: {RANDOM}")


_WINDOW = {"auto_pad": "NOTSET", "dilations": None, "pads": None, "strides": None}
_PAIR = ("A", "B")
_PARTS = tuple(f"part{k}" for k in range(32))

OPERATORS: Mapping[str, Operator] = {
    **MOVES,
    "Gemm": Operator(
        ("A", "B", "C"), _gemm, {"C": None, "alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    ),
    "MatMul": Operator(_PAIR, _matmul),
    "Add": Operator(_PAIR, _arithmetic("add"), either=True, join=_sum),
    "Sum": Operator(_PARTS, _identity, dict.fromkeys(_PARTS), join=_sum),
    "Concat": Operator(_PARTS, _identity, {**dict.fromkeys(_PARTS), "axis": 0}, join=_concatenate),
    "Sub": Operator(_PAIR, _arithmetic("sub"), either=True, join=_difference),
    "Mul": Operator(_PAIR, _arithmetic("mul"), either=True),
    "Div": Operator(_PAIR, _arithmetic("div"), either=True),
    "Neg": Operator(("X",), _negate),
    "BatchNormalization": Operator(
        ("X", "scale", "B", "input_mean", "input_var"),
        _batch_norm,
        {"epsilon": 1e-5, "momentum": 0.9, "training_mode": 0, "spatial": 1},
    ),
    "Cast": Operator(("input",), _cast_value, {"to": 0, "saturate": 1}),
    "Conv": Operator(
        ("X", "W", "B"), _conv, {**_WINDOW, "B": None, "group": 1, "kernel_shape": None}
    ),
    "ConvTranspose": Operator(
        ("X", "W", "B"),
        _conv_transposed,
        {
            **_WINDOW,
            **{"B": None, "group": 1, "kernel_shape": None},
            **{"output_padding": [0], "output_shape": None},
        },
    ),
    "MaxPool": Operator(
        ("X",),
        _max_pool,
        {**_WINDOW, "kernel_shape": None, "ceil_mode": 0, "storage_order": 0},
    ),
    "Softmax": Operator(("input",), _softmax("softmax"), {"axis": -1}),
    "LogSoftmax": Operator(("input",), _softmax("log_softmax"), {"axis": -1}),
    "AveragePool": Operator(
        ("X",),
        _average_pool,
        {**_WINDOW, "kernel_shape": None, "ceil_mode": 0, "count_include_pad": 0},
    ),
    "Identity": Operator(("input",), _identity),
    "ai.onnx.ml::Scaler": Operator(("X",), _scaler, {"offset": (), "scale": ()}),
    "ai.onnx.ml::LinearRegressor": Operator(
        ("X",),
        _linear_regressor,
        {"coefficients": (), "intercepts": (), "targets": 1, "post_transform": "NONE"},
    ),
    "Dropout": Operator(
        ("data", "ratio", "training_mode"),
        _dropout,
        {"ratio": 0.5, "training_mode": 0, "seed": None},
    ),
    **onnx_activations(),
}


def _transposed(call: Call) -> Array:
    array = _any_array(call, "data")
    order = None if call["perm"] is None else call.integers("perm")
    if order is not None and sorted(order) != list(range(array.ndim)):
        raise NetworkError(f"{call.label}: perm={order} does not permute {array.ndim} axes")
    return array.transpose(order)


def _shape_of(call: Call) -> Array:
    value = call["data"]
    sizes = [*value.shape] if isinstance(value, np.ndarray) else [BATCH, *value.shape]
    end = None if call["end"] is None else call.integer("end")
    return np.array(sizes[call.integer("start") : end], dtype=np.int64)


def _gathered(call: Call) -> Array:
    call.need("axis", 0)
    items, places = call.integers("data"), _small(call, "indices")
    if not all(-len(items) <= k < len(items) for k in places.ravel()):
        raise NetworkError(f"{call.label}: an index is outside its data")
    return np.array([items[k] for k in places.ravel()], dtype=np.int64).reshape(places.shape)


def _unsqueezed(call: Call) -> Array:
    if call.integers("axes") not in ([0], [-1]) or _small(call, "data").ndim != 0:
        raise UnsupportedModule(f"{call.label}: only a number can become a list")
    return _small(call, "data").reshape(1)


def _concatenated(call: Call) -> Array:
    call.need("axis", 0)
    parts = [_small(call, key) for key in _PARTS if call[key] is not None]
    if not parts or any(part.ndim != 1 for part in parts):
        raise UnsupportedModule(f"{call.label}: only lists of whole numbers can be joined")
    return np.concatenate(parts)


def _cast(call: Call) -> Array:
    """Only the cast that shapes need, to int64."""
    call.need("to", 7)
    return _small(call, "input")


def _any_array(call: Call, key: str) -> Array:
    value = call[key]
    if not isinstance(value, np.ndarray):
        raise call.unexpected(key, "a constant")
    return value


def _small(call: Call, key: str) -> Array:
    array = _any_array(call, key)
    if not np.issubdtype(array.dtype, np.integer) or array.size > _MAX_FOLDED:
        raise call.unexpected(key, "a short list of whole numbers")
    return array.astype(np.int64)


# On constants, and on the shape of the data: what exporters write around a Reshape.
FOLDS: Mapping[str, Fold] = {
    "Identity": Fold(("input",), lambda call: _any_array(call, "input")),
    "Neg": Fold(("X",), lambda call: -call.array("X")),
    "Transpose": Fold(("data",), _transposed, {"perm": None}),
    "Shape": Fold(("data",), _shape_of, {"start": 0, "end": None}, of_shape=True),
    "Gather": Fold(("data", "indices"), _gathered, {"axis": 0}),
    "Unsqueeze": Fold(("data", "axes"), _unsqueezed),
    "Concat": Fold(_PARTS, _concatenated, {**dict.fromkeys(_PARTS), "axis": 0}),
    "Cast": Fold(("input",), _cast, {"to": 0}),
}

# Names of every operator's inputs, in order.
INPUTS = {
    **ONNX_INPUTS,
    **{op: fold.inputs for op, fold in FOLDS.items()},
    **{op: row.inputs for op, row in OPERATORS.items()},
}
