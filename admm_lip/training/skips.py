"""Skip connections that are trained, read as they were written.

* **Tied blocks** ``x - K' phi(K x + b)``: a layer of K, an activation, a layer of ``-K'`` and a
  sum.  ``networks/tied.py`` says why they are kept in a ball ``||K||^2 <= 2`` of their own, as
  layers that take no share of the bound.
* **Linear ones** ``x + K x + b``: a layer and a sum, one layer of the weight ``I + K`` as the bound
  sees them (``skip_ball.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..errors import UnsupportedModule
from ..networks.activations import ACTIVATIONS
from ..networks.convolution import untransposed
from ..networks.layer_spec import INPUT, LayerSpec, neuron_slopes, scalar_parts
from ..networks.network import Network
from .start import CAST_MARGIN

_LINEAR = ("conv2d", "linear")


ALONE, TIED, ADDED = "", "tied", "added"


class Piece(NamedTuple):
    """A layer of a path, or a skip connection by the layer of its K.

    Attributes:
        spec: of the layer.
        form: ``ALONE``, or which skip connection it is of.
        rows: of the network that it takes up.
    """

    spec: LayerSpec
    form: str = ALONE
    rows: int = 1


def radius_of(dtype: torch.dtype) -> float:
    """The norm of K up to which a block moves no two inputs apart, less the rounding of K."""
    return math.sqrt(2.0) * (1.0 - CAST_MARGIN.get(dtype, CAST_MARGIN[torch.float32]))


def pieces_of(network: Network) -> list[Piece]:
    """The layers of a network, every skip as one, each taking the output of the one before.

    Raises:
        UnsupportedModule: by name, for other skip connections, and for a tied block of an
            activation whose slopes are not in [0, 1].
    """
    found: list[Piece] = []
    layers, sources, output = list(network.layers), network.sources(), INPUT
    while layers:
        first = layers[0]
        if sources[first.name] != (output,):
            raise UnsupportedModule(
                f"{first.name}: takes the output of {' and '.join(sources[first.name])}; of skip "
                "connections or branches, tied blocks x - K' phi(K x + b) (admm_lip.networks.tied) "
                "and linear ones x + K x + b (admm_lip.networks.residual) are trained and "
                "projected, others only certified"
            )
        if _is_block(layers[:4], sources, output, network):
            found.append(Piece(first, TIED, 4))
        elif _is_added(layers[:2], sources, output):
            found.append(Piece(first, ADDED, 2))
        else:
            found.append(Piece(first))
        output, layers = layers[found[-1].rows - 1].name, layers[found[-1].rows :]
    return found


def _is_added(
    layers: Sequence[LayerSpec], sources: Mapping[str, tuple[str, ...]], given: str
) -> bool:
    """Whether layers that begin with the value ``given`` are one and its sum with that value."""
    if len(layers) < 2 or layers[0].kind not in _LINEAR or layers[1].kind != "add":
        return False
    return sorted(sources[layers[1].name]) == sorted((given, layers[0].name))


def _is_block(
    layers: Sequence[LayerSpec],
    sources: Mapping[str, tuple[str, ...]],
    given: str,
    network: Network,
) -> bool:
    """Whether layers that begin with the value ``given`` are a tied block."""
    if len(layers) < 4 or layers[3].kind != "add":
        return False
    into, between, back, end = layers
    wired = [(given,), (into.name,), (between.name,)]
    if [sources[spec.name] for spec in (into, between, back)] != wired:
        return False
    if sorted(sources[end.name]) != sorted((given, back.name)) or not _are_tied(
        into, back, network
    ):
        return False
    _check_slopes(between, network)
    return True


def _are_tied(into: LayerSpec, back: LayerSpec, network: Network) -> bool:
    """Whether one layer is minus the adjoint of the other, but for biases."""
    if into.kind != back.kind or into.kind not in _LINEAR:
        return False
    first, second = (np.asarray(network.arrays[f"{spec.name}.weight"]) for spec in (into, back))
    if into.kind == "linear":
        return np.array_equal(second, -first.T)
    try:
        kernel, options = untransposed(first, into.options, {})
    except ValueError:  # strides
        return False
    return np.array_equal(second, -kernel) and options == dict(back.options)


def _check_slopes(spec: LayerSpec, network: Network) -> None:
    said = f"{spec.name} ({spec.kind}): a tied block needs an activation of slopes in [0, 1]"
    if spec.kind not in ACTIVATIONS:
        raise UnsupportedModule(f"{said}; use nn.ReLU")
    shape = network.shapes()[spec.name]
    low, high = neuron_slopes(scalar_parts(spec, network.arrays, shape))
    if low.min() < 0.0 or high.max() > 1.0:
        raise UnsupportedModule(
            f"{said}, and this one has [{low.min():.6g}, {high.max():.6g}]; use nn.ReLU"
        )
