"""A network as layers: an affine map, then what acts on its output.

Layers are read from a module, whose weights they follow as it trains, or from a stored network.
Values between layers are flat, ``(batch, n)``; each operator sees its input in its own shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import NetworkError, UnsupportedModule
from ..float64 import U
from ..networks import trace
from ..networks.built import build_layer
from ..networks.chain import reader_of
from ..networks.layers import AFFINE, stored_errors
from ..networks.network import LayerSpec, Network
from ..rounding import SLACK, affine_error, gamma, lengths
from .activations import MONOTONE, Activation, Monotone
from .linear_operator import Operator, Shape, Stored, as_they_are
from .operators import OPERATORS, operator_of
from .proven_norms import ScaledNorms, scaled_norms

# Affine layers that a network in training may have.
_TRAINED = ("linear", "conv2d", "avg_pool2d")


@dataclass(frozen=True, eq=False)
class Layer:
    """One affine map and the activations on its output.

    Attributes:
        name: of the affine layer.
        operator: its linear part, with the bias.
        activation: what acts on the output; ``None`` for the last layer.
        error: bound on the Frobenius norm of stored minus exact weights.
        bias_error: bound on every entry's error of the bias.
    """

    name: str
    operator: Operator
    activation: Activation | None = None
    error: float = 0.0
    bias_error: float = 0.0

    def affine(self, x: Tensor) -> Tensor:
        """``W x + b`` of ``(batch, *)``, flat; differentiable where gradients are recorded."""
        operator = self.operator
        shaped = x.reshape(len(x), *operator.shape_in)
        z = operator.trained(shaped) if torch.is_grad_enabled() else operator.forward(shaped)
        return (z if operator.bias is None else z + operator.bias).flatten(1)

    def absolute(self, x: Tensor) -> Tensor:
        """``|W| x`` of ``(batch, *)``, flat; not less where W has several steps."""
        return self.operator.absolute(x.reshape(len(x), *self.operator.shape_in)).flatten(1)

    def affine_with_error(self, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """``W x + b`` and a bound on its error, where ``x`` is within ``error`` of ``value``."""
        z = self.affine(value)
        known = self.operator.terms, self.error, self.bias_error, self.spread
        return z, affine_error(value, error, self.absolute, self.bias, *known)

    def spread(self, x: Tensor) -> Tensor:
        """``|W| x`` of ``(batch, *)``, flat, of the matrix itself."""
        return self.operator.spread(x.reshape(len(x), *self.operator.shape_in)).flatten(1)

    def rows_back(self, rows: Tensor, *, absolute: bool = False) -> Tensor:
        """``a W``, or ``a |W|``, of rows ``(batch, m, n_out)``: ``(batch, m, n_in)``."""
        shaped = rows.reshape(-1, *self.operator.shape_out)
        if rows.requires_grad and not absolute:
            transposed = self.operator.differentiable_adjoint(shaped)
        else:
            transposed = self.operator.transposed(shaped, torch.abs if absolute else as_they_are)
        return transposed.reshape(*rows.shape[:-1], self.operator.size_in)

    def columns_through(self, columns: Tensor) -> Tensor:
        """``W C`` of matrices ``(batch, n_in, m)``: ``(batch, n_out, m)``."""
        if self.operator.is_matrix:
            return self.operator.dense() @ columns
        flat = columns.mT.reshape(-1, *self.operator.shape_in)
        return self.operator.forward(flat).reshape(*columns.mT.shape[:-1], -1).mT

    @cached_property
    def bias(self) -> Tensor | None:
        """The bias, flat; of stored weights."""
        bias = self.operator.bias
        return None if bias is None else bias.expand(self.operator.shape_out).flatten()

    @cached_property
    def copies(self) -> Tensor:
        """Which entries of ``W x + b`` are entries of x, of stored weights, ``(n_out,)``, boolean.

        A value that skips activations is carried so; its range is known.
        """
        plain = self.operator.copies
        return plain if self.bias is None else plain & (self.bias == 0.0)

    @property
    def gamma_back(self) -> float:
        """Relative error of an entry of ``a W``, for a row with a single 1, or one with +-1."""
        return 2.0 * U if self.operator.exact_rows else gamma(self.operator.terms_back)

    @property
    def gamma(self) -> float:
        """Relative error of a row's sum."""
        return gamma(self.operator.terms)

    @cached_property
    def norms(self) -> ScaledNorms:
        """Proven norms of the stored matrix; add :attr:`error`."""
        return scaled_norms(self.operator)

    @cached_property
    def norm(self) -> float:
        """An upper bound of the spectral norm of the exact matrix, proven."""
        return (self.norms.whole + self.error) * SLACK

    @cached_property
    def rows(self) -> Tensor:
        """Upper bounds of the norms of the rows, ``(n_out,)``."""
        return self.row_lengths(None)[0]

    def row_lengths(self, columns: Tensor | None) -> Tensor:
        """The same without the columns where ``columns``, ``(batch, n_in)``, is 0."""
        operator = self.operator
        mask = None if columns is None else columns.reshape(-1, *operator.shape_in)
        return (operator.row_lengths(mask).flatten(1) + self.error) * SLACK

    @cached_property
    def frobenius(self) -> float:
        """An upper bound of the Frobenius norm."""
        return (float(lengths(self.rows)) + self.error) * SLACK


def live_layers(model: nn.Module, input_shape: Shape) -> tuple[Layer, ...]:
    """The layers of a module, whose weights they follow.

    Args:
        model: a chain of ``Linear``, ``Conv2d``, ``AvgPool2d``, ``Flatten`` and monotone
            activations; its last layer is affine.
        input_shape: shape of one input, without the batch.

    Raises:
        UnsupportedModule: by qualified name, for any other layer or structure.
        NetworkError: for shapes that do not chain.
    """
    reading = _Reading(tuple(input_shape))
    for name, layer, _ in trace.path_of(model):
        reader = reader_of(name, layer)
        if reader.kind in OPERATORS and reader.kind not in _TRAINED:
            raise _unsupported(name, layer)
        random = reader.kind == "identity" and layer.training and getattr(layer, "p", 0.0) > 0.0
        if random:
            raise _unsupported(name, layer)
        options = reader.options(layer) if reader.kind in OPERATORS else {}
        reading.add(reader.kind, name, layer, options)
    return reading.layers()


def is_monotone(network: Network) -> bool:
    """Whether :func:`stored_layers` reads a network: a path of such layers, the last one affine."""
    kinds = [spec.kind for spec in network.layers]
    known = {*OPERATORS, *MONOTONE, "identity"}
    acting = [kind for kind in kinds if kind not in ("flatten", "identity")]
    ends = acting and acting[0] in OPERATORS and acting[-1] in OPERATORS
    shape = network.shapes()[network.output]
    return bool(network.is_path and ends and set(kinds) <= known and len(shape) == 1)


def stored_layers(network: Network) -> tuple[Layer, ...]:
    """The layers of a path of stored layers, float64, with monotone activations."""
    reading = _Reading(network.input_shape or ())
    for spec in network.layers:
        layer: Any = stored(network, spec) if spec.kind in AFFINE else None
        if spec.kind in MONOTONE:
            layer = build_layer(network, spec).double().requires_grad_(False)
        errors = stored_errors(spec.name, network.arrays)
        reading.add(spec.kind, spec.name, layer, spec.options, errors)
    return reading.layers()


def stored(network: Network, spec: LayerSpec) -> Stored:
    """The arrays of an affine layer, float64."""
    found = {
        key: torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))
        for key in ("weight", "bias", "index")
        if (array := network.arrays.get(f"{spec.name}.{key}")) is not None
    }
    return Stored(**found)


class _Reading:
    """Layers while they are read: affine maps with the activations behind each."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.maps: list[tuple[str, Operator, tuple[float, float]]] = []
        self.behind: list[list[tuple[str, Any]]] = []

    def add(
        self,
        kind: str,
        name: str,
        layer: Any,
        options: Any,
        errors: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """The next layer."""
        if kind in OPERATORS:
            operator = operator_of(kind, name, layer, options, self.shape)
            self.maps.append((name, operator, errors))
            self.behind.append([])
            self.shape = operator.shape_out
        elif kind == "flatten":
            self.shape = (torch.Size(self.shape).numel(),)
            if self.maps:
                self.behind[-1].append((kind, layer))
        elif kind in MONOTONE:
            self._activated(kind, name, layer)
        elif kind != "identity":
            raise _unsupported(name, layer)

    def _activated(self, kind: str, name: str, layer: Any) -> None:
        if not self.maps:
            raise UnsupportedModule(
                f"{name} ({type(layer).__name__}): an activation comes first; expected a Linear or "
                "Conv2d layer before it"
            )
        parts = self.behind[-1]
        parts.append((kind, layer))
        like = next(chain(layer.parameters(), _held(self.maps[-1][1])), torch.zeros(()))
        try:
            with torch.no_grad():
                shape = self.maps[-1][1].shape_out
                Monotone(tuple(parts), shape).apply(like.new_zeros((1, *shape)))
        except ValueError as error:
            raise NetworkError(f"{name}: {error}") from None

    def layers(self) -> tuple[Layer, ...]:
        """All of them."""
        acting = self.maps and any(kind != "flatten" for kind, _ in self.behind[-1])
        if not self.maps or acting or len(self.shape) != 1:
            raise UnsupportedModule(
                "model: expected a chain that ends in a Linear layer of one output per class; "
                "leave a final activation to the loss"
            )
        last = len(self.maps) - 1
        return tuple(
            Layer(
                name,
                operator,
                Monotone(tuple(parts), operator.shape_out) if k < last else None,
                operator_error(operator, errors[0]),
                errors[1],
            )
            for k, ((name, operator, errors), parts) in enumerate(
                zip(self.maps, self.behind, strict=True)
            )
        )


def operator_error(operator: Operator, error: float) -> float:
    """The Frobenius norm of what an error of the layer's own array makes of its matrix."""
    if operator.weight is None:
        return error
    # A kernel stands once for every place, a factor for every entry that it multiplies.
    each = operator.weight.numel() if operator.kind == "elementwise" else operator.shape_out[0]
    places = operator.size_out / each
    return float(error * places**0.5 * (1.0 + 1e-9))


def _held(operator: Operator) -> list[Tensor]:
    return [] if operator.weight is None else [operator.weight]


def _unsupported(name: str, layer: Any) -> UnsupportedModule:
    known = "Linear, Conv2d, AvgPool2d, Flatten, ReLU, ClippedReLU, MaxMin, GroupSort2 and "
    return UnsupportedModule(
        f"{name} ({type(layer).__name__}): these bounds handle {known}ClippedMaxMin; replace it"
    )
