"""The linear part of a layer on batches: forward, adjoint, absolute values, squares, rows.

One class per kind of layer, in one table, whether the layer is a module in training or stored
arrays.  Everything works in the dtype and on the device of its input or weight, and nothing is
copied or unrolled: an operator follows its module's weights as they train.

An operator states two products, with the entries of its matrix as they are or after a function of
each (their absolute values, their squares); everything else follows from these two.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight

from ..errors import UnsupportedModule
from ..networks.activations import Options
from ..networks.layers import AFFINE, Window, conv_matrix
from ..rounding import SLACK, SQUARED_AWAY, unit_scale

Shape = tuple[int, ...]
# What is done to every entry of a matrix.
Entries = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Stored:
    """The arrays of one layer of a stored network, which do not change."""

    weight: Tensor | None = None
    bias: Tensor | None = None


class _Product(torch.autograd.Function):
    """``W x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, operator: Operator) -> Tensor:
        ctx.operator = operator
        ctx.save_for_backward(x)
        return operator.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x,) = ctx.saved_tensors
        wanted_x, wanted_weight, _ = ctx.needs_input_grad
        return (
            ctx.operator.adjoint(grads[0]) if wanted_x else None,
            ctx.operator.weight_gradient(x, grads[0]) if wanted_weight else None,
            None,
        )


def as_they_are(entries: Tensor) -> Tensor:
    """The entries themselves."""
    return entries


class Operator(ABC):
    """``x -> W x`` of one layer, on tensors ``(batch, *shape_in)``.

    Args:
        layer: the module in training, or what is :class:`Stored`; its weight and bias are used.
        options: of the layer, as its row of ``networks.layers.AFFINE`` takes them.
        shape_in: shape of one input sample.
        shape_out: shape of one output sample.
        terms: greatest number of products in one output entry of ``W x``.
        terms_back: the same for ``W' u``.
    """

    def __init__(
        self,
        layer: Any,
        options: Options,
        shape_in: Shape,
        shape_out: Shape,
        terms: int,
        terms_back: int,
    ) -> None:
        self.layer, self.options, self.terms, self.terms_back = layer, options, terms, terms_back
        self.shape_in, self.shape_out = shape_in, shape_out
        self._kept: dict[Any, Tensor] = {}

    @abstractmethod
    def product(self, x: Tensor, entries: Entries) -> Tensor:
        """``f(W) x``, the function applied entry by entry."""

    @abstractmethod
    def transposed(self, u: Tensor, entries: Entries) -> Tensor:
        """``f(W)' u``."""

    @property
    def weight(self) -> Tensor | None:
        """The trained weight, if the layer has one."""
        weight: Tensor | None = getattr(self.layer, "weight", None)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The bias, shaped to be added to one output sample."""
        bias: Tensor | None = getattr(self.layer, "bias", None)
        return None if bias is None else bias.view(-1, *([1] * (len(self.shape_out) - 1)))

    @property
    def size_in(self) -> int:
        """Entries of one input sample."""
        return math.prod(self.shape_in)

    @property
    def size_out(self) -> int:
        """Entries of one output sample."""
        return math.prod(self.shape_out)

    def entries(self, function: Entries) -> Tensor:
        """The weight's entries after a function of each; of stored weights kept."""
        if function is as_they_are:
            return self.own_entries()
        if not isinstance(self.layer, Stored):
            return function(self.own_entries())
        if function not in self._kept:
            self._kept[function] = function(self.own_entries())
        return self._kept[function]

    def own_entries(self) -> Tensor:
        """The weight."""
        assert self.weight is not None
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """``W x``."""
        return self.product(x, as_they_are)

    def trained(self, x: Tensor) -> Tensor:
        """``W x``, differentiable in W and x by the operator's own adjoint."""
        if self.weight is None:
            return self.forward(x)
        product: Tensor = _Product.apply(x, self.weight, self)  # type: ignore[no-untyped-call]
        return product

    def adjoint(self, u: Tensor) -> Tensor:
        """``W' u``."""
        return self.transposed(u, as_they_are)

    def absolute(self, x: Tensor) -> Tensor:
        """``|W| x``."""
        return self.product(x, torch.abs)

    def squared(self, x: Tensor) -> Tensor:
        """``(W * W) x``, entry by entry: for a 0/1 mask x the squared norms of masked rows."""
        return self.product(x, torch.square)

    def weight_gradient(self, v: Tensor, u: Tensor) -> Tensor | None:
        """The gradient of ``sum_b <u_b, W v_b>`` in the weight."""
        return None

    def row_norms(self) -> Tensor:
        """The 2-norm of every row, or an upper bound of it; broadcasts against one sample."""
        return self.squared(self._ones(self.shape_in)).sqrt()[0]

    def row_lengths(self, columns: Tensor | None = None) -> Tensor:
        """Upper bounds of the rows' norms, at every scale, ``(batch, *shape_out)``; float64.

        Args:
            columns: ``(batch, *shape_in)``, 1 for the columns that count and 0 for the others.
        """
        mask = self._ones(self.shape_in) if columns is None else columns
        squares = self.product(mask, self._unit_squares).clamp(min=0.0)
        return (squares.sqrt() * SLACK + SQUARED_AWAY) / self.row_scale().view(-1, *self._tail())

    def column_lengths(self) -> Tensor:
        """The norms of the columns, roughly, ``shape_in``."""
        scale = unit_scale(self.own_entries().abs().max())
        squares = self.transposed(self._ones(self.shape_out), lambda w: (w * scale).square())
        return squares[0].clamp(min=0.0).sqrt() / scale

    def row_scale(self) -> Tensor:
        """A power of two for every first index of the outputs, which brings its entries near 1."""
        return unit_scale(self.own_entries().flatten(1).abs().amax(dim=1))

    def dense(self) -> Tensor:
        """The matrix ``(size_out, size_in)``, every entry as the operator has it."""
        weight = self.own_entries()
        eye = torch.eye(self.size_in, dtype=weight.dtype, device=weight.device)
        return self.forward(eye.view(-1, *self.shape_in)).flatten(1).T.contiguous()

    def matrix(self, limit: int) -> tuple[Any, float]:
        """The matrix as SciPy's sparse array, float64, and the Frobenius norm of its error."""
        raise NotImplementedError

    def _unit_squares(self, weight: Tensor) -> Tensor:
        scale = self.row_scale()
        return (weight * scale.view(-1, *([1] * (weight.ndim - 1)))).square()

    def _tail(self) -> list[int]:
        return [1] * (len(self.shape_out) - 1)

    def _ones(self, shape: Shape) -> Tensor:
        return torch.ones_like(self.own_entries()[:1].flatten()[:1]).expand(1, *shape)


class Dense(Operator):
    """A matrix: ``nn.Linear``."""

    def __init__(self, layer: Any, options: Options, shape_in: Shape, shape_out: Shape) -> None:
        super().__init__(layer, options, shape_in, shape_out, *reversed(layer.weight.shape))

    def product(self, x: Tensor, entries: Entries) -> Tensor:
        return functional.linear(x, self.entries(entries))

    def transposed(self, u: Tensor, entries: Entries) -> Tensor:
        return u @ self.entries(entries)

    def weight_gradient(self, v: Tensor, u: Tensor) -> Tensor | None:
        return u.T @ v

    def row_norms(self) -> Tensor:
        norms: Tensor = self.layer.weight.norm(dim=1)  # differentiable where a row is 0
        return norms

    def dense(self) -> Tensor:
        return self.own_entries()


class Convolution(Operator):
    """``nn.Conv2d`` with zero padding on every side."""

    def __init__(self, layer: Any, options: Options, shape_in: Shape, shape_out: Shape) -> None:
        out, per_group, *kernel = layer.weight.shape
        taps = math.prod(kernel)
        terms = per_group * taps, out // options["groups"] * taps
        super().__init__(layer, options, shape_in, shape_out, *terms)
        self.sides = tuple(options["padding"])
        self.window = tuple(options["stride"]), tuple(options["dilation"]), options["groups"]

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The input and what the convolution has to pad itself."""
        top, bottom, left, right = self.sides
        if (top, left) == (bottom, right):
            return x, (top, left)
        return functional.pad(x, (left, right, top, bottom)), (0, 0)

    def product(self, x: Tensor, entries: Entries) -> Tensor:
        stride, dilation, groups = self.window
        padded, rest = self._padded(x)
        return functional.conv2d(
            padded, self.entries(entries), None, stride, rest, dilation, groups
        )

    def transposed(self, u: Tensor, entries: Entries) -> Tensor:
        (step, across), dilation, groups = self.window
        if (across, dilation, groups) == (step, (1, 1), 1):
            return self._by_phases(u, self.entries(entries), step)
        top, bottom, left, right = self.sides
        channels, rows, columns = self.shape_in
        whole = len(u), channels, rows + top + bottom, columns + left + right
        weight = self.entries(entries)
        found: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
            whole, weight, u, (step, across), 0, dilation, groups
        )
        return found[:, :, top : top + rows, left : left + columns]

    def _by_phases(self, u: Tensor, weight: Tensor, step: int) -> Tensor:
        """One dense convolution, on a CPU several times as fast as torch's own adjoint.

        ``x[s q + r - p] = sum_m w[r + s m] u[q - m]``: the phases r are so many output channels,
        which are then put in their places.
        """
        out, channels, *kernel = weight.shape
        taps = [-(-k // step) for k in kernel]
        fill = [t * step - k for t, k in zip(taps, kernel, strict=True)]
        whole = functional.pad(weight, (0, fill[1], 0, fill[0]))
        phases = whole.view(out, channels, taps[0], step, taps[1], step).permute(1, 3, 5, 0, 2, 4)
        phases = phases.reshape(channels * step * step, out, *taps).flip(2, 3)
        found = functional.conv2d(u, phases, None, 1, (taps[0] - 1, taps[1] - 1))
        return _interleaved(found, self.shape_in, step, (self.sides[0], self.sides[2]))

    def weight_gradient(self, v: Tensor, u: Tensor) -> Tensor | None:
        stride, dilation, groups = self.window
        padded, rest = self._padded(v)
        return conv2d_weight(  # type: ignore[no-any-return, no-untyped-call]
            padded, self.layer.weight.shape, u, stride, rest, dilation, groups
        )

    def row_norms(self) -> Tensor:
        """Of the whole filter, also where its window reaches into the padding."""
        norms: Tensor = self.layer.weight.flatten(1).norm(dim=1)
        return norms[:, None, None]

    def matrix(self, limit: int) -> tuple[Any, float]:
        weight = self.layer.weight.detach().numpy()
        window = Window.of(self.options, weight.shape[2:], self.shape_in, "convolution")
        return conv_matrix(weight, self.shape_in, window, self.window[2], limit=limit), 0.0


class AveragePool(Operator):
    """``nn.AvgPool2d``: sums over windows, each divided by its own count."""

    def __init__(self, layer: Any, options: Options, shape_in: Shape, shape_out: Shape) -> None:
        kernel = tuple(options["kernel_size"])
        super().__init__(layer, options, shape_in, shape_out, *[math.prod(kernel)] * 2)
        self.kernel, self.stride = kernel, tuple(options["stride"])
        self.sides = tuple(options["padding"])
        counts = torch.full(shape_out, float(options["divisor_override"] or math.prod(kernel)))
        if not (options["count_include_pad"] or options["divisor_override"]):
            counts = self._sums(torch.ones((1, *shape_in)))[0]
        self.shares = 1.0 / counts.double()

    @property
    def weight(self) -> Tensor | None:
        return None

    @property
    def bias(self) -> Tensor | None:
        return None

    def own_entries(self) -> Tensor:
        return self.shares

    def _sums(self, x: Tensor) -> Tensor:
        top, bottom, left, right = self.sides
        padded = functional.pad(x, (left, right, top, bottom)) if any(self.sides) else x
        return functional.avg_pool2d(padded, self.kernel, self.stride, divisor_override=1)

    def product(self, x: Tensor, entries: Entries) -> Tensor:
        return self._sums(x) * self.entries(entries).to(x)

    def transposed(self, u: Tensor, entries: Entries) -> Tensor:
        channels, rows, columns = self.shape_in
        ones = u.new_ones((channels, 1, *self.kernel))
        spread = functional.conv_transpose2d(
            u * self.entries(entries).to(u), ones, stride=self.stride, groups=channels
        )
        top, bottom, left, right = self.sides
        missing = rows + top + bottom - spread.shape[2], columns + left + right - spread.shape[3]
        spread = functional.pad(spread, (0, missing[1], 0, missing[0]))
        return spread[:, :, top : top + rows, left : left + columns]

    def matrix(self, limit: int) -> tuple[Any, float]:
        found = AFFINE["avg_pool2d"].build("pool", self.options, {}, self.shape_in)
        return found.matrix, found.error


class ScaledInputs(Operator):
    """``W diag(1 / s)``: a layer whose inputs are given in other units.

    Args:
        inner: the layer, of stored arrays.
        scale: s, of every input, positive float64.
    """

    def __init__(self, inner: Operator, scale: Tensor) -> None:
        super().__init__(
            *(inner.layer, inner.options, inner.shape_in, inner.shape_out),
            *(inner.terms + 2, inner.terms_back + 2),
        )
        self.inner, self.scale = inner, (1.0 / scale).view(inner.shape_in)

    def own_entries(self) -> Tensor:
        return self.inner.own_entries()

    def product(self, x: Tensor, entries: Entries) -> Tensor:
        return self.inner.product(x * entries(self.scale), entries)

    def transposed(self, u: Tensor, entries: Entries) -> Tensor:
        return self.inner.transposed(u, entries) * entries(self.scale)

    def row_lengths(self, columns: Tensor | None = None) -> Tensor:
        near_one = unit_scale(self.scale.max())
        inner = (self.scale * near_one).square().expand(1, *self.shape_in)
        squares = self.inner.product(
            inner if columns is None else inner * columns, self.inner._unit_squares
        )
        lengths = squares.clamp(min=0.0).sqrt() * SLACK + SQUARED_AWAY
        return lengths / near_one / self.inner.row_scale().view(-1, *self._tail())

    def column_lengths(self) -> Tensor:
        return self.inner.column_lengths() * self.scale

    def dense(self) -> Tensor:
        return self.inner.dense() * self.scale.flatten()

    def matrix(self, limit: int) -> tuple[Any, float]:
        matrix, error = self.inner.matrix(limit)
        return matrix * self.scale.flatten().numpy(), error * float(self.scale.max()) * SLACK


Maker = Callable[[Any, Options, Shape, Shape], Operator]

# From the neutral kind of a layer to its operator.
OPERATORS: Mapping[str, Maker] = {
    "linear": Dense,
    "conv2d": Convolution,
    "avg_pool2d": AveragePool,
}


def operator_of(kind: str, name: str, layer: Any, options: Options, shape_in: Shape) -> Operator:
    """The operator of an affine layer.

    Args:
        kind: its neutral kind.
        name: its qualified name, for messages.
        layer: the module, or what is :class:`Stored`.
        options: as ``networks.layers.AFFINE`` takes them.
        shape_in: shape of one input sample.

    Raises:
        UnsupportedModule: by name, for a kind without an operator.
        NetworkError: for an input that does not fit.
    """
    if kind not in OPERATORS:
        raise UnsupportedModule(
            f"{name}: no bounds on balls for layers of kind {kind}; expected {', '.join(OPERATORS)}"
        )
    # The row looks at the sizes of arrays only.
    arrays = {
        f"{name}.{key}": np.broadcast_to(np.zeros(1), tuple(value.shape))
        for key in ("weight", "bias")
        if (value := getattr(layer, key, None)) is not None
    }
    shape_out = AFFINE[kind].shape(name, options, arrays, shape_in)
    return OPERATORS[kind](layer, options, shape_in, shape_out)


def _interleaved(phases: Tensor, shape: Shape, step: int, padding: tuple[int, int]) -> Tensor:
    """Pixels ``s q + r - p`` from phase r; those that no phase reaches stay zero."""
    channels, *sizes = shape
    parts = phases.view(len(phases), channels, step, step, *phases.shape[2:])
    out = phases.new_zeros((len(phases), *shape))
    for row in range(step):
        to_row, from_row = _places(row, step, padding[0], sizes[0], phases.shape[2])
        for column in range(step):
            to, start = _places(column, step, padding[1], sizes[1], phases.shape[3])
            out[:, :, to_row, to] = parts[:, :, row, column, from_row, start]
    return out


def _places(phase: int, step: int, pad: int, size: int, found: int) -> tuple[slice, slice]:
    """Where the numbers of one phase go, and which of them."""
    first = max(0, -((phase - pad) // step))
    pixel = step * first + phase - pad
    count = max(0, min(found - first, -((pixel - size) // step)))
    return slice(pixel, pixel + step * count, step), slice(first, first + count)
