"""The operators of ``torch.export`` that a chain may hold, and what each becomes.

Names and parameters are those of ATen; what is missing from a node has ATen's default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedModule
from ..networks.refusals import BY_BATCH, RANDOM
from ..networks.vector_functions import side_by_side
from .activation_operators import aten_activations
from .aten_moves import MOVES, sample_axes
from .graph import BATCH, Fold, Operator
from .network_builder import Layers, Position
from .node_parameters import Call, ChainValue

Array = npt.NDArray[Any]


def _linear(layers: Layers, call: Call) -> None:
    layers.linear(call, call.array("weight"), _bias(call))


def _bias(call: Call) -> Array | None:
    return None if call["bias"] is None else call.array("bias")


def _conv(layers: Layers, call: Call) -> None:
    """Padding per axis."""
    _convolve(layers, call, [side for n in _sizes(layers, call, "padding") for side in (n, n)])


def _conv_named(layers: Layers, call: Call) -> None:
    """Padding by name; "same" puts the odd one last."""
    call.need("padding", "valid", "same")
    kernel, dilation = call.array("weight").shape[2:], _sizes(layers, call, "dilation")
    totals = [d * (k - 1) for d, k in zip(dilation[-len(kernel) :], kernel, strict=False)]
    same = [0] * (2 - len(totals)) + totals if call.text("padding") == "same" else [0, 0]
    _convolve(layers, call, [side for n in same for side in (n // 2, n - n // 2)])


def _convolve(layers: Layers, call: Call, padding: list[int]) -> None:
    options = {
        "stride": _sizes(layers, call, "stride", 1),
        "padding": padding,
        "dilation": _sizes(layers, call, "dilation", 1),
        "groups": call.integer("groups"),
    }
    layers.convolution(call, call.array("weight"), _bias(call), options)


def _conv_transposed(layers: Layers, call: Call) -> None:
    """Without stride: a convolution."""
    options = {
        "stride": _sizes(layers, call, "stride", 1),
        "padding": [side for n in _sizes(layers, call, "padding") for side in (n, n)],
        "dilation": _sizes(layers, call, "dilation", 1),
        "groups": call.integer("groups"),
    }
    more = {"output_padding": _sizes(layers, call, "output_padding")}
    layers.transposed_convolution(call, call.array("weight"), _bias(call), options, more)


def _window(layers: Layers, call: Call) -> dict[str, Any]:
    """How a pool slides."""
    return {
        "kernel_size": _sizes(layers, call, "kernel_size", 1),
        "stride": _sizes(layers, call, "stride" if call["stride"] else "kernel_size", 1),
        "padding": [side for n in _sizes(layers, call, "padding") for side in (n, n)],
    }


def _avg_pool(layers: Layers, call: Call) -> None:
    call.need("ceil_mode", False)
    divisor = call.parameters.get("divisor_override")
    counted = {
        "count_include_pad": call.flag("count_include_pad"),
        "divisor_override": None if divisor is None else call.integer("divisor_override"),
    }
    layers.avg_pool(call, {**_window(layers, call), **counted})


def _max_pool(layers: Layers, call: Call) -> None:
    spread = {"dilation": _sizes(layers, call, "dilation", 1)}
    layers.max_pool(call, {**_window(layers, call), **spread}, ceil=call.flag("ceil_mode"))


def _softmax(kind: str) -> Callable[[Layers, Call], None]:
    def apply(layers: Layers, call: Call) -> None:
        call.need("dim", 1, -1)
        call.need("dtype", None)
        layers.vector_function(call, kind, {})

    return apply


def _adaptive_window(layers: Layers, call: Call) -> list[int]:
    """The size of windows that lie side by side, of image or sequence."""
    wanted, sizes = call.integers("output_size"), layers.shape[1:]
    pairs = list(zip(wanted, sizes, strict=False))
    if not len(wanted) == len(sizes) == len(pairs) or any(n < 1 or size % n for n, size in pairs):
        raise UnsupportedModule(
            f"{call.label}: to {wanted} of a value of shape {layers.shape}, batch apart; only "
            "sizes that divide those of the input are supported"
        )
    return [size // n for n, size in pairs]


def _adaptive_average(layers: Layers, call: Call) -> None:
    kernel = _adaptive_window(layers, call)
    if tuple(kernel) == layers.shape[1:]:
        layers.total(call, range(1, len(layers.shape)), keep=True, mean=True)
        return
    window = side_by_side(kernel)
    del window["dilation"]
    layers.avg_pool(call, {**window, "count_include_pad": True, "divisor_override": None})


def _adaptive_max(layers: Layers, call: Call) -> None:
    layers.max_pool(call, side_by_side(_adaptive_window(layers, call)))


def _greatest(layers: Layers, call: Call) -> None:
    layers.greatest(call, sample_axes(call, "dim", layers.shape), call.flag("keepdim"))


def _sizes(layers: Layers, call: Call, key: str, alone: int = 0) -> list[int]:
    """Two numbers, or one for both; a sequence is an image of one row, which has ``alone``."""
    sizes = call.integers(key)
    if len(layers.shape) == 2 and len(sizes) == 1:
        return [alone, *sizes]
    if len(sizes) not in (1, 2):
        raise call.unexpected(key, "one number or two")
    return sizes * 2 if len(sizes) == 1 else sizes


def _batch_norm(layers: Layers, call: Call) -> None:
    if call["running_mean"] is None or call["running_var"] is None or call.flag("training"):
        raise UnsupportedModule(f"{call.label}: {BY_BATCH}")
    keys = ("running_mean", "running_var", "weight", "bias")
    arrays = [None if call[key] is None else call.array(key) for key in keys]
    layers.normalise(call, arrays, float(call.number_type(call.number("eps"))))


def _arithmetic(operation: str) -> Callable[[Layers, Call], None]:
    def apply(layers: Layers, call: Call) -> None:
        _unweighted(call)
        first = isinstance(call["other"], ChainValue)
        layers.arithmetic(call, operation, call.array("self" if first else "other"), first)

    return apply


def _unweighted(call: Call) -> None:
    if "alpha" in call.parameters:
        call.need("alpha", 1)


def _negate(layers: Layers, call: Call) -> None:
    layers.arithmetic(call, "neg")


def _subtract_from(layers: Layers, call: Call) -> None:
    _unweighted(call)
    layers.arithmetic(call, "sub", call.array("other"), first=True)


def _sum(layers: Layers, call: Call, places: list[Position]) -> None:
    _unweighted(call)
    layers.add(call, places)


def _difference(layers: Layers, call: Call, places: list[Position]) -> None:
    _unweighted(call)
    layers.subtract(call, places)


def _concatenate(layers: Layers, call: Call, places: list[Position]) -> None:
    (axis,) = sample_axes(call, "dim", places[0].shape)
    layers.concatenate(call, places, axis)


def _stack(layers: Layers, call: Call, places: list[Position]) -> None:
    (axis,) = sample_axes(call, "dim", (1, *places[0].shape))
    parts = []
    for place in places:
        layers.go_to(place)
        layers.rearrange(call, lambda x: np.expand_dims(x, 1 + axis))
        parts.append(layers.position())
    layers.concatenate(call, parts, axis)


def _cast(layers: Layers, call: Call) -> None:
    """To float32 or float64, by the numbers of the archive's schema; others round the values."""
    call.need("dtype", None, 7, 8)


def _one_part(layers: Layers, call: Call) -> None:
    raise UnsupportedModule(f"{call.label}: expected two values or more to put end to end")


def _nothing(layers: Layers, call: Call) -> None:
    """Nothing to add."""


def _dropout(layers: Layers, call: Call) -> None:
    if call.number("p") != 0.0 and call.flag("train"):
        raise UnsupportedModule(f"{call.label}: {RANDOM}")


_SELF = ("self",)
_PAIR = ("self", "other")
_WINDOW = {"bias": None, "stride": [1], "padding": [0], "dilation": [1], "groups": 1}
_CONV = ("input", "weight", "bias")
_POOL = {"kernel_size": None, "stride": None, "padding": [0], "ceil_mode": False}
_AVG_POOL = {**_POOL, "count_include_pad": True}
_MAX_POOL = {**_POOL, "dilation": [1]}
_COPY = {"non_blocking": False, "copy": False, "memory_format": None}
_PLACE = {"dtype": None, "layout": None, "device": None, "pin_memory": None}


def _both(
    name: str,
    apply: Callable[[Layers, Call], None],
    join: Callable[[Layers, Call, list[Position]], None] | None,
) -> dict[str, Operator]:
    """The rows of an operation of two inputs, in place and not."""
    row = Operator(_PAIR, apply, {"alpha": 1}, either=True, join=join)
    return {f"aten.{name}.Tensor": row, f"aten.{name}_.Tensor": row}


_NOTHING = Operator(_SELF, _nothing, {"memory_format": None})

# What may give its data itself, or a view of it; a pad and a sum only look as if they did.
_VIEWS = ("dropout", "alpha_dropout", "alias", "clone", "contiguous", "detach", "to", "_to_copy")

_OPERATORS: Mapping[str, Operator] = {
    **MOVES,
    "aten.linear.default": Operator(("input", "weight", "bias"), _linear, {"bias": None}),
    "aten.conv1d.default": Operator(_CONV, _conv, _WINDOW),
    "aten.conv2d.default": Operator(_CONV, _conv, _WINDOW),
    "aten.conv_transpose2d.input": Operator(
        _CONV, _conv_transposed, {**_WINDOW, "output_padding": [0]}
    ),
    "aten.conv1d.padding": Operator(_CONV, _conv_named, {**_WINDOW, "padding": "valid"}),
    "aten.conv2d.padding": Operator(_CONV, _conv_named, {**_WINDOW, "padding": "valid"}),
    "aten.avg_pool1d.default": Operator(_SELF, _avg_pool, _AVG_POOL),
    "aten.avg_pool2d.default": Operator(_SELF, _avg_pool, {**_AVG_POOL, "divisor_override": None}),
    "aten.adaptive_avg_pool1d.default": Operator(("self", "output_size"), _adaptive_average),
    "aten.adaptive_max_pool1d.default": Operator(("self", "output_size"), _adaptive_max),
    "aten.adaptive_avg_pool2d.default": Operator(("self", "output_size"), _adaptive_average),
    "aten.adaptive_max_pool2d.default": Operator(("self", "output_size"), _adaptive_max),
    "aten.max_pool1d.default": Operator(_SELF, _max_pool, _MAX_POOL),
    "aten.max_pool2d.default": Operator(_SELF, _max_pool, _MAX_POOL),
    "aten.amax.default": Operator(("self", "dim"), _greatest, {"keepdim": False}),
    "aten.softmax.int": Operator(("self", "dim"), _softmax("softmax"), {"dtype": None}),
    "aten.log_softmax.int": Operator(("self", "dim"), _softmax("log_softmax"), {"dtype": None}),
    "aten.batch_norm.default": Operator(
        ("input", "weight", "bias", "running_mean", "running_var"),
        _batch_norm,
        {"training": False, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": True},
    ),
    **_both("add", _arithmetic("add"), _sum),
    **_both("sub", _arithmetic("sub"), _difference),
    **_both("mul", _arithmetic("mul"), None),
    **_both("div", _arithmetic("div"), None),
    "aten.rsub.Scalar": Operator(_PAIR, _subtract_from, {"alpha": 1}),
    "aten.rsub.Tensor": Operator(_PAIR, _subtract_from, {"alpha": 1}),
    "aten.neg.default": Operator(_SELF, _negate),
    "aten.cat.default": Operator(("tensors",), _one_part, {"dim": 0}, join=_concatenate),
    "aten.stack.default": Operator(("tensors",), _one_part, {"dim": 0}, join=_stack),
    "aten.to.dtype": Operator(("self", "dtype"), _cast, _COPY),
    "aten.to.dtype_layout": Operator(_SELF, _cast, {**_COPY, **_PLACE}),
    "aten._to_copy.default": Operator(_SELF, _cast, {**_COPY, **_PLACE}),
    "aten.dropout.default": Operator(("input",), _dropout, {"p": 0.5, "train": True}),
    "aten.feature_dropout.default": Operator(("input",), _dropout, {"p": 0.5, "train": True}),
    "aten.alpha_dropout.default": Operator(("input",), _dropout, {"p": 0.5, "train": True}),
    "aten.alias.default": _NOTHING,
    "aten.clone.default": _NOTHING,
    "aten.contiguous.default": _NOTHING,
    "aten.detach.default": _NOTHING,
    **aten_activations(),
}

OPERATORS: Mapping[str, Operator] = {
    op: replace(row, view=op in MOVES or op.split(".")[1].removeprefix("feature_") in _VIEWS)
    for op, row in _OPERATORS.items()
}


def _size_of(call: Call) -> Array:
    """One size of the data; the batch's is open."""
    sizes = [BATCH, *call["self"].shape] if not isinstance(call["self"], np.ndarray) else []
    k = call.integer("dim")
    if not -len(sizes) <= k < len(sizes):
        raise call.unexpected("dim", "an axis of the data")
    return np.array(sizes[k], dtype=np.int64)


FOLDS: Mapping[str, Fold] = {
    "aten.sym_size.int": Fold(("self", "dim"), _size_of, of_shape=True),
    "aten.neg.default": Fold(_SELF, lambda call: -call.array("self")),
    "aten.t.default": Fold(_SELF, lambda call: call.array("self").T),
    # A constant that the forward makes: torch.tensor(0.5).
    "aten.lift_fresh_copy.default": Fold(("self",), lambda call: np.asarray(call["self"])),
    "aten.detach_.default": Fold(("self",), lambda call: np.asarray(call["self"])),
}
