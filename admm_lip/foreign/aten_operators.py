"""The operators of ``torch.export`` that a chain may hold, and what each becomes.

Names and parameters are those of ATen; what is missing from a node has ATen's default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedModule
from .calls import Call
from .graph import BATCH, Fold, Operator
from .layering import Layers

Array = npt.NDArray[Any]


def _linear(layers: Layers, call: Call) -> None:
    layers.linear(call, call.array("weight"), _bias(call))


def _bias(call: Call) -> Array | None:
    return None if call["bias"] is None else call.array("bias")


def _conv2d(layers: Layers, call: Call) -> None:
    """Padding per axis."""
    rows, columns = _pair(call, "padding")
    _convolve(layers, call, [rows, rows, columns, columns])


def _conv2d_named(layers: Layers, call: Call) -> None:
    """Padding by name; "same" puts the odd one last."""
    call.need("padding", "valid", "same")
    kernel, dilation = call.array("weight").shape[2:], _pair(call, "dilation")
    if call.text("padding") == "valid" or len(kernel) != 2:
        _convolve(layers, call, [0, 0, 0, 0])
        return
    totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    _convolve(layers, call, [side for n in totals for side in (n // 2, n - n // 2)])


def _convolve(layers: Layers, call: Call, padding: list[int]) -> None:
    options = {
        "stride": _pair(call, "stride"),
        "padding": padding,
        "dilation": _pair(call, "dilation"),
        "groups": call.integer("groups"),
    }
    layers.conv2d(call, call.array("weight"), _bias(call), options)


def _avg_pool2d(layers: Layers, call: Call) -> None:
    call.need("ceil_mode", False)
    rows, columns = _pair(call, "padding")
    divisor = call["divisor_override"]
    options = {
        "kernel_size": _pair(call, "kernel_size"),
        "stride": _pair(call, "stride" if call["stride"] else "kernel_size"),
        "padding": [rows, rows, columns, columns],
        "count_include_pad": call.flag("count_include_pad"),
        "divisor_override": None if divisor is None else call.integer("divisor_override"),
    }
    layers.avg_pool2d(call, options)


def _pair(call: Call, key: str) -> list[int]:
    """Two numbers, or one for both."""
    sizes = call.integers(key)
    if len(sizes) not in (1, 2):
        raise call.unexpected(key, "one number or two")
    return sizes * 2 if len(sizes) == 1 else sizes


def _flatten(layers: Layers, call: Call) -> None:
    rank = 1 + len(layers.shape)
    call.need("start_dim", 1, 1 - rank)
    call.need("end_dim", -1, rank - 1)
    layers.reshape(call, [-1])


def _view(key: str) -> Callable[[Layers, Call], None]:
    def apply(layers: Layers, call: Call) -> None:
        sizes = call.integers(key)
        if len(sizes) < 2 or sizes[0] not in (BATCH, call.batch):
            raise UnsupportedModule(
                f"{call.label}: the shape {sizes!r:.100} does not keep the batch in front; only a "
                "flatten of each input is supported"
            )
        layers.reshape(call, sizes[1:])

    return apply


def _shift(sign: int) -> Callable[[Layers, Call], None]:
    def apply(layers: Layers, call: Call) -> None:
        call.need("alpha", 1)
        layers.shift(call, _constant(call) if sign > 0 else call.array("other"), sign)

    return apply


def _mul(layers: Layers, call: Call) -> None:
    layers.scale(call, _constant(call))


def _div(layers: Layers, call: Call) -> None:
    layers.scale(call, call.array("other"), divide=True)


def _constant(call: Call) -> Array:
    """The input that is not the data, of an operator that commutes."""
    return call.array("self" if isinstance(call["self"], np.ndarray) else "other")


def _along_features(call: Call) -> None:
    """Behind the batch; -1 is that axis for vectors only."""
    vectors = all(len(part.shape) == 1 for part in call["tensors"])
    call.need("dim", *((1, -1) if vectors else (1,)))


def _one_part(layers: Layers, call: Call) -> None:
    raise UnsupportedModule(f"{call.label}: expected two values or more to put end to end")


def _nothing(layers: Layers, call: Call) -> None:
    """Nothing to add."""


def _dropout(layers: Layers, call: Call) -> None:
    if call.number("p") != 0.0 and call.flag("train"):
        raise UnsupportedModule(
            f"{call.label}: is in training mode, where the network is random; call model.eval() "
            "before exporting"
        )


def _activation(kind: str, *options: str) -> Callable[[Layers, Call], None]:
    """An activation whose options are numbers of the same names."""

    def apply(layers: Layers, call: Call) -> None:
        layers.activation(call, kind, {key: call.number(key) for key in options})

    return apply


def _elu(layers: Layers, call: Call) -> None:
    call.need("scale", 1)
    call.need("input_scale", 1)
    layers.activation(call, "elu", {"alpha": call.number("alpha")})


def _relu6(layers: Layers, call: Call) -> None:
    layers.activation(call, "hardtanh", {"min_val": 0.0, "max_val": 6.0})


def _gelu(layers: Layers, call: Call) -> None:
    layers.activation(call, "gelu", {"approximate": call.text("approximate")})


_SELF = ("self",)
_PAIR = ("self", "other")
_WINDOW = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
_HARDTANH = Operator(
    _SELF, _activation("hardtanh", "min_val", "max_val"), {"min_val": -1.0, "max_val": 1.0}
)
_LEAKY = Operator(_SELF, _activation("leaky_relu", "negative_slope"), {"negative_slope": 0.01})
_ELU = Operator(_SELF, _elu, {"alpha": 1.0, "scale": 1, "input_scale": 1})
_RELU = Operator(_SELF, _activation("relu"))
_ADD = Operator(
    _PAIR,
    _shift(1),
    {"alpha": 1},
    commutes=True,
    join="add",
    joined=lambda call: call.need("alpha", 1),
)
_NOTHING = Operator(_SELF, _nothing, {"memory_format": None})

OPERATORS: Mapping[str, Operator] = {
    "aten.linear.default": Operator(("input", "weight", "bias"), _linear, {"bias": None}),
    "aten.conv2d.default": Operator(
        ("input", "weight", "bias"), _conv2d, {**_WINDOW, "bias": None}
    ),
    "aten.conv2d.padding": Operator(
        ("input", "weight", "bias"), _conv2d_named, {**_WINDOW, "bias": None, "padding": "valid"}
    ),
    "aten.avg_pool2d.default": Operator(
        _SELF,
        _avg_pool2d,
        {
            "kernel_size": None,
            "stride": None,
            "padding": [0, 0],
            "ceil_mode": False,
            "count_include_pad": True,
            "divisor_override": None,
        },
    ),
    "aten.flatten.using_ints": Operator(_SELF, _flatten, {"start_dim": 0, "end_dim": -1}),
    "aten.view.default": Operator(("self", "size"), _view("size")),
    "aten.reshape.default": Operator(("self", "shape"), _view("shape")),
    "aten.add.Tensor": _ADD,
    "aten.add_.Tensor": _ADD,
    "aten.cat.default": Operator(
        ("tensors",), _one_part, {"dim": 0}, join="concatenate", joined=_along_features
    ),
    "aten.sub.Tensor": Operator(_PAIR, _shift(-1), {"alpha": 1}),
    "aten.mul.Tensor": Operator(_PAIR, _mul, commutes=True),
    "aten.div.Tensor": Operator(_PAIR, _div),
    "aten.dropout.default": Operator(("input",), _dropout, {"p": 0.5, "train": True}),
    "aten.feature_dropout.default": Operator(("input",), _dropout, {"p": 0.5, "train": True}),
    "aten.alpha_dropout.default": Operator(("input",), _dropout, {"p": 0.5, "train": True}),
    "aten.alias.default": _NOTHING,
    "aten.clone.default": _NOTHING,
    "aten.contiguous.default": _NOTHING,
    "aten.detach.default": _NOTHING,
    "aten.relu.default": _RELU,
    "aten.relu_.default": _RELU,
    "aten.leaky_relu.default": _LEAKY,
    "aten.leaky_relu_.default": _LEAKY,
    "aten.elu.default": _ELU,
    "aten.elu_.default": _ELU,
    "aten.hardtanh.default": _HARDTANH,
    "aten.hardtanh_.default": _HARDTANH,
    "aten.relu6.default": Operator(_SELF, _relu6),
    "aten.tanh.default": Operator(_SELF, _activation("tanh")),
    "aten.sigmoid.default": Operator(_SELF, _activation("sigmoid")),
    "aten.softplus.default": Operator(
        _SELF, _activation("softplus", "beta", "threshold"), {"beta": 1.0, "threshold": 20.0}
    ),
    "aten.gelu.default": Operator(_SELF, _gelu, {"approximate": "none"}),
    "aten.silu.default": Operator(_SELF, _activation("silu")),
    "aten.silu_.default": Operator(_SELF, _activation("silu")),
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
}
