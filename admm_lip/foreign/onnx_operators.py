"""The operators of ONNX that a chain may hold, and what each becomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NetworkError, UnsupportedModule
from .calls import Call
from .graph import BATCH, Fold, Operator
from .layering import Layers

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


def _add(layers: Layers, call: Call) -> None:
    layers.shift(call, _constant(call))


def _sub(layers: Layers, call: Call) -> None:
    layers.shift(call, call.array("B"), -1)


def _mul(layers: Layers, call: Call) -> None:
    layers.scale(call, _constant(call))


def _div(layers: Layers, call: Call) -> None:
    layers.scale(call, call.array("B"), divide=True)


def _constant(call: Call) -> Array:
    """The input that is not the data, of an operator that commutes."""
    return call.array("A" if isinstance(call["A"], np.ndarray) else "B")


def _conv(layers: Layers, call: Call) -> None:
    weight = call.array("W")
    spatial = max(weight.ndim - 2, 0)
    dilation = _list(call, "dilations", [1] * spatial)
    if call["kernel_shape"] is not None and call.integers("kernel_shape") != [*weight.shape[2:]]:
        raise NetworkError(
            f"{call.label}: kernel_shape={call['kernel_shape']} is not that of its weight, "
            f"{weight.shape}"
        )
    stride = _list(call, "strides", [1] * spatial)
    bias = None if call["B"] is None else call.array("B")
    options = {
        "stride": stride,
        "padding": _padding(layers, call, [*weight.shape[2:]], stride, dilation),
        "dilation": dilation,
        "groups": call.integer("group"),
    }
    layers.conv2d(call, weight, bias, options)


def _average_pool(layers: Layers, call: Call) -> None:
    call.need("ceil_mode", 0)
    kernel = call.integers("kernel_shape")
    if call["dilations"] is not None and set(call.integers("dilations")) != {1}:
        raise UnsupportedModule(f"{call.label}: dilations other than 1 are not supported")
    stride = _list(call, "strides", [1] * len(kernel))
    padding = _padding(layers, call, kernel, stride, [1] * len(kernel))
    options = {
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        # Without padding there is nothing to count, and torch's default is the plain form.
        "count_include_pad": call.flag("count_include_pad") or not any(padding),
        "divisor_override": None,
    }
    layers.avg_pool2d(call, options)


def _list(call: Call, key: str, default: list[int]) -> list[int]:
    return default if call[key] is None else call.integers(key)


def _padding(
    layers: Layers, call: Call, kernel: list[int], stride: list[int], dilation: list[int]
) -> list[int]:
    """Top, bottom, left, right, from ``pads`` (top, left, bottom, right) or ``auto_pad``."""
    if len(kernel) != 2 or len(stride) != 2 or len(dilation) != 2 or min(stride) < 1:
        raise UnsupportedModule(
            f"{call.label}: a kernel of {kernel} with strides {stride} and dilations {dilation} "
            "is not supported; only 2-d ones are"
        )
    call.need("auto_pad", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    auto, pads = call.text("auto_pad"), _list(call, "pads", [0] * 4)
    if len(pads) != 4 or (auto != "NOTSET" and any(pads)):
        raise NetworkError(f"{call.label}: pads={pads} with auto_pad={auto!r} is not valid")
    if not auto.startswith("SAME"):
        return [pads[0], pads[2], pads[1], pads[3]]
    if len(layers.shape) != 3:
        raise UnsupportedModule(f"{call.label}: expected an image, got shape {layers.shape}")
    sides = []
    for size, k, s, d in zip(layers.shape[1:], kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        sides += [small, large] if auto == "SAME_UPPER" else [large, small]
    return sides


def _flatten(layers: Layers, call: Call) -> None:
    call.need("axis", 1, -len(layers.shape))
    layers.reshape(call, [-1])


def _reshape(layers: Layers, call: Call) -> None:
    sizes = call.integers("shape")
    if len(sizes) < 2 or sizes[0] not in {BATCH, 0, call.batch}:
        raise UnsupportedModule(
            f"{call.label}: the shape {sizes!r:.100} does not keep the batch in front; only a "
            "flatten of each input is supported"
        )
    if call.flag("allowzero") and 0 in sizes:
        raise UnsupportedModule(f"{call.label}: an empty shape {sizes!r:.100} is not supported")
    rest = sizes[1:]
    for k, n in enumerate(rest):
        if n == 0 and k < len(layers.shape):
            rest[k] = layers.shape[k]
    layers.reshape(call, rest)


def _identity(layers: Layers, call: Call) -> None:
    """Nothing to add."""


def _dropout(layers: Layers, call: Call) -> None:
    if call.number("ratio") != 0.0:
        call.need("training_mode", 0)


def _clip(layers: Layers, call: Call) -> None:
    low = None if call["min"] is None else call.number("min")
    high = None if call["max"] is None else call.number("max")
    if low is not None and high is not None:
        layers.activation(call, "hardtanh", {"min_val": low, "max_val": high})
    elif low == 0.0:
        layers.activation(call, "relu", {})
    else:
        raise UnsupportedModule(
            f"{call.label}: min={low}, max={high}; only two limits, or min=0 alone, are supported"
        )


def _activation(kind: str, **options: str | float) -> Callable[[Layers, Call], None]:
    """An activation; text among the options is the name of the parameter they come from."""

    def apply(layers: Layers, call: Call) -> None:
        read = {k: call.number(v) if isinstance(v, str) else v for k, v in options.items()}
        layers.activation(call, kind, read)

    return apply


def _gelu(layers: Layers, call: Call) -> None:
    layers.activation(call, "gelu", {"approximate": call.text("approximate")})


_WINDOW = {"auto_pad": "NOTSET", "dilations": None, "pads": None, "strides": None}
_PAIR = ("A", "B")
_PARTS = tuple(f"part{k}" for k in range(32))

OPERATORS: Mapping[str, Operator] = {
    "Gemm": Operator(
        ("A", "B", "C"), _gemm, {"C": None, "alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    ),
    "MatMul": Operator(_PAIR, _matmul),
    "Add": Operator(_PAIR, _add, commutes=True, join="add"),
    "Sum": Operator(_PARTS, _identity, dict.fromkeys(_PARTS), join="add"),
    "Concat": Operator(
        _PARTS,
        _identity,
        {**dict.fromkeys(_PARTS), "axis": 0},
        join="concatenate",
        joined=lambda call: call.need("axis", 1),
    ),
    "Sub": Operator(_PAIR, _sub),
    "Mul": Operator(_PAIR, _mul, commutes=True),
    "Div": Operator(_PAIR, _div),
    "Conv": Operator(
        ("X", "W", "B"), _conv, {**_WINDOW, "B": None, "group": 1, "kernel_shape": None}
    ),
    "AveragePool": Operator(
        ("X",),
        _average_pool,
        {**_WINDOW, "kernel_shape": None, "ceil_mode": 0, "count_include_pad": 0},
    ),
    "Flatten": Operator(("input",), _flatten, {"axis": 1}),
    "Reshape": Operator(("data", "shape"), _reshape, {"allowzero": 0}),
    "Identity": Operator(("input",), _identity),
    "Dropout": Operator(
        ("data", "ratio", "training_mode"),
        _dropout,
        {"ratio": 0.5, "training_mode": 0, "seed": None},
    ),
    "Relu": Operator(("X",), _activation("relu")),
    "LeakyRelu": Operator(
        ("X",), _activation("leaky_relu", negative_slope="alpha"), {"alpha": 0.01}
    ),
    "Elu": Operator(("X",), _activation("elu", alpha="alpha"), {"alpha": 1.0}),
    "Tanh": Operator(("X",), _activation("tanh")),
    "Sigmoid": Operator(("X",), _activation("sigmoid")),
    "Softplus": Operator(("X",), _activation("softplus", beta=1.0, threshold=20.0)),
    "Gelu": Operator(("X",), _gelu, {"approximate": "none"}),
    "Clip": Operator(("input", "min", "max"), _clip, {"min": None, "max": None}),
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
    "Transpose": Fold(("data",), _transposed, {"perm": None}),
    "Shape": Fold(("data",), _shape_of, {"start": 0, "end": None}, of_shape=True),
    "Gather": Fold(("data", "indices"), _gathered, {"axis": 0}),
    "Unsqueeze": Fold(("data", "axes"), _unsqueezed),
    "Concat": Fold(_PARTS, _concatenated, {**dict.fromkeys(_PARTS), "axis": 0}),
    "Cast": Fold(("input",), _cast, {"to": 0}),
}

# Names of every operator's inputs, in order.
INPUTS = {
    **{op: fold.inputs for op, fold in FOLDS.items()},
    **{op: row.inputs for op, row in OPERATORS.items()},
}
