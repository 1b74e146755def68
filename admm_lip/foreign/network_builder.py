"""Layers collected one by one, with the shape that the value has after each.

What moves entries about (a transpose, a slice, a pad by zeros, a broadcast) is given as NumPy's
function of the batch; it is tried on numbered samples, and must do the same to each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NetworkError, UnsupportedModule
from ..networks.activations import as_computed
from ..networks.convolution import untransposed
from ..networks.elementwise import Scaling, arithmetic, normalisation
from ..networks.index_maps import ZERO, keeps_order, padded, positions
from ..networks.joins import JOINS
from ..networks.layer_spec import INPUT, heard, plainly_wired
from ..networks.layers import AFFINE, Shape, check_size
from ..networks.network import LayerSpec, Network
from ..networks.simplify import simplified
from ..networks.vector_functions import VECTOR_FUNCTIONS, side_by_side, widened
from .node_parameters import Call

Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Position:
    """One value of a graph: the layer that makes it, and its shape without the batch.

    The network's input is made by the layer ``"input"``.
    """

    layer: str
    shape: Shape


class Layers:
    """The layers so far.  What is added works on the value gone to last; ``shape`` is its shape."""

    def __init__(self, shape: Shape) -> None:
        self.input_shape = self.shape = shape
        self.specs: list[LayerSpec] = []
        self.arrays: dict[str, Numbers] = {}
        self._layer = INPUT
        self._used: dict[str, int] = {}
        self._types: set[np.dtype[Any]] = set()

    def position(self) -> Position:
        """Where the layers are."""
        return Position(self._layer, self.shape)

    def go_to(self, place: Position) -> None:
        """Go on from a value."""
        self._layer, self.shape = place.layer, place.shape

    def add(self, call: Call, places: Sequence[Position]) -> None:
        """Add the sum of values, whose entries are repeated where others have more."""
        shapes = [place.shape for place in places]
        try:
            # Of fewer axes, a value's first one would be added to another's batch.
            target = np.broadcast_shapes(*shapes) if len({*map(len, shapes)}) == 1 else None
        except ValueError:
            target = None
        if target is not None:
            places = [self._moved(call, p, lambda: self.expand(call, target)) for p in places]
        self._join(call, "add", places)

    def subtract(self, call: Call, places: Sequence[Position]) -> None:
        """Add the difference of two values."""
        first, second = places
        self.add(call, [first, self._moved(call, second, lambda: self.arithmetic(call, "neg"))])

    def concatenate(self, call: Call, places: Sequence[Position], axis: int) -> None:
        """Put values one after the other along an axis, counted without the batch."""

        def turn(source: int, target: int) -> None:
            self.rearrange(call, lambda x: np.moveaxis(x, 1 + source, 1 + target))

        self._join(
            call, "concatenate", [self._moved(call, p, lambda: turn(axis, 0)) for p in places]
        )
        turn(0, axis)

    def _moved(self, call: Call, place: Position, change: Callable[[], None]) -> Position:
        """Where a value is after a change."""
        self.go_to(place)
        change()
        return self.position()

    def _join(self, call: Call, kind: str, places: Sequence[Position]) -> None:
        shape = JOINS[kind].shape(call.label, [place.shape for place in places])
        self._add(kind, call, {}, {}, tuple(place.layer for place in places))
        self.shape = shape

    def linear(self, call: Call, weight: Numbers, bias: Numbers | None) -> None:
        """Add ``weight x + bias``, the weight of shape ``(outputs, inputs)``."""
        if weight.ndim != 2 or 0 in weight.shape or self.shape != (weight.shape[1],):
            raise NetworkError(
                f"{call.label}: a weight of shape {weight.shape} (outputs, inputs) does not fit "
                f"an input of shape {self.shape}; features must be flattened before it"
            )
        self._types.add(weight.dtype)
        self._affine("linear", call, {}, {"weight": weight, "bias": bias})

    def convolution(
        self, call: Call, weight: Numbers, bias: Numbers | None, options: Mapping[str, Any]
    ) -> None:
        """Add a convolution, ``options`` those of the kind ``conv2d``; a 1-d one has one row."""
        axes = weight.ndim - 2
        if axes not in (1, 2) or 0 in weight.shape or len(self.shape) != 1 + axes:
            raise UnsupportedModule(
                f"{call.label}: a kernel of shape {weight.shape} on an input of shape "
                f"{self.shape} is not supported; only 1-d and 2-d convolutions are, of "
                "(channels, length) and (channels, height, width)"
            )
        self._types.add(weight.dtype)
        arrays = {"weight": weight if axes == 2 else weight[:, :, None], "bias": bias}
        with self._as_image(call):
            self._affine("conv2d", call, options, arrays)

    def transposed_convolution(
        self,
        call: Call,
        weight: Numbers,
        bias: Numbers | None,
        options: Mapping[str, Any],
        more: Mapping[str, Any],
    ) -> None:
        """Add a transposed convolution of images, ``more`` its options that a plain one has not."""
        channels = len(self.shape) == 3 and weight.ndim == 4 and self.shape[0] == weight.shape[0]
        groups = options["groups"]
        if not channels or 0 in weight.shape or groups < 1 or weight.shape[0] % groups:
            raise UnsupportedModule(
                f"{call.label}: a transposed kernel of shape {weight.shape} on an input of shape "
                f"{self.shape} is not supported; expected (channels, height, width)"
            )
        try:
            kernel, plain = untransposed(weight, options, more)
        except ValueError as reason:
            raise UnsupportedModule(f"{call.label}: {reason}") from None
        self.convolution(call, kernel, bias, plain)

    def avg_pool(self, call: Call, options: Mapping[str, Any]) -> None:
        """Add an average pool, ``options`` those of the kind ``avg_pool2d``."""
        if len(self.shape) not in (2, 3):
            raise UnsupportedModule(
                f"{call.label}: an input of shape {self.shape} is not supported; only images are"
            )
        with self._as_image(call):
            self._affine("avg_pool2d", call, options, {})

    def max_pool(self, call: Call, options: Mapping[str, Any], *, ceil: bool = False) -> None:
        """Add a max pool, of an image or a sequence; ``ceil`` takes a window that begins inside."""
        with self._as_image(call):
            options = widened(options, self.shape) if ceil else options
            self.vector_function(call, "max_pool2d", options)

    def greatest(self, call: Call, axes: Sequence[int], keep: bool) -> None:
        """Add the maximum over axes, counted without the batch: those behind the channels."""
        channels, *sizes = self.shape
        if sorted(axes) != [*range(1, len(self.shape))] or len(sizes) not in (1, 2):
            raise UnsupportedModule(
                f"{call.label}: a maximum over the axes {[k + 1 for k in axes]} of a value of "
                f"shape {self.shape}, batch apart; only one over all axes behind the channels is "
                "supported"
            )
        self.max_pool(call, side_by_side(sizes))
        if not keep:
            self.reshape(call, [channels])

    def vector_function(self, call: Call, kind: str, options: Mapping[str, Any]) -> None:
        """Add a row of ``vector_functions.py``."""
        spec = self._add(kind, call, options, {})
        self.shape = VECTOR_FUNCTIONS[kind].shape(call.label, spec.options, self.shape)

    @contextmanager
    def _as_image(self, call: Call) -> Iterator[None]:
        """Within it a sequence is an image of one row."""
        sequence = len(self.shape) == 2
        if sequence:
            self.reshape(call, [self.shape[0], 1, self.shape[1]])
        yield
        if sequence:
            self.reshape(call, [self.shape[0], self.shape[2]])

    def total(self, call: Call, axes: Sequence[int], keep: bool, mean: bool = False) -> None:
        """Add a sum over axes, counted without the batch, or a mean."""
        count = np.array(math.prod(self.shape[k] for k in axes), dtype=call.number_type)
        self._affine("sum", call, {"axes": [*axes], "keep": keep}, {})
        if mean:
            self._scaling(call, arithmetic("div", count))

    def activation(
        self,
        call: Call,
        kind: str,
        options: Mapping[str, Any],
        arrays: Mapping[str, Numbers] | None = None,
    ) -> None:
        """Add an activation."""
        self._types.update(array.dtype for array in (arrays or {}).values())
        self._add(kind, call, options, arrays or {})

    def arithmetic(
        self, call: Call, operation: str, constant: Numbers | None = None, first: bool = False
    ) -> None:
        """Add ``x op constant``, or ``constant op x``; see ``elementwise.arithmetic``."""
        try:
            scaling = arithmetic(operation, constant, first)
        except NetworkError as reason:
            raise type(reason)(f"{call.label}: {reason}") from None
        if constant is not None:
            self._broadcast(call, constant.shape)
        self._scaling(call, scaling)

    def normalise(self, call: Call, arrays: Sequence[Numbers | None], eps: float) -> None:
        """Add batch normalisation by mean, variance, weight and bias, one number per channel."""
        behind = (1,) * (len(self.shape) - 1)
        for array in arrays:
            if array is not None and array.shape != self.shape[:1]:
                raise NetworkError(
                    f"{call.label}: a statistic of shape {array.shape} does not fit a value of "
                    f"shape {self.shape}; expected one number per channel"
                )
        mean, variance, *rest = (a if a is None else a.reshape(-1, *behind) for a in arrays)
        assert mean is not None and variance is not None
        try:
            parts = normalisation(mean, variance, rest[0], rest[1], eps)
        except NetworkError as reason:
            raise type(reason)(f"{call.label}: {reason}") from None
        for part in parts:
            self._scaling(call, part)

    def rearrange(self, call: Call, move: Callable[[Numbers], Numbers]) -> None:
        """Add what moves, repeats or leaves out entries; :data:`ZERO` stands for a zero.

        Args:
            call: for messages.
            move: NumPy's function of arrays ``(batch, *shape)``.
        """
        one = positions(self.shape)
        try:
            first, second = found = move(np.stack([one, one + one.size]))
        except (ValueError, IndexError, TypeError) as error:
            raise UnsupportedModule(
                f"{call.label}: does not fit a value of shape {self.shape}, batch apart, or "
                f"changes the batch ({error})"
            ) from None
        # What is broadcast takes no memory before it is copied.
        check_size(call.label, found.size, 8)
        if not (second == np.where(first == ZERO, ZERO, first + one.size)).all():
            raise UnsupportedModule(f"{call.label}: mixes the samples of a batch")
        if keeps_order(first, one.size):
            self.reshape(call, [*first.shape])
        else:
            self._affine("take", call, {}, {"index": first.astype(np.float64)})

    def split(self, call: Call, sizes: Sequence[int], axis: int) -> list[Position]:
        """Cut the value along an axis, counted without the batch, into parts of these sizes."""
        if sum(sizes) != self.shape[axis] or min(sizes) < 1:
            raise NetworkError(
                f"{call.label}: parts of {[*sizes]} of axis {axis} of a value of shape "
                f"{self.shape}, batch apart"
            )
        whole, ends = self.position(), [*itertools.accumulate(sizes)]
        cuts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]

        def cut(part: slice) -> None:
            self.rearrange(
                call, lambda x: np.moveaxis(np.moveaxis(x, 1 + axis, 0)[part], 0, 1 + axis)
            )

        return [self._moved(call, whole, partial(cut, part)) for part in cuts]

    def reshaped(self, call: Call, place: Position, sizes: list[int]) -> Position:
        """Where a value is in another shape."""
        return self._moved(call, place, lambda: self.reshape(call, sizes))

    def pad(self, call: Call, widths: Sequence[tuple[int, int]], around: bool = False) -> None:
        """Add zeros, or the other end's entries, before and after along every axis.

        The batch's axis is the first.
        """
        if around:
            self._pad_around(call, widths)
            return
        grown = (
            n + max(a, 0) + max(b, 0) for n, (a, b) in zip(self.shape, widths[1:], strict=True)
        )
        check_size(call.label, math.prod(grown), 8)
        self.rearrange(call, lambda x: padded(x, widths))

    def _pad_around(self, call: Call, widths: Sequence[tuple[int, int]]) -> None:
        """Circular padding; torch and ONNX go around once at most."""
        for n, ends in zip((0, *self.shape), widths, strict=True):
            if not 0 <= min(ends) <= max(ends) <= n:
                raise NetworkError(
                    f"{call.label}: pads {list(ends)} around an axis of {n}; expected 0 to {n}"
                )
        self.rearrange(call, lambda x: np.pad(x, widths, mode="wrap"))

    def reshape(self, call: Call, sizes: list[int]) -> None:
        """Give the value the shape ``sizes``, -1 meaning "what remains"."""
        size = math.prod(self.shape)
        known = math.prod(n for n in sizes if n != -1)
        free = sizes.count(-1)
        if free == 1 and known > 0 and size % known == 0:
            sizes = [size // known if n == -1 else n for n in sizes]
        if any(n < 1 for n in sizes) or math.prod(sizes) != size:
            raise NetworkError(
                f"{call.label}: a value of shape {self.shape} cannot become {sizes}, batch apart"
            )
        if tuple(sizes) == self.shape:
            return
        if len(sizes) == 1:
            self._add("flatten", call, {"size": None}, {})
        else:
            self._add("reshape", call, {"shape": sizes}, {})
        self.shape = tuple(sizes)

    def network(self) -> Network:
        """The layers that lead to where this is, as a network."""
        specs = [
            replace(spec, options=as_computed(spec.kind, spec.options, self._types))
            for spec in heard(self.specs, self._layer)
        ]
        names = {spec.name for spec in specs}
        arrays = {k: v for k, v in self.arrays.items() if k.rpartition(".")[0] in names}
        return simplified(Network(tuple(plainly_wired(specs)), arrays, self.input_shape))

    def _scaling(self, call: Call, scaling: Scaling) -> None:
        weight, bias, _ = scaling
        if weight is not None or (bias is not None and bias.any()):
            self._affine("elementwise", call, {}, scaling.arrays)

    def _broadcast(self, call: Call, constant: Shape) -> None:
        """Repeat the value's entries where a constant has more of them."""
        full = (1,) * (1 + len(self.shape) - len(constant)) + constant
        try:
            if len(full) > 1 + len(self.shape) or full[0] != 1:
                raise ValueError
            target = np.broadcast_shapes(self.shape, full[1:])
        except ValueError:
            raise UnsupportedModule(
                f"{call.label}: a constant of shape {constant} does not broadcast to a value of "
                f"shape {self.shape}, batch apart"
            ) from None
        self.expand(call, target)

    def expand(self, call: Call, target: Shape) -> None:
        """Repeat entries along axes of size 1, up to the shape ``target``."""
        if target != self.shape:
            self.rearrange(call, lambda x: np.broadcast_to(x, (len(x), *target)))

    def _affine(
        self,
        kind: str,
        call: Call,
        options: Mapping[str, Any],
        arrays: Mapping[str, Numbers | None],
    ) -> None:
        spec = self._add(kind, call, options, arrays)
        try:
            self.shape = AFFINE[kind].shape(spec.name, spec.options, self.arrays, self.shape)
        except NetworkError as reason:
            raise type(reason)(f"{call.label}: {reason}") from None

    def _add(
        self,
        kind: str,
        call: Call,
        options: Mapping[str, Any],
        arrays: Mapping[str, Numbers | None],
        sources: tuple[str, ...] = (),
    ) -> LayerSpec:
        number = self._used[call.name] = self._used.get(call.name, 0) + 1
        name = call.name if number == 1 else f"{call.name}:{number}"
        spec = LayerSpec(kind, name, dict(options), sources or (self._layer,))
        self.specs.append(spec)
        self._layer = name
        for key, array in arrays.items():
            if array is not None:
                # ascontiguousarray gives a number an axis.
                self.arrays[f"{name}.{key}"] = np.array(array, order="C")
        return spec
