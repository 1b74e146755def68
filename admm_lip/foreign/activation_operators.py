"""The operators of exported programs and of ONNX that are activations, from the table's rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from ..errors import UnsupportedModule
from ..networks.activation_row import Spelling
from ..networks.activations import ACTIVATIONS
from .graph import Operator
from .network_builder import Layers
from .node_parameters import Call

Apply = Callable[[Layers, Call], None]


def aten_activations() -> dict[str, Operator]:
    """ATen's: the options are parameters of their names."""
    return {
        f"aten.{name}.default": _aten(kind, spelling)
        for kind, row in ACTIVATIONS.items()
        for spelling in row.spellings
        for name in spelling.aten
    } | {
        "aten.prelu.default": Operator(("self", "weight"), _prelu("weight")),
        **{f"aten.{name}{end}": _CLIP for name in _CLAMPS for end in (".default", ".Tensor")},
        **{f"aten.clamp_{end}{mark}.default": _CLIP for end in _LIMITS for mark in ("", "_")},
    }


def onnx_activations() -> dict[str, Operator]:
    """ONNX's: the options are attributes of other names, with other defaults."""
    return {
        spelling.onnx: _onnx(kind, spelling)
        for kind, row in ACTIVATIONS.items()
        for spelling in row.spellings
        if spelling.onnx
    } | {
        "PRelu": Operator(("X", "slope"), _prelu("slope")),
        "Clip": replace(_CLIP, inputs=("input", *_LIMITS)),
        "Shrink": Operator(("input",), _shrink, {"bias": 0.0, "lambd": 0.5}),
    }


def _aten(kind: str, spelling: Spelling) -> Operator:
    open_ = {k: v for k, v in ACTIVATIONS[kind].defaults.items() if k not in spelling.fixed}
    given = {} if spelling.module in _WITHOUT_OPTIONS else open_
    names = {key: key for key in given}
    apply = _activation(kind, names, spelling, spelling.needs)
    return Operator(("self",), apply, {**given, **spelling.needs})


def _onnx(kind: str, spelling: Spelling) -> Operator:
    names = {key: name for key, (name, _) in spelling.onnx_options.items()}
    apply = _activation(kind, names, spelling, {})
    return Operator(("X",), apply, dict(spelling.onnx_options.values()))


# ATen's operators of these take no options.
_WITHOUT_OPTIONS = ("SELU", "Hardsigmoid")


def _activation(
    kind: str, names: Mapping[str, str], spelling: Spelling, needs: Mapping[str, float]
) -> Apply:
    """A layer whose options are parameters: ``names`` says which."""
    defaults = ACTIVATIONS[kind].defaults

    def apply(layers: Layers, call: Call) -> None:
        for key, value in needs.items():
            call.need(key, value)
        read = {
            key: call.text(name) if isinstance(defaults[key], str) else call.number(name)
            for key, name in names.items()
        }
        layers.activation(call, kind, {**defaults, **spelling.fixed, **read})

    return apply


def _prelu(key: str) -> Apply:
    """A slope for all, or one per channel: ``(C,)`` in ATen, ``(C, 1, 1)`` in ONNX."""

    def apply(layers: Layers, call: Call) -> None:
        slope, shape = call.array(key), layers.shape
        if key == "slope" and slope.ndim == 1 + len(shape) and len(slope) == 1:
            slope = slope[0]  # with an axis for the batch
        if key == "slope" and slope.size > 1 and slope.shape != (shape[0], *(1 for _ in shape[1:])):
            raise UnsupportedModule(
                f"{call.label}: a slope of shape {slope.shape} on a value of shape {shape} is not "
                "supported; only one number, or one per channel or feature"
            )
        layers.activation(call, "prelu", {}, {"weight": slope.reshape(-1)})

    return apply


def _clip(layers: Layers, call: Call) -> None:
    """Between two limits; one is a ReLU between two shifts: ``max(x, l) = l + (x - l)_+``."""
    low, high = (None if call[key] is None else call.number(key) for key in ("min", "max"))
    if low is not None and high is not None:
        layers.activation(call, "hardtanh", {"min_val": low, "max_val": high})
    elif low is not None:
        _above(layers, call, low)
    elif high is not None:
        layers.arithmetic(call, "neg")
        _above(layers, call, -high)
        layers.arithmetic(call, "neg")


def _above(layers: Layers, call: Call, low: float) -> None:
    limit = np.array(low, dtype=call.number_type)
    if low != 0.0:
        layers.arithmetic(call, "sub", limit)
    layers.activation(call, "relu", {})
    if low != 0.0:
        layers.arithmetic(call, "add", limit)


def _shrink(layers: Layers, call: Call) -> None:
    """Soft where the bias is the limit; another one jumps."""
    call.need("bias", call.number("lambd"))
    layers.activation(call, "softshrink", {"lambd": call.number("lambd")})


_LIMITS = ("min", "max")
_CLIP = Operator(("self", *_LIMITS), _clip, dict.fromkeys(_LIMITS))
_CLAMPS = ("clamp", "clamp_", "clip", "clip_")
