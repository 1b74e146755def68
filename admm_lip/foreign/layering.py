"""Layers collected one by one, with the shape that the value has after each.

Element-wise constants (``x - mean``, ``x / std``, ``x + bias``) are kept back as exact fractions
``x -> scale x + shift`` until a layer needs them: as the bias of the layer before, or as a diagonal
layer of their own.  What no float64 holds is rounded, and by how much is kept with the layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import NetworkError, UnsupportedModule
from ..networks.activations import as_computed
from ..networks.joins import JOINS
from ..networks.layer_spec import INPUT, heard, plainly_wired
from ..networks.layers import Shape, Window, check_size
from ..networks.network import LayerSpec, Network
from .calls import Call

Numbers = npt.NDArray[Any]
# Exact fractions grow with every operation.
_MAX_STEPS = 16


@dataclass(frozen=True, eq=False)
class Position:
    """One value of a graph: the layer that makes it, what is kept back of it, and its shape.

    Attributes:
        layer: its name; ``"input"`` is the network's input.
        kept: what is still to be done to the layer's output.
        shape: without the batch.
        shared: whether several steps use the value.
    """

    layer: str
    kept: Elementwise | None
    shape: Shape
    shared: bool


class Layers:
    """The layers so far.  What is added works on the value gone to last; ``shape`` is its shape."""

    def __init__(self, shape: Shape, shared: bool = False) -> None:
        self.input_shape = self.shape = shape
        self.specs: list[LayerSpec] = []
        self.arrays: dict[str, Numbers] = {}
        self._layer, self._shared = INPUT, shared
        self._kept: Elementwise | None = None
        self._used: dict[str, int] = {}
        self._types: set[np.dtype[Any]] = set()

    def position(self, shared: bool) -> Position:
        """Where the layers are; what several steps use is settled first."""
        if shared:
            self._flush()
        self._shared = shared
        return Position(self._layer, self._kept, self.shape, shared)

    def go_to(self, place: Position) -> None:
        """Go on from a value."""
        self._layer, self._kept = place.layer, place.kept
        self.shape, self._shared = place.shape, place.shared

    def join(self, call: Call, kind: str, places: Sequence[Position]) -> None:
        """Add a layer that takes several values."""
        sources = []
        for place in places:
            self.go_to(place)
            self._flush()
            sources.append(self._layer)
        shape = JOINS[kind].shape(call.label, [place.shape for place in places])
        self._add(kind, call, {}, {}, tuple(sources))
        self.shape = shape

    def linear(self, call: Call, weight: Numbers, bias: Numbers | None) -> None:
        """Add ``weight x + bias``, the weight of shape ``(outputs, inputs)``."""
        self._flush()
        if weight.ndim != 2 or 0 in weight.shape or self.shape != (weight.shape[1],):
            raise NetworkError(
                f"{call.label}: a weight of shape {weight.shape} (outputs, inputs) does not fit "
                f"an input of shape {self.shape}; features must be flattened before it"
            )
        self._types.add(weight.dtype)
        self._add("linear", call, {}, {"weight": weight, "bias": bias})
        self.shape = (weight.shape[0],)

    def conv2d(
        self, call: Call, weight: Numbers, bias: Numbers | None, options: Mapping[str, Any]
    ) -> None:
        """Add a convolution, ``options`` those of the kind ``conv2d``."""
        self._flush()
        if weight.ndim != 4 or 0 in weight.shape or len(self.shape) != 3:
            raise UnsupportedModule(
                f"{call.label}: a kernel of shape {weight.shape} on an input of shape "
                f"{self.shape} is not supported; only 2-d convolutions of images are"
            )
        self._types.add(weight.dtype)
        spec = self._add("conv2d", call, options, {"weight": weight, "bias": bias})
        window = Window.of(spec.options, weight.shape[2:], self.shape, call.label)
        self.shape = (weight.shape[0], *window.out)

    def avg_pool2d(self, call: Call, options: Mapping[str, Any]) -> None:
        """Add an average pool, ``options`` those of the kind ``avg_pool2d``."""
        self._flush()
        if len(self.shape) != 3:
            raise UnsupportedModule(
                f"{call.label}: an input of shape {self.shape} is not supported; only images are"
            )
        spec = self._add("avg_pool2d", call, options, {})
        kernel = tuple(spec.options["kernel_size"])
        window = Window.of({**options, "dilation": [1, 1]}, kernel, self.shape, call.label)
        self.shape = (self.shape[0], *window.out)

    def activation(self, call: Call, kind: str, options: Mapping[str, Any]) -> None:
        """Add an activation."""
        self._flush()
        self._add(kind, call, options, {})

    def reshape(self, call: Call, sizes: list[int]) -> None:
        """Give the value the shape ``sizes``, -1 meaning "what remains".

        A flatten anywhere; before the first layer any shape, as it only says what the input is.
        """
        size = math.prod(self.shape)
        known = math.prod(n for n in sizes if n != -1)
        free = sizes.count(-1)
        if free == 1 and known > 0 and size % known == 0:
            sizes = [size // known if n == -1 else n for n in sizes]
        if any(n < 1 for n in sizes) or math.prod(sizes) != size:
            raise NetworkError(
                f"{call.label}: a value of shape {self.shape} cannot become {sizes}, batch apart"
            )
        shape = tuple(sizes)
        if shape == self.shape:
            return
        if len(shape) == 1:
            self._flatten(call)
        elif self._layer == INPUT and self._kept is None and not self._shared:
            self.input_shape = self.shape = shape
        else:
            raise UnsupportedModule(
                f"{call.label}: reshaping {self.shape} to {shape} is not supported; "
                "only a flatten is"
            )

    def shift(self, call: Call, constant: Numbers, sign: int = 1) -> None:
        """Add ``sign * constant`` to the value."""
        kept = self._kept or Elementwise(call)
        self._kept = kept.shifted(self._per_unit(call, constant), sign)

    def scale(self, call: Call, constant: Numbers, divide: bool = False) -> None:
        """Multiply the value by ``constant``, or divide it."""
        values = self._per_unit(call, constant)
        if divide:
            if not all(values):
                raise NetworkError(f"{call.label}: divides by zero")
            values = [1 / v for v in values]
        kept = self._kept or Elementwise(call)
        self._kept = kept.scaled(values)

    def network(self) -> Network:
        """The layers that lead to where this is, as a network."""
        self._flush()
        specs = [
            replace(spec, options=as_computed(spec.kind, spec.options, self._types))
            for spec in heard(self.specs, self._layer)
        ]
        names = {spec.name for spec in specs}
        arrays = {k: v for k, v in self.arrays.items() if k.rpartition(".")[0] in names}
        return Network(tuple(plainly_wired(specs)), arrays, self.input_shape)

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
        self._layer, self._shared = name, False
        for key, array in arrays.items():
            if array is not None:
                self.arrays[f"{name}.{key}"] = np.ascontiguousarray(array)
        return spec

    def _flatten(self, call: Call) -> None:
        if self._kept is not None and not self._kept.uniform:
            self._flush()
        self._add("flatten", call, {"size": None}, {})
        self.shape = (math.prod(self.shape),)

    def _per_unit(self, call: Call, constant: Numbers) -> list[Fraction]:
        """A constant as one fraction, or one per channel or feature."""
        if not np.isfinite(constant).all():
            raise NetworkError(f"{call.label}: its constant holds a value that is NaN or infinite")
        if constant.size == 1 and constant.ndim <= 1 + len(self.shape):
            return [Fraction(float(constant.reshape(())))]
        full = (1,) * (1 + len(self.shape) - constant.ndim) + constant.shape
        per_unit = (1, self.shape[0], *(1 for _ in self.shape[1:]))
        if full != per_unit or len(self.shape) not in (1, 3):
            raise UnsupportedModule(
                f"{call.label}: a constant of shape {constant.shape} on a value of shape "
                f"{self.shape} is not supported; only one number, or one per channel or feature"
            )
        return [Fraction(float(v)) for v in constant.ravel()]

    def _flush(self) -> None:
        kept, self._kept = self._kept, None
        if kept is None or kept.is_identity:
            return
        call = kept.call
        if len(self.shape) not in (1, 3):
            raise UnsupportedModule(
                f"{call.label}: on a value of shape {self.shape} it is not supported; only on "
                "features or images"
            )
        units = self.shape[0]
        shift, scale = (_rounded(call, v, units) for v in (kept.shift, kept.scale))
        last = self.specs[-1] if self.specs else None
        mine = last is not None and last.name == self._layer and not self._shared
        free = mine and last is not None and last.kind in ("linear", "conv2d")
        if free and last is not None and f"{last.name}.bias" not in self.arrays and kept.unscaled:
            weight = self.arrays[f"{last.name}.weight"]
            self.arrays[f"{last.name}.bias"] = _narrowed(shift.values, weight.dtype)
            if shift.errors.any():
                self.arrays[f"{last.name}.error"] = np.array([0.0, shift.errors.max()])
            return
        arrays = {
            "bias": shift.values if shift.values.any() else None,
            "error": _errors(scale, shift),
        }
        if len(self.shape) == 1:
            check_size(call.label, units, units)
            self._add("linear", call, {}, {"weight": np.diag(scale.values), **arrays})
        else:
            options = {"stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": units}
            weight = scale.values.reshape(-1, 1, 1, 1)
            self._add("conv2d", call, options, {"weight": weight, **arrays})


class Elementwise:
    """``x -> scale x + shift`` in exact fractions; lists of one entry mean every unit."""

    def __init__(
        self,
        call: Call,
        scale: list[Fraction] | None = None,
        shift: list[Fraction] | None = None,
        steps: int = 0,
    ) -> None:
        self.call = call
        self.scale = scale or [Fraction(1)]
        self.shift = shift or [Fraction(0)]
        self.steps = steps
        if steps > _MAX_STEPS:
            raise UnsupportedModule(
                f"{call.label}: more than {_MAX_STEPS} operations on constants in a row; "
                "fold them before exporting"
            )

    @property
    def uniform(self) -> bool:
        """Whether every unit is treated alike."""
        return len(self.scale) == len(self.shift) == 1

    @property
    def unscaled(self) -> bool:
        """Whether it only adds."""
        return all(v == 1 for v in self.scale)

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return self.unscaled and not any(self.shift)

    def shifted(self, values: list[Fraction], sign: int) -> Elementwise:
        """Followed by adding ``sign * values``."""
        shift = [a + sign * b for a, b in _together(self.shift, values)]
        return Elementwise(self.call, self.scale, shift, self.steps + 1)

    def scaled(self, values: list[Fraction]) -> Elementwise:
        """Followed by multiplying by ``values``."""
        scale = [a * b for a, b in _together(self.scale, values)]
        shift = [a * b for a, b in _together(self.shift, values)]
        return Elementwise(self.call, scale, shift, self.steps + 1)


class Rounded(NamedTuple):
    """Fractions as float64 per unit, and bounds on what rounding took from each."""

    values: Numbers
    errors: Numbers


def _rounded(call: Call, fractions: list[Fraction], units: int) -> Rounded:
    try:
        values = [float(v) for v in fractions]
    except OverflowError:
        raise NetworkError(f"{call.label}: its constants overflow") from None
    lost = [abs(Fraction(v) - exact) for v, exact in zip(values, fractions, strict=True)]
    errors = [math.nextafter(float(e), math.inf) if e else 0.0 for e in lost]
    full = (np.broadcast_to(np.array(column), (units,)).copy() for column in (values, errors))
    return Rounded(*full)


def _errors(scale: Rounded, shift: Rounded) -> Numbers | None:
    """As ``layers.stored_errors`` reads them; ``None`` where nothing was rounded."""
    if not (scale.errors.any() or shift.errors.any()):
        return None
    # hypot does not underflow, as squares do; the factor covers its own rounding.
    frobenius = math.hypot(*scale.errors.tolist()) * (1.0 + 1e-9)
    return np.array([frobenius, shift.errors.max()])


def _together(a: list[Fraction], b: list[Fraction]) -> list[tuple[Fraction, Fraction]]:
    size = max(len(a), len(b))
    return list(zip(a * (size // len(a)), b * (size // len(b)), strict=True))


def _narrowed(values: Numbers, dtype: Any) -> Numbers:
    """``values`` in ``dtype`` where that changes none of them."""
    with np.errstate(over="ignore"):
        narrow = values.astype(dtype)
    return narrow if (narrow.astype(values.dtype) == values).all() else values
