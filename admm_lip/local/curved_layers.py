"""A stored network as layers whose activations are scalar curves, one a neuron.

Sorting pairs is a curve between two rotations (``networks/sorting.py``), which the kernels and
matrices beside it take in; affine layers in a row that end in a matrix become one matrix, row by
row through their adjoints.  Nothing is unrolled.  What is no such path, a network with skips or
with two convolutions in a row, becomes a chain of wired operators (``lifted_layers.py``), whose
matrices are formed where they are small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..float64 import TINY
from ..networks.activations import ACTIVATIONS, values_of
from ..networks.joins import dense
from ..networks.layer_spec import scalar_parts
from ..networks.layers import AFFINE, RESHAPES, AffineMap, Shape, stored_errors
from ..networks.lowering import changes_nothing, is_activation
from ..networks.network import LayerSpec, Network, SideBySide
from ..networks.sorting import HALF_ABS, PAIRED, SORTS, RotationBack, after_rotation_back, rotated
from ..rounding import SLACK, gamma, lengths
from .activations import Curved
from .convolutions import Convolution
from .curves import WithArrays, parts_of
from .elementwise_operators import Elementwise
from .input_region import UnitBall
from .layers import Layer, operator_error, stored
from .lifted_layers import Lifting, written_out
from .linear_operator import Stored
from .operators import Dense, ScaledInputs, operator_of
from .wired_operator import Wired

# Entries of the largest matrix of a graph up to which its matrices are quicker than its layers.
_FORMED = 2**18


@dataclass(frozen=True, eq=False)
class CurvedNet:
    """Layers with curved activations, and the ball that distances are measured by."""

    layers: tuple[Layer, ...]
    ball: UnitBall

    @property
    def hidden(self) -> list[int]:
        """Neurons of each hidden layer."""
        return [layer.operator.size_out for layer in self.layers[:-1]]


def curved_layers(network: Network) -> tuple[Layer, ...]:
    """The layers of a stored network, float64.

    Raises:
        UnsupportedModule: by name, for an activation without a curve.
    """
    found = _path(network)
    return _of_graph(network) if found is None else found


def _of_graph(network: Network) -> tuple[Layer, ...]:
    """Layers of any graph: matrices where they are small, else steps of operators."""
    layers = Lifting(written_out(network), _affine, _parts).lifted()
    size = max(layer.operator.size_in * layer.operator.size_out for layer in layers)
    return tuple(map(_formed, layers)) if size <= _FORMED else layers


def _formed(layer: Layer) -> Layer:
    """A layer as the matrix that it is."""
    operator = layer.operator
    if operator.is_matrix:
        return layer
    matrix, lost = operator.matrix(_FORMED)
    weight = torch.from_numpy(dense(matrix))
    bias = torch.zeros(len(weight)).double() if layer.bias is None else layer.bias
    # A wired operator's error is its layer's own already.
    error = layer.error if isinstance(operator, Wired) else layer.error + lost
    made = Dense(Stored(weight, bias), {}, (weight.shape[1],), (len(weight),))
    return replace(layer, operator=made, error=error)


def _parts(network: Network, spec: LayerSpec, shape: Shape) -> tuple[tuple[LayerSpec, int], ...]:
    """The scalar activations of an activation's neurons, in their order."""
    size = math.prod(shape)
    if spec.kind in PAIRED:
        return ((LayerSpec(HALF_ABS, spec.name, {}), size),)
    whole = scalar_parts(spec, network.arrays, shape)
    found = _with_arrays(network, SideBySide(whole))
    assert isinstance(found, SideBySide)
    parts_of(found, size)  # refuses what has no curve
    return found.parts


def _curved(spec: LayerSpec | SideBySide | None, size: int) -> Curved | None:
    if spec is None:
        return None
    parts_of(spec, size)  # refuses what has no curve
    return Curved(spec)


def _path(network: Network) -> tuple[Layer, ...] | None:
    """The layers of a path; ``None`` where one affine layer cannot be made of some in a row."""
    if not network.is_path:
        return None
    shapes = list(network.shapes().values())  # the input's first
    layers: list[Layer] = []
    group: list[Layer] = []
    sort: RotationBack | None = None
    for spec, before, after in zip(network.layers, shapes, shapes[1:], strict=False):
        if spec.kind in AFFINE:
            group.append(_affine(network, spec, before))
        elif is_activation(spec) and not changes_nothing(spec):
            layer = _merged(group, sort)
            turned = layer if layer is None or spec.kind not in SORTS else _rows_rotated(layer)
            if turned is None:
                return None
            sort = _rotation(spec, after) if spec.kind in SORTS else None
            layers.append(replace(turned, activation=_activation(network, spec, after)))
            group = []
        elif spec.kind not in RESHAPES and not changes_nothing(spec):
            return None  # what no layer of its own stands for
    last = _merged(group, sort)
    return None if last is None else (*layers, last)


def _activation(network: Network, spec: LayerSpec, shape: Shape) -> Curved | None:
    size = math.prod(shape)
    if spec.kind in PAIRED:
        return _curved(LayerSpec(HALF_ABS, spec.name, {}), size)
    parts = scalar_parts(spec, network.arrays, shape)
    whole = parts[0][0] if len(parts) == 1 else SideBySide(parts)
    return _curved(_with_arrays(network, whole), size)


def _with_arrays(network: Network, spec: LayerSpec | SideBySide) -> LayerSpec | SideBySide:
    """An activation with the arrays that its neurons have."""
    if isinstance(spec, SideBySide):
        return SideBySide(tuple((_own_arrays(network, one), count) for one, count in spec.parts))
    return _own_arrays(network, spec)


def _own_arrays(network: Network, spec: LayerSpec) -> LayerSpec:
    if spec.kind not in ACTIVATIONS or not ACTIVATIONS[spec.kind].arrays:
        return spec
    shape = network.shapes()[spec.name]
    found = values_of(spec.kind, spec.options, network.arrays, spec.name, shape)
    arrays = {n: torch.from_numpy(np.ravel(values).copy()) for n, values in found.items()}
    return WithArrays(spec.kind, spec.name, arrays)


def _affine(network: Network, spec: LayerSpec, shape: Shape) -> Layer:
    """One affine layer as it is stored."""
    operator = operator_of(spec.kind, spec.name, stored(network, spec), spec.options, shape)
    error, bias_error = stored_errors(spec.name, network.arrays)
    return Layer(spec.name, operator, None, operator_error(operator, error), bias_error)


def _rotation(spec: LayerSpec, shape: Shape) -> RotationBack:
    """What follows the sums and folded differences; only its shape and order are used."""
    none = np.zeros(0)
    return RotationBack(none, none, 0.0, shape, descending=SORTS[spec.kind].descending)


def _merged(group: Sequence[Layer], sort: RotationBack | None) -> Layer | None:
    """The affine layers of a group as one, after a rotation; ``None`` where they are not."""
    if not group:
        return None
    layer = group[-1]
    for first in reversed(group[:-1]):
        if isinstance(first.operator, Elementwise):
            layer = _after_factors(layer, first)
        elif isinstance(layer.operator, Dense):
            layer = _after(layer, first)
        else:
            return None
    return layer if sort is None else _columns_rotated(layer, sort)


def _after(second: Layer, first: Layer) -> Layer:
    """A matrix after another layer, with the errors of ``lowering.merged``."""
    weight = first.rows_back(second.operator.own_entries())
    bias = torch.zeros(len(weight), dtype=torch.float64) if second.bias is None else second.bias
    left, right = second.frobenius, first.frobenius
    terms = gamma(first.operator.terms_back)
    error = terms * left * right + second.error * right + left * first.error
    length, off = 0.0, first.operator.size_out**0.5 * first.bias_error
    if first.bias is not None:
        length = float(lengths(first.bias))
        bias = bias + second.operator.own_entries() @ first.bias
    size = left * length + float(bias.abs().max())
    inner = 2.0 * gamma(second.operator.terms)
    bias_error = inner * size + second.bias_error + second.error * (length + off) + left * off
    return Layer(
        f"{first.name} and {second.name}",
        Dense(Stored(weight, bias), {}, (weight.shape[1],), (len(weight),)),
        None,
        error * SLACK + TINY,
        bias_error * SLACK + TINY,
    )


def _after_factors(second: Layer, first: Layer) -> Layer:
    """A layer after one that multiplies every entry and shifts it."""
    factors = first.operator.own_entries()
    shift = torch.zeros_like(factors) if first.operator.bias is None else first.operator.bias
    shift = shift.expand(first.operator.shape_in).flatten()[None]
    bias, off = second.affine_with_error(shift, torch.full_like(shift, first.bias_error))
    most = float(factors.abs().max()) + first.error
    error = second.frobenius * first.error + second.error * most
    return Layer(
        f"{first.name} and {second.name}",
        ScaledInputs(second.operator, factors, bias.view(second.operator.shape_out)),
        None,
        error * SLACK + TINY,
        float(off.max()),
    )


def _rows_rotated(layer: Layer) -> Layer | None:
    """A layer, then the sums and differences of pairs of its outputs (features or channels)."""
    operator = layer.operator
    if not isinstance(operator, Dense | Convolution) or operator.options.get("groups", 1) > 1:
        return None
    weight, places = operator.own_entries().numpy(), _places(layer)
    bias = np.zeros(len(weight)) if operator.bias is None else operator.bias.numpy().ravel()
    kernel = weight.reshape(len(weight), -1)
    turned = rotated(AffineMap(kernel, bias, layer.error / places, bias.shape, layer.bias_error))
    new = Stored(
        torch.from_numpy(turned.matrix.reshape(weight.shape)), torch.from_numpy(turned.bias)
    )
    return _with(layer, new, turned.error * places, turned.bias_error)


def _columns_rotated(layer: Layer, sort: RotationBack) -> Layer | None:
    """A layer of what comes out of a sort, as one of the sums and folded differences."""
    operator = layer.operator
    if not isinstance(operator, Dense | Convolution) or operator.options.get("groups", 1) > 1:
        return None
    weight, places = operator.own_entries().numpy(), _places(layer)
    if weight.ndim == 4 and len(sort.shape) != 3:
        return None
    shape = sort.shape[:1] if weight.ndim == 4 else sort.shape
    inputs_last = np.moveaxis(weight, 1, -1)
    rows = inputs_last.reshape(-1, weight.shape[1])
    second = AffineMap(rows, np.zeros(1), layer.error / places, rows.shape[:1])
    turned = after_rotation_back(second, replace(sort, shape=shape))
    back = np.moveaxis(turned.matrix.reshape(inputs_last.shape), -1, 1)
    new = replace(operator.layer, weight=torch.from_numpy(np.ascontiguousarray(back)))
    return _with(layer, new, turned.error * places, layer.bias_error)


def _places(layer: Layer) -> float:
    """What an error of the kernel is multiplied by in the matrix."""
    return operator_error(layer.operator, 1.0)


def _with(layer: Layer, arrays: Stored, error: float, bias_error: float) -> Layer:
    operator = layer.operator
    made = type(operator)(arrays, operator.options, operator.shape_in, operator.shape_out)  # type: ignore[call-arg]
    return replace(layer, operator=made, error=error * SLACK, bias_error=bias_error)
