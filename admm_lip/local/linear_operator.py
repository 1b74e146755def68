"""The linear part of a layer on batches: forward, adjoint, absolute values, squares, rows.

One class per kind of layer, in one table (``operators.py``), whether the layer is a module in
training or stored arrays.  Everything works in the dtype and on the device of its input or weight,
and nothing is copied or unrolled: an operator follows its module's weights as they train.

An operator states two products, with the entries of its matrix as they are or after a function of
each (their absolute values, their squares); everything else follows from these two.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..float64 import SQUARED_AWAY
from ..networks.activations import Options
from ..networks.layers import AFFINE
from ..rounding import SLACK, unit_scale

Shape = tuple[int, ...]
# Rows above and below, and columns left and right: padded, or left out.
Sides = tuple[int, int, int, int]
# What is done to every entry of a matrix.
Entries = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Stored:
    """The arrays of one layer of a stored network, which do not change."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    index: Tensor | None = None


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


class _Transposed(torch.autograd.Function):
    """``W' u``, of a weight that is not in training."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, operator: Operator) -> Tensor:
        ctx.operator = operator
        return operator.adjoint(u)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.operator.forward(grads[0]), None


class Along(NamedTuple):
    """How outputs slide along an axis: output i reads ``s i - before`` and ``reach`` more."""

    stride: int
    reach: int
    before: int


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

    kind: ClassVar[str]

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

    @property
    def shapes_in(self) -> tuple[Shape, ...]:
        """Shapes of the values that one input sample holds, one behind the other."""
        return (self.shape_in,)

    @property
    def shapes_out(self) -> tuple[Shape, ...]:
        """Those of an output sample."""
        return (self.shape_out,)

    @property
    def is_matrix(self) -> bool:
        """Whether its matrix is held, so that products of matrices are the quickest."""
        return False

    @property
    def exact_rows(self) -> bool:
        """Whether the adjoint of a row with a single 1 is a row of the matrix to the bit."""
        return True

    @property
    def copies(self) -> Tensor:
        """Which entries of ``W x`` are entries of x, ``(size_out,)``, boolean."""
        return torch.zeros(self.size_out, dtype=torch.bool)

    def along(self, axis: int) -> Along | None:
        """How its outputs slide over rows (0) or columns (1); ``None`` if they do not."""
        return None

    def windowed(self, shape_in: Shape, sides: Sides, shape_out: Shape) -> Operator:
        """The same on a window of an image, which it pads by ``sides`` itself."""
        raise NotImplementedError

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
        """The weight, or a 1 where there is none."""
        return torch.ones(1, dtype=torch.float64) if self.weight is None else self.weight

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

    def differentiable_adjoint(self, u: Tensor) -> Tensor:
        """``W' u``, differentiable in u by the operator's own product."""
        adjoint: Tensor = _Transposed.apply(u, self)  # type: ignore[no-untyped-call]
        return adjoint

    def absolute(self, x: Tensor) -> Tensor:
        """``|W| x``."""
        return self.product(x, torch.abs)

    def spread(self, x: Tensor) -> Tensor:
        """``|W| x``, also where the operator has several steps and :meth:`absolute` is more."""
        return self.absolute(x)

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
            columns: ``(batch, *shape_in)``, by how much the square of each column's entries counts:
                1, 0 for none.
        """
        mask = self._ones(self.shape_in) if columns is None else columns
        squares = self.product(mask, self.unit_squares).clamp(min=0.0)
        return (squares.sqrt() * SLACK + SQUARED_AWAY) / self.row_scale().view(-1, *self._tail())

    def column_lengths(self) -> Tensor:
        """The norms of the columns, roughly, ``shape_in``."""
        scale = unit_scale(self.own_entries().abs().max())
        squares = self.transposed(self._ones(self.shape_out), lambda w: (w * scale).square())
        return squares[0].clamp(min=0.0).sqrt() / scale

    def row_scale(self) -> Tensor:
        """A power of two for every first index of the outputs, which brings its entries near 1."""
        entries = self.own_entries()
        if entries.ndim < 2:
            return torch.ones_like(entries[:1])
        return unit_scale(entries.flatten(1).abs().amax(dim=1))

    def dense(self) -> Tensor:
        """The matrix ``(size_out, size_in)``, every entry as the operator has it."""
        weight = self.own_entries()
        eye = torch.eye(self.size_in, dtype=weight.dtype, device=weight.device)
        return self.forward(eye.view(-1, *self.shape_in)).flatten(1).T.contiguous()

    def matrix(self, limit: int) -> tuple[Any, float]:
        """The matrix as SciPy's sparse array, float64, and the Frobenius norm of its error."""
        keys = ("weight", "bias", "index")
        arrays = {
            f"layer.{key}": value.detach().cpu().numpy()
            for key in keys
            if (value := getattr(self.layer, key, None)) is not None
        }
        found = AFFINE[self.kind].build("layer", self.options, arrays, self.shape_in)
        return found.matrix, found.error

    def unit_squares(self, weight: Tensor) -> Tensor:
        """Squares of the own weight's entries, scaled by :meth:`row_scale`."""
        scale = self.row_scale()
        return (weight * scale.view(-1, *([1] * (weight.ndim - 1)))).square()

    def _tail(self) -> list[int]:
        return [1] * (len(self.shape_out) - 1)

    def _ones(self, shape: Shape) -> Tensor:
        return torch.ones_like(self.own_entries()[:1].flatten()[:1]).expand(1, *shape)
