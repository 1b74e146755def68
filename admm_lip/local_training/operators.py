"""The linear part of a layer on batches: forward, adjoint, absolute values, rows.

One class per layer type, in one table.  Everything works in the dtype and on the device of the
layer's weight, and the layer is not copied: an operator follows its weights as they train.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight

from ..errors import NetworkError, UnsupportedModule
from ..networks.readers import conv_padding

Shape = tuple[int, ...]


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


class Operator(ABC):
    """``x -> W x`` of one layer, on tensors ``(batch, *shape_in)``.

    Attributes:
        layer: the layer.
        shape_in: shape of one input sample.
        shape_out: shape of one output sample.
        terms: greatest number of products in one output entry.
    """

    def __init__(self, layer: Any, shape_in: Shape, shape_out: Shape, terms: int) -> None:
        self.layer, self.shape_in, self.shape_out, self.terms = layer, shape_in, shape_out, terms

    @property
    def weight(self) -> Tensor | None:
        """The trained weight, if the layer has one."""
        weight: Tensor | None = getattr(self.layer, "weight", None)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The bias, shaped to be added to one output sample."""
        return None

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``W x``."""

    def trained(self, x: Tensor) -> Tensor:
        """``W x``, differentiable in W and x by the operator's own adjoint."""
        if self.weight is None:
            return self.forward(x)
        product: Tensor = _Product.apply(x, self.weight, self)  # type: ignore[no-untyped-call]
        return product

    @abstractmethod
    def adjoint(self, u: Tensor) -> Tensor:
        """``W' u``."""

    def weight_gradient(self, v: Tensor, u: Tensor) -> Tensor | None:
        """The gradient of ``sum_b <u_b, W v_b>`` in the weight."""
        return None

    @abstractmethod
    def absolute(self, x: Tensor) -> Tensor:
        """``|W| x``."""

    @abstractmethod
    def squared(self, x: Tensor) -> Tensor:
        """``(W * W) x``, entry by entry: for a 0/1 mask x the squared norms of masked rows."""

    @abstractmethod
    def row_norms(self) -> Tensor:
        """The 2-norm of every row, or an upper bound of it; broadcasts against one sample."""


class _Linear(Operator):
    """``nn.Linear``."""

    def __init__(self, layer: nn.Linear, shape_in: Shape) -> None:
        super().__init__(layer, shape_in, (layer.out_features,), layer.in_features)

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = self.layer.bias
        return bias

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.layer.weight)

    def adjoint(self, u: Tensor) -> Tensor:
        product: Tensor = u @ self.layer.weight
        return product

    def weight_gradient(self, v: Tensor, u: Tensor) -> Tensor | None:
        return u.T @ v

    def absolute(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.layer.weight.abs())

    def squared(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.layer.weight.square())

    def row_norms(self) -> Tensor:
        norms: Tensor = self.layer.weight.norm(dim=1)
        return norms


class _Conv(Operator):
    """``nn.Conv2d`` with zero padding, the same on opposite sides.

    Args:
        layer: the convolution.
        shape_in: ``(channels, height, width)``.
        padding: rows and columns of zeros on each side.
    """

    def __init__(self, layer: nn.Conv2d, shape_in: Shape, padding: tuple[int, int]) -> None:
        super().__init__(layer, shape_in, _output_shape(layer, shape_in), layer.weight[0].numel())
        self.window = (layer.stride, padding, layer.dilation, layer.groups)

    @property
    def bias(self) -> Tensor | None:
        return None if self.layer.bias is None else self.layer.bias[:, None, None]

    def _convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(x, weight, None, *self.window)

    def forward(self, x: Tensor) -> Tensor:
        return self._convolved(x, self.layer.weight)

    def adjoint(self, u: Tensor) -> Tensor:
        (step, across), padding, dilation, groups = self.window
        if (across, dilation, groups) == (step, (1, 1), 1):
            return self._adjoint_by_phases(u, step, padding)
        return conv2d_input(  # type: ignore[no-any-return, no-untyped-call]
            (len(u), *self.shape_in), self.layer.weight, u, *self.window
        )

    def _adjoint_by_phases(self, u: Tensor, step: int, padding: tuple[int, int]) -> Tensor:
        """One dense convolution, on a CPU several times as fast as torch's own adjoint.

        ``x[s q + r - p] = sum_m w[r + s m] u[q - m]``: the phases r are so many output channels,
        which are then put in their places.
        """
        weight: Tensor = self.layer.weight
        out, channels, *kernel = weight.shape
        taps = [-(-k // step) for k in kernel]
        fill = [t * step - k for t, k in zip(taps, kernel, strict=True)]
        whole = functional.pad(weight, (0, fill[1], 0, fill[0]))
        phases = whole.view(out, channels, taps[0], step, taps[1], step).permute(1, 3, 5, 0, 2, 4)
        phases = phases.reshape(channels * step * step, out, *taps).flip(2, 3)
        found = functional.conv2d(u, phases, None, 1, (taps[0] - 1, taps[1] - 1))
        return _interleaved(found, (channels, *self.shape_in[1:]), step, padding)

    def weight_gradient(self, v: Tensor, u: Tensor) -> Tensor | None:
        return conv2d_weight(  # type: ignore[no-any-return, no-untyped-call]
            v, self.layer.weight.shape, u, *self.window
        )

    def absolute(self, x: Tensor) -> Tensor:
        return self._convolved(x, self.layer.weight.abs())

    def squared(self, x: Tensor) -> Tensor:
        return self._convolved(x, self.layer.weight.square())

    def row_norms(self) -> Tensor:
        """Of the whole filter, also where its window reaches into the padding."""
        norms: Tensor = self.layer.weight.flatten(1).norm(dim=1)
        return norms[:, None, None]


class _Pool(Operator):
    """``nn.AvgPool2d``: positive weights, all of a window alike."""

    def __init__(self, layer: nn.AvgPool2d, shape_in: Shape) -> None:
        kernel = layer.kernel_size
        size = kernel[0] * kernel[1] if isinstance(kernel, tuple) else kernel * kernel
        super().__init__(layer, shape_in, _output_shape(layer, shape_in), size)
        padded = any(layer.padding) if isinstance(layer.padding, tuple) else layer.padding > 0
        # Windows that reach into uncounted padding may hold a single entry.
        counted = layer.count_include_pad or not padded
        self.largest = 1.0 / (layer.divisor_override or (size if counted else 1))

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.layer(x)
        return pooled

    def adjoint(self, u: Tensor) -> Tensor:
        with torch.enable_grad():
            x = u.new_zeros((len(u), *self.shape_in)).requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.layer(x), x, u)
        return gradient

    def absolute(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def squared(self, x: Tensor) -> Tensor:
        return self.forward(x) * self.largest

    def row_norms(self) -> Tensor:
        """``sqrt(sum w^2) <= sqrt(max w * sum w)``."""
        total = max(1.0, self.terms * self.largest) if self.layer.divisor_override else 1.0
        return torch.tensor((self.largest * total) ** 0.5, dtype=torch.float64)


def _linear(name: str, layer: nn.Linear, shape: Shape) -> Operator:
    if shape != (layer.in_features,):
        raise NetworkError(
            f"{name}: expected an input of {layer.in_features} features, got shape {shape}"
            + ("; put a Flatten before it" if len(shape) > 1 else "")
        )
    return _Linear(layer, shape)


def _conv(name: str, layer: nn.Conv2d, shape: Shape) -> Operator:
    _check_image(name, shape, layer.in_channels)
    top, bottom, left, right = conv_padding(layer)
    if (top, left) != (bottom, right):
        raise UnsupportedModule(
            f"{name}: pads {(top, bottom)} rows and {(left, right)} columns; only the same padding "
            "on opposite sides is handled: use an odd kernel_size or a padding in numbers"
        )
    return _Conv(layer, shape, (top, left))


def _pool(name: str, layer: nn.AvgPool2d, shape: Shape) -> Operator:
    _check_image(name, shape, None)
    return _Pool(layer, shape)


def _check_image(name: str, shape: Shape, channels: int | None) -> None:
    if len(shape) != 3 or (channels is not None and shape[0] != channels):
        expected = "channels" if channels is None else channels
        raise NetworkError(
            f"{name}: expected an input of shape ({expected}, height, width), got {shape}"
        )


# From the neutral kind of a layer to its operator.
OPERATORS: Mapping[str, Callable[[str, Any, Shape], Operator]] = {
    "linear": _linear,
    "conv2d": _conv,
    "avg_pool2d": _pool,
}


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


def _output_shape(layer: Any, shape_in: Shape) -> Shape:
    """The layer's own answer, computed without data."""
    with torch.no_grad():
        like = next(layer.parameters(), torch.zeros(()))
        return tuple(layer(like.new_zeros((1, *shape_in))).shape[1:])
