"""Convolution and average pooling: the kernel that slides, and its sparse matrix.

The entries of a convolution's matrix are its kernel's entries, so nothing is rounded; an average
pool's are 1/count, which is rounded unless the count is a power of two.  NumPy and SciPy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..errors import NetworkError, UnsupportedModule
from ..float64 import U
from .activations import Options
from .affine import (
    MAX_ENTRIES,
    AffineKind,
    AffineMap,
    Array,
    Shape,
    are_ints,
    check_size,
    is_bool,
    is_int,
    stored_array,
    stored_bias,
    stored_errors,
)


def _conv_window(
    name: str, options: Options, arrays: Mapping[str, Array], shape: Shape
) -> tuple[Array, Window]:
    weight = stored_array(name, arrays, "weight", 4)
    groups = options["groups"]
    if len(shape) != 3 or shape[0] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise NetworkError(
            f"{name}: expected an input of shape ({weight.shape[1] * groups}, height, width), "
            f"got {shape}; give input_shape"
        )
    return weight, Window.of(options, weight.shape[2:], shape, name)


def _conv2d_shape(name: str, options: Options, arrays: Mapping[str, Array], shape: Shape) -> Shape:
    weight, window = _conv_window(name, options, arrays, shape)
    return (weight.shape[0], *window.out)


def _conv2d(name: str, options: Options, arrays: Mapping[str, Array], shape: Shape) -> AffineMap:
    weight, window = _conv_window(name, options, arrays, shape)
    matrix = conv_matrix(weight, shape, window, options["groups"], name)
    size = window.out[0] * window.out[1]
    bias = np.repeat(stored_bias(name, arrays, weight.shape[0]), size)
    error, bias_error = stored_errors(name, arrays)
    # The kernel stands once for every place of the output.
    error *= math.sqrt(size) * (1.0 + 1e-9)
    return AffineMap(matrix, bias, error, (weight.shape[0], *window.out), bias_error)


def _apply_conv2d(name: str, options: Options, arrays: Mapping[str, Array], x: Array) -> Array:
    weight, window = _conv_window(name, options, arrays, x.shape[1:])
    groups, bias = options["groups"], stored_bias(name, arrays, weight.shape[0])
    pairs = zip(np.split(window.views(x), groups, axis=1), np.split(weight, groups), strict=True)
    # (batch, rows, columns, out) of every group, then the channels in front
    parts = [np.tensordot(views, kernel, ((1, 4, 5), (1, 2, 3))) for views, kernel in pairs]
    out: Array = np.moveaxis(np.concatenate(parts, axis=3) + bias, 3, 1)
    return out


def _pool_window(name: str, options: Options, shape: Shape) -> Window:
    if len(shape) != 3:
        raise NetworkError(
            f"{name}: expected an input of shape (channels, height, width), got {shape}; "
            "give input_shape"
        )
    kernel = tuple(options["kernel_size"])
    return Window.of({**options, "dilation": [1, 1]}, kernel, shape, name)


def _pool_counts(name: str, options: Options, ones: Array) -> Array:
    """What each sum is divided by, of the sums of ``ones``."""
    kernel = options["kernel_size"]
    counts = np.full(ones.shape, float(options["divisor_override"] or kernel[0] * kernel[1]))
    if not options["count_include_pad"] and not options["divisor_override"]:
        counts = ones
    if counts.min() < 1:
        raise UnsupportedModule(f"{name}: a pooling window lies wholly in the padding")
    return counts


def _pool_shape(name: str, options: Options, arrays: Mapping[str, Array], shape: Shape) -> Shape:
    return (shape[0], *_pool_window(name, options, shape).out)


def _avg_pool2d(
    name: str, options: Options, arrays: Mapping[str, Array], shape: Shape
) -> AffineMap:
    window = _pool_window(name, options, shape)
    ones = conv_matrix(np.ones((shape[0], 1, *window.kernel)), shape, window, shape[0], name)
    counts = _pool_counts(name, options, np.asarray(ones.sum(axis=1)).ravel())
    matrix = sp.csr_array(sp.diags_array(1.0 / counts) @ ones)
    # 1/n is exact for powers of two, else rounded once.
    exact = bool((np.frexp(counts)[0] == 0.5).all())
    error = 0.0 if exact else 1.01 * U * float(np.sqrt((matrix.data**2).sum()))
    return AffineMap(matrix, np.zeros(matrix.shape[0]), error, (shape[0], *window.out))


def _apply_pool(name: str, options: Options, arrays: Mapping[str, Array], x: Array) -> Array:
    window = _pool_window(name, options, x.shape[1:])
    sums = [window.views(part).sum(axis=(4, 5)) for part in (x, np.ones_like(x[:1]))]
    out: Array = sums[0] / _pool_counts(name, options, sums[1])
    return out


@dataclass(frozen=True)
class Window:
    """How a kernel slides; pairs are (rows, columns), the pads top, bottom, left, right."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    out: tuple[int, int]

    @staticmethod
    def of(options: Options, kernel: Shape, shape: Shape, name: str) -> Window:
        """The window of a layer on an input of ``shape``; refuses an empty output."""
        (sy, sx), (dy, dx) = options["stride"], options["dilation"]
        top, bottom, left, right = options["padding"]
        height = (shape[1] + top + bottom - dy * (kernel[0] - 1) - 1) // sy + 1
        width = (shape[2] + left + right - dx * (kernel[1] - 1) - 1) // sx + 1
        if height < 1 or width < 1:
            raise NetworkError(
                f"{name}: a window of {kernel[0]}x{kernel[1]} does not fit an input of {shape}"
            )
        check_size(f"{name} with its padding", shape[1] + top + bottom, shape[2] + left + right)
        pads = (top, bottom, left, right)
        return Window((kernel[0], kernel[1]), (sy, sx), (dy, dx), pads, (height, width))

    def views(self, x: Array) -> Array:
        """What each place of the output sees of ``(batch, channels, height, width)``.

        Returns:
            ``(batch, channels, out_height, out_width, kernel_rows, kernel_columns)``, of padded x.
        """
        top, bottom, left, right = self.padding
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        reach = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))
        views = np.lib.stride_tricks.sliding_window_view(padded, reach, (2, 3))
        (sy, sx), (dy, dx) = self.stride, self.dilation
        return views[:, :, ::sy, ::sx, ::dy, ::dx]


def conv_matrix(
    weight: Array,
    shape: Shape,
    window: Window,
    groups: int = 1,
    name: str = "convolution",
    limit: int = MAX_ENTRIES,
) -> Any:
    """The sparse matrix of a zero-padded 2-d cross-correlation, entry for entry the kernel's.

    Args:
        weight: kernel of shape ``(out, in / groups, rows, columns)``.
        shape: input shape ``(in, height, width)``.
        window: stride, dilation, padding and output size.
        groups: number of channel groups.
        name: the layer's name, for messages.
        limit: greatest number of entries, zeros included.

    Returns:
        ``csr_array`` of shape ``(out * out_height * out_width, in * height * width)``.
    """
    out, per_group = weight.shape[:2]
    rows_out, cols_out = window.out
    channels, height, width = shape
    size = (out * rows_out * cols_out, channels * height * width)
    check_size(name, *size, limit)
    o, y, x, i, a, b = np.ogrid[
        :out, :rows_out, :cols_out, :per_group, : window.kernel[0], : window.kernel[1]
    ]
    row_in = y * window.stride[0] - window.padding[0] + a * window.dilation[0]
    col_in = x * window.stride[1] - window.padding[2] + b * window.dilation[1]
    inside = (row_in >= 0) & (row_in < height) & (col_in >= 0) & (col_in < width)
    channel = (o // (out // groups)) * per_group + i
    full = (out, rows_out, cols_out, *weight.shape[1:])
    keep = np.broadcast_to(inside, full)
    target = np.broadcast_to((o * rows_out + y) * cols_out + x, full)[keep]
    source = np.broadcast_to((channel * height + row_in) * width + col_in, full)[keep]
    values = np.broadcast_to(weight[:, None, None], full)[keep]
    return sp.csr_array((values, (target, source)), shape=size)


def untransposed(weight: Array, options: Options, more: Options) -> tuple[Array, dict[str, Any]]:
    """The kernel and the options of the convolution that a transposed one without stride is.

    The adjoint of a correlation reads its kernel backwards, with inputs and outputs exchanged, and
    pads what the span of the kernel leaves of the padding: entries move, nothing is rounded.

    Args:
        weight: ``(in, out / groups, rows, columns)``.
        options: ``stride``, ``padding`` (top, bottom, left, right), ``dilation`` and ``groups``.
        more: other options that must be 0, ``output_padding`` among them.

    Raises:
        ValueError: for what is no convolution: strides, output padding, more padding than span.

    Example:
        >>> plain = {"stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1}
        >>> kernel, found = untransposed(np.arange(3.0).reshape(1, 1, 1, 3), plain, {})
        >>> kernel.ravel().tolist(), found["padding"]
        ([2.0, 1.0, 0.0], [0, 0, 2, 2])
    """
    wrong = {key: value for key, value in more.items() if np.any(value)}
    if list(options["stride"]) != [1, 1] or wrong:
        raise ValueError(
            f"stride={options['stride']}, {wrong or 'no output padding'}; of transposed "
            "convolutions only those without stride and output padding are handled"
        )
    groups, spans = options["groups"], []
    for dilation, taps in zip(options["dilation"], weight.shape[2:], strict=True):
        spans += [dilation * (taps - 1)] * 2
    padding = [span - pad for span, pad in zip(spans, options["padding"], strict=True)]
    if min(padding) < 0:
        raise ValueError(f"padding={options['padding']} is more than its kernel spans, {spans}")
    inner, outer = weight.shape[0] // groups, weight.shape[1]
    split = weight.reshape(groups, inner, outer, *weight.shape[2:]).swapaxes(1, 2)
    kernel = split.reshape(groups * outer, inner, *weight.shape[2:])[:, :, ::-1, ::-1]
    return np.ascontiguousarray(kernel), {**options, "padding": padding}


CONV2D = AffineKind(
    {
        "stride": are_ints(2, 1),
        "padding": are_ints(4, 0),
        "dilation": are_ints(2, 1),
        "groups": is_int(1),
    },
    _conv2d_shape,
    _conv2d,
    _apply_conv2d,
    lambda name, options, arrays, shape: math.prod(arrays[f"{name}.weight"].shape[1:]),
    spatial=True,
)
AVG_POOL2D = AffineKind(
    {
        "kernel_size": are_ints(2, 1),
        "stride": are_ints(2, 1),
        "padding": are_ints(4, 0),
        "count_include_pad": is_bool,
        "divisor_override": lambda v: v is None or is_int(1)(v),
    },
    _pool_shape,
    _avg_pool2d,
    _apply_pool,
    lambda name, options, arrays, shape: math.prod(options["kernel_size"]),
    arrays=(),
    spatial=True,
)
