"""Convolutions and average pools as operators: nothing is unrolled."""
# ruff: noqa: D102 - the methods are those of Operator

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from ..networks.activations import Options
from ..networks.layers import Window, conv_matrix
from .linear_operator import Along, Entries, Operator, Shape, Sides


class Convolution(Operator):
    """``nn.Conv2d`` with zero padding on every side."""

    kind = "conv2d"

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
        if (top, left) == (bottom, right) and min(self.sides) >= 0:
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
        return functional.pad(found, (-left, -right, -top, -bottom))

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

    def along(self, axis: int) -> Along:
        stride, dilation, _ = self.window
        reach = dilation[axis] * (self.layer.weight.shape[2 + axis] - 1)
        return Along(stride[axis], reach, self.sides[2 * axis])

    def windowed(self, shape_in: Shape, sides: Sides, shape_out: Shape) -> Convolution:
        return Convolution(self.layer, {**self.options, "padding": sides}, shape_in, shape_out)


class AveragePool(Operator):
    """``nn.AvgPool2d``: sums over windows, each divided by its own count."""

    kind = "avg_pool2d"

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
        return functional.pad(spread, (-left, -right, -top, -bottom))

    def along(self, axis: int) -> Along:
        return Along(self.stride[axis], self.kernel[axis] - 1, self.sides[2 * axis])

    def windowed(self, shape_in: Shape, sides: Sides, shape_out: Shape) -> AveragePool:
        return AveragePool(self.layer, {**self.options, "padding": sides}, shape_in, shape_out)


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
