"""What a network computes, in float64, layer by layer as its tables state it; NumPy and SciPy only.

This is the meaning of a :class:`~admm_lip.networks.network.Network`, apart from torch: what torch
runs is compared with it (``live_check.py``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .activations import ACTIVATIONS, values_of
from .joins import JOINS
from .layer_spec import INPUT
from .layers import AFFINE, Array
from .network import LayerSpec, Network, reshaped
from .scalar_math import NUMPY
from .sorting import PAIRED, paired_value
from .vector_functions import VECTOR_FUNCTIONS


def forward(network: Network, x: npt.ArrayLike) -> Array:
    """The outputs of ``network``, rounded as float64 rounds.

    Args:
        network: the network.
        x: inputs ``(batch, *input_shape)``, or flattened.

    Returns:
        float64 ``(batch, *)``.

    Raises:
        NetworkError: where its shapes do not chain.

    Example:
        >>> import numpy as np
        >>> layers = (LayerSpec("linear", "in", {}), LayerSpec("relu", "act", {}))
        >>> net = Network(layers, {"in.weight": np.array([[1.0, -2.0], [3.0, 4.0]])})
        >>> forward(net, [[1.0, 1.0]]).tolist()
        [[0.0, 7.0]]
    """
    network.shapes()
    value = np.asarray(x, dtype=np.float64)
    value = value.reshape(len(value), *(network.input_shape or ()))
    return layer_outputs(network, value)[network.output]


def layer_outputs(network: Network, x: Array) -> dict[str, Array]:
    """What every layer gives, by name, of inputs ``(batch, *input_shape)``."""
    values, sources = {INPUT: x}, network.sources()
    for spec in network.layers:
        given = [values[name] for name in sources[spec.name]]
        values[spec.name] = apply_layer(network, spec, *given)
    return values


def apply_layer(network: Network, spec: LayerSpec, x: Array, *others: Array) -> Array:
    """One layer of ``network`` on samples ``(batch, *shape)`` of the shapes that it sees."""
    if spec.kind in JOINS:
        return JOINS[spec.kind].apply([x, *others])
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if spec.kind in AFFINE:
            return AFFINE[spec.kind].apply(spec.name, spec.options, network.arrays, x)
        if spec.kind in ACTIVATIONS:
            options = values_of(spec.kind, spec.options, network.arrays, spec.name, x.shape[1:])
            return np.asarray(ACTIVATIONS[spec.kind].value(NUMPY, options, x))
        if spec.kind in VECTOR_FUNCTIONS:
            return VECTOR_FUNCTIONS[spec.kind].apply(spec.options, x)
        if spec.kind in PAIRED:
            return paired_value(spec.kind, x)
    return x.reshape(len(x), *reshaped(spec, x.shape[1:]))
