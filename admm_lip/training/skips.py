"""Skip connections that are trained, read as they were written.

* **Tied blocks** ``x - K' phi(K x + b)``: a layer of K, an activation, a layer of ``-K'`` and a
  sum.  ``networks/tied.py`` says why they are kept in a ball ``||K||^2 <= 2`` of their own, as
  layers that take no share of the bound.
* **Residual blocks** ``x + G2 phi(G1 x + b) + c``: two layers, which take no share either, but
  may grow inputs by a gain that is settled beforehand (``residual_ball.py``).
* **Linear ones** ``x + K x + b``: a layer and a sum, one layer of the weight ``I + K`` as the bound
  sees them (``skip_ball.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import UnsupportedModule
from ..networks.activations import ACTIVATIONS
from ..networks.convolution import untransposed
from ..networks.layer_spec import INPUT, LayerSpec, neuron_slopes, scalar_parts
from ..networks.network import Network
from .padding import Rows

_LINEAR = ("conv2d", "linear")


ALONE, TIED, UNTIED, ADDED = "", "tied", "untied", "added"


class Piece(NamedTuple):
    """A layer of a path, or a skip connection by the layers that hold its weights.

    Attributes:
        specs: of the layers.
        form: ``ALONE``, or which skip connection it is of.
        rows: of the network that it takes up.
        end: the name of the last of them.
    """

    specs: tuple[LayerSpec, ...]
    form: str
    rows: int
    end: str


def pieces_of(network: Network, rows: Rows) -> list[Piece]:
    """The layers of a network, every skip as one, each taking the output of the one before.

    Args:
        network: that holds the arrays.
        rows: its layers.

    Raises:
        UnsupportedModule: by name, for other skip connections, and for a residual block of an
            activation whose slopes are not in [0, 1].
    """
    found: list[Piece] = []
    layers, sources, output = list(rows.layers), rows.sources, INPUT
    while layers:
        first = layers[0]
        if sources[first.name] != (output,):
            raise UnsupportedModule(
                f"{first.name}: takes the output of {' and '.join(sources[first.name])}; of skip "
                "connections or branches, tied blocks x - K' phi(K x + b) "
                "(admm_lip.networks.tied), residual blocks x + G2 phi(G1 x + b) + c and linear "
                "layers x + K x + b (admm_lip.networks.residual) are trained and projected, "
                "others only certified"
            )
        if _is_block(layers[:4], sources, output):
            tied = _are_tied(first, layers[2], network, rows)
            _check_slopes(layers[1], network, "tied" if tied else "residual")
            own = (first,) if tied else (first, layers[2])
            found.append(Piece(own, TIED if tied else UNTIED, 4, layers[3].name))
        elif _is_added(layers[:2], sources, output):
            found.append(Piece((first,), ADDED, 2, layers[1].name))
        else:
            found.append(Piece((first,), ALONE, 1, first.name))
        output, layers = found[-1].end, layers[found[-1].rows :]
    return found


def _is_added(
    layers: Sequence[LayerSpec], sources: Mapping[str, tuple[str, ...]], given: str
) -> bool:
    """Whether layers that begin with the value ``given`` are one and its sum with that value."""
    if len(layers) < 2 or layers[0].kind not in _LINEAR or layers[1].kind != "add":
        return False
    return sorted(sources[layers[1].name]) == sorted((given, layers[0].name))


def _is_block(
    layers: Sequence[LayerSpec], sources: Mapping[str, tuple[str, ...]], given: str
) -> bool:
    """Whether layers that begin with the value ``given`` are two, something between, and a sum."""
    if len(layers) < 4 or layers[3].kind != "add":
        return False
    into, between, back, end = layers
    wired = [(given,), (into.name,), (between.name,)]
    if [sources[spec.name] for spec in (into, between, back)] != wired:
        return False
    if into.kind != back.kind or into.kind not in _LINEAR:
        return False
    return sorted(sources[end.name]) == sorted((given, back.name))


def _are_tied(into: LayerSpec, back: LayerSpec, network: Network, rows: Rows) -> bool:
    """Whether one layer is minus the adjoint of the other, but for biases."""
    first, second = (np.asarray(network.arrays[f"{spec.name}.weight"]) for spec in (into, back))
    if into.kind == "linear":
        return np.array_equal(second, -first.T)
    given, wanted = (
        {**spec.options, "padding": rows.padding(spec), "around": rows.wraps(spec)}
        for spec in (into, back)
    )
    try:
        kernel, options = untransposed(first, given, {})
    except ValueError:  # strides
        return False
    return np.array_equal(second, -kernel) and options == wanted


def _check_slopes(spec: LayerSpec, network: Network, form: str) -> None:
    said = f"{spec.name} ({spec.kind}): a {form} block needs an activation of slopes in [0, 1]"
    if spec.kind not in ACTIVATIONS:
        raise UnsupportedModule(f"{said}; use nn.ReLU")
    shape = network.shapes()[spec.name]
    low, high = neuron_slopes(scalar_parts(spec, network.arrays, shape))
    if low.min() < 0.0 or high.max() > 1.0:
        raise UnsupportedModule(
            f"{said}, and this one has [{low.min():.6g}, {high.max():.6g}]; use nn.ReLU"
        )
