"""ATen's operators that move, repeat, leave out or sum entries, axis by axis.

Axes count the batch as the first; what touches it is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedModule
from ..networks.layers import Shape
from .graph import BATCH, Operator
from .network_builder import Layers, Position
from .node_parameters import Call

Numbers = npt.NDArray[Any]
_SELF = ("self",)


def sample_axes(call: Call, key: str, shape: Shape) -> list[int]:
    """The axes that a parameter names, counted without the batch.

    Raises:
        UnsupportedModule: where one is the batch's, none is named, or the value does not have it.
    """
    rank = 1 + len(shape)
    axes = [k + rank if k < 0 else k for k in call.integers(key)] if call[key] is not None else []
    if not axes or min(axes) < 1 or max(axes) >= rank or len(set(axes)) < len(axes):
        raise UnsupportedModule(
            f"{call.label}: {key}={call[key]!r:.60} of a value of shape {shape}, batch apart; "
            "expected axes of single inputs, not the batch's"
        )
    return [k - 1 for k in axes]


def _move(move: Callable[[Numbers, Call], Numbers]) -> Callable[[Layers, Call], None]:
    """NumPy's function of the batch and the node's parameters."""

    def apply(layers: Layers, call: Call) -> None:
        layers.rearrange(call, lambda x: move(x, call))

    return apply


def _slice(x: Numbers, call: Call) -> Numbers:
    start, end = (None if call[key] is None else call.integer(key) for key in ("start", "end"))
    return _cut(x, call.integer("dim"), slice(start, end, call.integer("step")))


def _cut(x: Numbers, axis: int, part: slice) -> Numbers:
    found: Numbers = np.moveaxis(np.moveaxis(x, axis, 0)[part], 0, axis)
    return found


def _narrow(x: Numbers, call: Call) -> Numbers:
    first = call.integer("start")
    return _cut(x, call.integer("dim"), slice(first, first + call.integer("length")))


def _pad(layers: Layers, call: Call) -> None:
    """By pairs, the last axis first: zeros, or the other end's entries."""
    around = "mode" in call.parameters and call["mode"] == "circular"
    if "mode" in call.parameters:
        call.need("mode", "constant", "circular")
    call.need("value", None, 0)
    flat = call.integers("pad")
    pairs = list(zip(flat[::2], flat[1::2], strict=False))[::-1]
    if len(flat) % 2 or len(pairs) > 1 + len(layers.shape):
        raise call.unexpected("pad", "two numbers for each axis")
    layers.pad(call, [(0, 0)] * (1 + len(layers.shape) - len(pairs)) + pairs, around)


def _view(key: str) -> Callable[[Layers, Call], None]:
    def apply(layers: Layers, call: Call) -> None:
        sizes = call.integers(key)
        size = int(np.prod(layers.shape))
        keeps = bool(sizes) and sizes[0] in (BATCH, call.batch)
        # x.view(-1, n): what remains is the batch, where n is all of an input.
        if not keeps or (sizes[0] == -1 and np.prod(sizes[1:]) != size and -1 not in sizes[1:]):
            raise UnsupportedModule(
                f"{call.label}: the shape {sizes!r:.100} does not keep the batch in front"
            )
        layers.reshape(call, sizes[1:])

    return apply


def _flatten(layers: Layers, call: Call) -> None:
    rank = 1 + len(layers.shape)
    first, last = (call.integer(key) % rank for key in ("start_dim", "end_dim"))
    if not 1 <= first <= last:
        raise UnsupportedModule(
            f"{call.label}: flattens from axis {first} to {last}; expected axes behind the batch"
        )
    shape = layers.shape
    layers.reshape(call, [*shape[: first - 1], -1, *shape[last:]])


def _unflatten(layers: Layers, call: Call) -> None:
    (axis,) = sample_axes(call, "dim", layers.shape)
    shape = layers.shape
    layers.reshape(call, [*shape[:axis], *call.integers("sizes"), *shape[axis + 1 :]])


def _squeeze(layers: Layers, call: Call) -> None:
    axes = sample_axes(call, "dim", layers.shape)
    layers.reshape(call, [n for k, n in enumerate(layers.shape) if n != 1 or k not in axes])


def _squeeze_all(layers: Layers, call: Call) -> None:
    if call.batch == 1:
        raise UnsupportedModule(
            f"{call.label}: squeezes the batch of 1 too; squeeze single axes, x.squeeze(-1), or "
            "export with an open batch"
        )
    layers.reshape(call, [n for n in layers.shape if n != 1])


def _expand(layers: Layers, call: Call) -> None:
    batch, *sizes = call.integers("size") or [0]
    if batch not in (BATCH, call.batch) or len(sizes) != len(layers.shape):
        raise call.unexpected("size", "sizes of all axes, the batch's as it is")
    target = [n if size == -1 else size for n, size in zip(layers.shape, sizes, strict=True)]
    layers.expand(call, tuple(target))


def _reduce(mean: bool) -> Callable[[Layers, Call], None]:
    def apply(layers: Layers, call: Call) -> None:
        axes = sample_axes(call, "dim", layers.shape)
        layers.total(call, axes, call.flag("keepdim"), mean)

    return apply


def _split(layers: Layers, call: Call) -> list[Position]:
    (axis,) = sample_axes(call, "dim", layers.shape)
    size, most = layers.shape[axis], call.integer("split_size")
    if most < 1:
        raise call.unexpected("split_size", "a number > 0")
    sizes = [min(most, size - first) for first in range(0, size, most)]
    return layers.split(call, sizes, axis)


def _chunk(layers: Layers, call: Call) -> list[Position]:
    (axis,) = sample_axes(call, "dim", layers.shape)
    size, count = layers.shape[axis], call.integer("chunks")
    if count < 1:
        raise call.unexpected("chunks", "a number > 0")
    most = -(-size // count)
    return layers.split(call, [min(most, size - first) for first in range(0, size, most)], axis)


def _split_sizes(layers: Layers, call: Call) -> list[Position]:
    (axis,) = sample_axes(call, "dim", layers.shape)
    return layers.split(call, call.integers("split_sizes"), axis)


def _unbind(layers: Layers, call: Call) -> list[Position]:
    (axis,) = sample_axes(call, "dim", layers.shape)
    shape = [*layers.shape[:axis], *layers.shape[axis + 1 :]]
    parts = layers.split(call, [1] * layers.shape[axis], axis)
    return [layers.reshaped(call, part, shape) for part in parts]


_REDUCE = {"keepdim": False, "dtype": None}
_SLICE = {"dim": 0, "start": None, "end": None, "step": 1}

MOVES: Mapping[str, Operator] = {
    "aten.split.Tensor": Operator(("self", "split_size"), _split, {"dim": 0}),
    "aten.split_with_sizes.default": Operator(("self", "split_sizes"), _split_sizes, {"dim": 0}),
    "aten.chunk.default": Operator(("self", "chunks"), _chunk, {"dim": 0}),
    "aten.unbind.int": Operator(_SELF, _unbind, {"dim": 0}),
    "aten.permute.default": Operator(
        ("self", "dims"), _move(lambda x, call: x.transpose(call.integers("dims")))
    ),
    "aten.transpose.int": Operator(
        ("self", "dim0", "dim1"),
        _move(lambda x, call: np.swapaxes(x, call.integer("dim0"), call.integer("dim1"))),
    ),
    "aten.flip.default": Operator(
        ("self", "dims"), _move(lambda x, call: np.flip(x, tuple(call.integers("dims"))))
    ),
    "aten.select.int": Operator(
        ("self", "dim", "index"),
        _move(lambda x, call: np.take(x, call.integer("index"), call.integer("dim"))),
    ),
    "aten.slice.Tensor": Operator(_SELF, _move(_slice), _SLICE),
    "aten.narrow.default": Operator(("self", "dim", "start", "length"), _move(_narrow)),
    "aten.unsqueeze.default": Operator(
        ("self", "dim"), _move(lambda x, call: np.expand_dims(x, call.integer("dim")))
    ),
    "aten.squeeze.dim": Operator(("self", "dim"), _squeeze),
    "aten.squeeze.dims": Operator(("self", "dim"), _squeeze),
    "aten.squeeze.default": Operator(_SELF, _squeeze_all),
    "aten.expand.default": Operator(("self", "size"), _expand, {"implicit": False}),
    "aten.constant_pad_nd.default": Operator(("self", "pad"), _pad, {"value": 0}),
    "aten.pad.default": Operator(("self", "pad"), _pad, {"mode": "constant", "value": None}),
    "aten.flatten.using_ints": Operator(_SELF, _flatten, {"start_dim": 0, "end_dim": -1}),
    "aten.unflatten.int": Operator(("self", "dim", "sizes"), _unflatten),
    "aten.view.default": Operator(("self", "size"), _view("size")),
    "aten._unsafe_view.default": Operator(("self", "size"), _view("size")),
    "aten.reshape.default": Operator(("self", "shape"), _view("shape")),
    "aten.mean.dim": Operator(("self", "dim"), _reduce(True), _REDUCE),
    "aten.sum.dim_IntList": Operator(("self", "dim"), _reduce(False), _REDUCE),
}
