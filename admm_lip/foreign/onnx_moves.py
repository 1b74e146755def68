"""ONNX's operators that move, repeat, leave out or sum entries, axis by axis.

Axes count the batch as the first; what touches it is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NetworkError, UnsupportedModule
from .aten_moves import sample_axes
from .graph import BATCH, Operator
from .network_builder import Layers, Position
from .node_parameters import Call

Numbers = npt.NDArray[Any]


def _transpose(layers: Layers, call: Call) -> None:
    order = None if call["perm"] is None else call.integers("perm")
    layers.rearrange(call, lambda x: x.transpose(order))


def _gather(layers: Layers, call: Call) -> None:
    indices = call["indices"]
    if not isinstance(indices, np.ndarray) or not np.issubdtype(indices.dtype, np.integer):
        raise call.unexpected("indices", "a constant of whole numbers")
    layers.rearrange(call, lambda x: np.take(x, indices, call.integer("axis")))


def _slice(layers: Layers, call: Call) -> None:
    starts, ends = call.integers("starts"), call.integers("ends")
    axes = [*range(len(starts))] if call["axes"] is None else call.integers("axes")
    steps = [1] * len(starts) if call["steps"] is None else call.integers("steps")
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise NetworkError(f"{call.label}: starts, ends, axes and steps of different lengths")
    rank = 1 + len(layers.shape)
    cuts = [slice(None)] * rank
    for axis, *cut in zip(axes, starts, ends, steps, strict=True):
        if not -rank <= axis < rank:
            raise NetworkError(f"{call.label}: axes={axes} of a value of {rank} axes")
        cuts[axis] = slice(*cut)
    layers.rearrange(call, lambda x: x[tuple(cuts)])


def _pad(layers: Layers, call: Call) -> None:
    """By all starts, then all ends: zeros, or the other end's entries."""
    call.need("mode", "constant", "wrap")
    key = "value" if call["constant_value"] is None else "constant_value"
    call.need(key, 0, 0.0)
    pads, rank = call.integers("pads"), 1 + len(layers.shape)
    axes = [*range(rank)] if call["axes"] is None else call.integers("axes")
    if len(pads) != 2 * len(axes) or any(not -rank <= axis < rank for axis in axes):
        raise call.unexpected("pads", "two numbers for each axis")
    widths = [(0, 0)] * rank
    for k, axis in enumerate(axes):
        widths[axis] = (pads[k], pads[k + len(axes)])
    layers.pad(call, widths, call["mode"] == "wrap")


def _flatten(layers: Layers, call: Call) -> None:
    call.need("axis", 1, -len(layers.shape))
    layers.reshape(call, [-1])


def _reshape(layers: Layers, call: Call) -> None:
    sizes = call.integers("shape")
    if call.flag("allowzero") and 0 in sizes:
        raise UnsupportedModule(f"{call.label}: an empty shape {sizes!r:.100} is not supported")
    rest = [
        layers.shape[k] if n == 0 and k < len(layers.shape) else n for k, n in enumerate(sizes[1:])
    ]
    inferred = bool(sizes) and sizes[0] == BATCH and BATCH not in rest
    wrong = inferred and math.prod(rest) != math.prod(layers.shape)
    if not sizes or sizes[0] not in {BATCH, 0, call.batch} or wrong:
        raise UnsupportedModule(
            f"{call.label}: the shape {sizes!r:.100} does not keep the batch in front"
        )
    layers.reshape(call, rest)


def _unsqueeze(layers: Layers, call: Call) -> None:
    layers.rearrange(call, lambda x: np.expand_dims(x, tuple(call.integers("axes"))))


def _squeeze(layers: Layers, call: Call) -> None:
    if call["axes"] is None and call.batch == 1:
        raise UnsupportedModule(f"{call.label}: squeezes the batch of 1 too; give it axes")
    axes = [*range(len(layers.shape))]
    if call["axes"] is not None:
        axes = sample_axes(call, "axes", layers.shape)
        if any(layers.shape[k] != 1 for k in axes):
            raise NetworkError(f"{call.label}: squeezes an axis of {layers.shape} that is not 1")
    layers.reshape(call, [n for k, n in enumerate(layers.shape) if n != 1 or k not in axes])


def _expand(layers: Layers, call: Call) -> None:
    sizes = call.integers("shape")
    sizes = [1] * (1 + len(layers.shape) - len(sizes)) + sizes
    if len(sizes) != 1 + len(layers.shape) or sizes[0] not in {BATCH, 1, call.batch}:
        raise call.unexpected("shape", "sizes of all axes, the batch's as it is")
    target = [max(n, size) for n, size in zip(layers.shape, sizes[1:], strict=True)]
    layers.expand(call, tuple(target))


def _reduce(mean: bool) -> Callable[[Layers, Call], None]:
    def apply(layers: Layers, call: Call) -> None:
        if call["axes"] is None and call.flag("noop_with_empty_axes"):
            return
        layers.total(call, sample_axes(call, "axes", layers.shape), call.flag("keepdims"), mean)

    return apply


def _greatest(layers: Layers, call: Call) -> None:
    if call["axes"] is None and call.flag("noop_with_empty_axes"):
        return
    layers.greatest(call, sample_axes(call, "axes", layers.shape), call.flag("keepdims"))


def _spatial(layers: Layers, call: Call) -> range:
    if len(layers.shape) < 2:
        raise UnsupportedModule(
            f"{call.label}: expected channels with axes behind them, got shape {layers.shape}"
        )
    return range(1, len(layers.shape))


def _global_average(layers: Layers, call: Call) -> None:
    layers.total(call, _spatial(layers, call), keep=True, mean=True)


def _global_max(layers: Layers, call: Call) -> None:
    layers.greatest(call, _spatial(layers, call), keep=True)


def _split(layers: Layers, call: Call) -> list[Position]:
    (axis,) = sample_axes(call, "axis", layers.shape)
    if call["split"] is not None:
        return layers.split(call, call.integers("split"), axis)
    most = -(-layers.shape[axis] // call.outputs)
    sizes = [min(most, layers.shape[axis] - k * most) for k in range(call.outputs)]
    return layers.split(call, sizes, axis)


_REDUCE = {"axes": None, "keepdims": 1, "noop_with_empty_axes": 0}

# Inputs of later opsets may be attributes of earlier ones; a name is a name.
MOVES: Mapping[str, Operator] = {
    "Split": Operator(("data", "split"), _split, {"split": None, "axis": 0, "num_outputs": None}),
    "Transpose": Operator(("data",), _transpose, {"perm": None}),
    "Gather": Operator(("data", "indices"), _gather, {"axis": 0}),
    "Slice": Operator(
        ("data", "starts", "ends", "axes", "steps"), _slice, {"axes": None, "steps": None}
    ),
    "Pad": Operator(
        ("data", "pads", "constant_value", "axes"),
        _pad,
        {"constant_value": None, "axes": None, "mode": "constant", "value": 0.0},
    ),
    "Flatten": Operator(("input",), _flatten, {"axis": 1}),
    "Reshape": Operator(("data", "shape"), _reshape, {"allowzero": 0}),
    "Unsqueeze": Operator(("data", "axes"), _unsqueeze),
    "Squeeze": Operator(("data", "axes"), _squeeze, {"axes": None}),
    "Expand": Operator(("data", "shape"), _expand),
    "ReduceMean": Operator(("data", "axes"), _reduce(True), _REDUCE),
    "ReduceSum": Operator(("data", "axes"), _reduce(False), _REDUCE),
    "ReduceMax": Operator(("data", "axes"), _greatest, _REDUCE),
    "GlobalAveragePool": Operator(("X",), _global_average),
    "GlobalMaxPool": Operator(("X",), _global_max),
}
