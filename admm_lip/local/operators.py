"""The table of linear layers on balls: from the kind of a layer to its operator."""
# ruff: noqa: D102 - the methods are those of Operator

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch.nn.functional as functional
from torch import Tensor

from ..errors import UnsupportedModule
from ..networks.activations import Options
from ..networks.layers import AFFINE
from ..rounding import SLACK, unit_scale
from .convolutions import AveragePool, Convolution
from .elementwise_operators import Elementwise, Sum, Take
from .linear_operator import Entries, Operator, Shape


class Dense(Operator):
    """A matrix: ``nn.Linear``."""

    kind = "linear"

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

    @property
    def is_matrix(self) -> bool:
        return True

    @cached_property
    def copies(self) -> Tensor:
        weight = self.own_entries()
        return ((weight != 0.0).sum(dim=1) == 1) & (weight.sum(dim=1) == 1.0)


class ScaledInputs(Operator):
    """``W diag(c)``: a layer behind factors of its inputs, or whose inputs are in other units.

    Args:
        inner: the layer, of stored arrays.
        factors: c, of every input, float64, flat or of its shape.
        bias: of the whole, where it is not that of the layer.
    """

    def __init__(self, inner: Operator, factors: Tensor, bias: Tensor | None = None) -> None:
        factors = factors.reshape(inner.shape_in)
        if isinstance(inner, ScaledInputs):
            factors, bias, inner = factors * inner.factors, inner.bias, inner.inner
        super().__init__(
            *(inner.layer, inner.options, inner.shape_in, inner.shape_out),
            *(inner.terms + 2, inner.terms_back + 2),
        )
        self.inner: Operator = inner
        self.factors: Tensor = factors
        self._bias = bias

    @property
    def bias(self) -> Tensor | None:
        return self.inner.bias if self._bias is None else self._bias

    @property
    def is_matrix(self) -> bool:
        return self.inner.is_matrix

    @property
    def exact_rows(self) -> bool:
        return self.inner.exact_rows

    @property
    def shapes_in(self) -> tuple[Shape, ...]:
        return self.inner.shapes_in

    @property
    def shapes_out(self) -> tuple[Shape, ...]:
        return self.inner.shapes_out

    def own_entries(self) -> Tensor:
        return self.inner.own_entries()

    def product(self, x: Tensor, entries: Entries) -> Tensor:
        return self.inner.product(x * entries(self.factors), entries)

    def transposed(self, u: Tensor, entries: Entries) -> Tensor:
        return self.inner.transposed(u, entries) * entries(self.factors)

    def spread(self, x: Tensor) -> Tensor:
        return self.inner.spread(x * self.factors.abs())

    def row_lengths(self, columns: Tensor | None = None) -> Tensor:
        near_one = unit_scale(self.factors.abs().max())
        squares = (self.factors * near_one).square().expand(1, *self.shape_in)
        counts = squares if columns is None else squares * columns
        return self.inner.row_lengths(counts) / near_one

    def column_lengths(self) -> Tensor:
        return self.inner.column_lengths() * self.factors.abs()

    def dense(self) -> Tensor:
        return self.inner.dense() * self.factors.flatten()

    def matrix(self, limit: int) -> tuple[Any, float]:
        matrix, error = self.inner.matrix(limit)
        factors = self.factors.flatten().numpy()
        return matrix * factors, error * float(abs(factors).max()) * SLACK


Maker = Callable[[Any, Options, Shape, Shape], Operator]

# From the neutral kind of a layer to its operator.
OPERATORS: Mapping[str, Maker] = {
    cls.kind: cls for cls in (Dense, Convolution, AveragePool, Elementwise, Take, Sum)
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
        f"{name}.{key}": np.broadcast_to(np.zeros(()), tuple(value.shape))
        for key in ("weight", "bias")
        if (value := getattr(layer, key, None)) is not None
    }
    if (index := getattr(layer, "index", None)) is not None:
        arrays[f"{name}.index"] = index.cpu().numpy()
    shape_out = AFFINE[kind].shape(name, options, arrays, shape_in)
    return OPERATORS[kind](layer, options, shape_in, shape_out)
