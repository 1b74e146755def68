"""A softmax at the end: the network before it, times the constant of the last layer.

``||p(z) - p(z')|| <= c ||z - z'||`` with c = 1/2 for Softmax and sqrt(n) for LogSoftmax
(``networks/vector_functions.py``), so that c W_l takes the place of the last matrix.  Differences
of LogSoftmax's outputs are those of its inputs, so its pairwise bounds are theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..errors import CertificateError
from ..networks.layer_spec import LayerSpec
from ..networks.layers import Array
from ..networks.network import Network
from ..networks.vector_functions import VECTOR_FUNCTIONS, VectorFunction
from ..units import Units
from .claim_matrices import Matrices, outputs_times


def split(network: Network) -> tuple[Network, VectorFunction | None]:
    """The network without a softmax at its end, and that; itself and ``None`` where it has none."""
    last = network.layers[-1] if network.layers else None
    row = None if last is None else VECTOR_FUNCTIONS.get(last.kind)
    if last is None or row is None or row.constant is None:
        return network, None
    (source,) = network.sources()[last.name]
    # The output of a network is that of its last layer.
    end = LayerSpec("identity", last.name, {}, (source,))
    return Network((*network.layers[:-1], end), network.arrays, network.input_shape), row


def bounded(matrices: Matrices, row: VectorFunction | None, units: Units | None) -> Matrices:
    """The chain whose l2 constant, times that of the last layer, bounds the network's.

    Raises:
        CertificateError: for outputs in units of their own, which a softmax mixes.
    """
    if row is None or row.constant is None:
        return matrices
    outputs = matrices.widths[-1]
    if units is not None and len(set(units.output_scales(outputs))) > 1:
        raise CertificateError(
            "units: expected one output_scale for all outputs of a softmax, which mixes them; "
            "certify the network without its last layer"
        )
    return outputs_times(matrices, row.constant(outputs))


def check_functionals(
    row: VectorFunction | None, directions: Iterable[Iterable[float]], scales: Array
) -> None:
    """Raise :class:`CertificateError` unless the functionals are those of the layer before."""
    alike = len(set(scales.tolist())) == 1
    if row is None or (row.differences and alike and not any(map(math.fsum, directions))):
        return
    raise CertificateError(
        "kind: the network ends in a softmax, for whose single outputs (and differences, but for "
        "LogSoftmax) no constant is at hand; certify it with kind='global', or without its last "
        "layer, which does not change the class"
    )
