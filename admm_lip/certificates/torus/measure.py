"""How inputs and outputs are measured, as steps of a torus chain in front of it and behind.

* **Raw units**: a scale per channel is a kernel of one tap.  Where scales differ within a channel,
  inputs have its least and outputs its largest: what is proven holds for all.
* **Inputs in linf**: one number r at every place feeds, by a tap ``sqrt(n)``, an activation of
  slopes [-1, 1] on every channel of the input; n is the image's number of pixels.  The covariance
  in front of it is n in every entry, so that the slack ``2 T - T P T`` is definite if and only if
  ``n sum_c t_c < 2``, and behind it stands ``2 T^-1``, whatever P.  So what follows is proven for
  inputs with ``sum_c (t_c / 2) |x_c|^2 <= 1``, as all have whose entries are at most 1: outside
  the image x is 0.  It is the dense chain's layer for the norm (``claim_matrices.py``), with one
  multiplier per channel.

NumPy only.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ...float64 import SQUARED_AWAY, U
from ...networks.layer_spec import LayerSpec
from ...networks.layers import Array, Shape
from ...networks.network import Network
from ...units import Units
from ..claim_matrices import check_norm, check_units
from .steps import INPUT_NORM, Correlation, Pointwise, Step, TorusChain


def measured_on_torus(
    chain: TorusChain, shape: Shape, norm: str, units: Units | None
) -> TorusChain:
    """The chain whose l2 constant bounds the network's for inputs and outputs measured so.

    Args:
        chain: of the network.
        shape: of one input, ``(channels, rows, columns)``.
        norm: of the inputs, ``"l2"`` or ``"linf"``.
        units: of what is measured; ``None`` is what the network takes and gives.

    Raises:
        CertificateError: for an unknown norm, or units that do not fit the network.
    """
    check_norm(norm)
    inputs = math.prod(shape)
    if units is not None:
        chain = _with_outputs(chain, inputs, units)
        least = np.array(units.input_scales(inputs)).reshape(shape[0], -1).min(axis=1)
        first, *rest = chain.steps
        chain = replace(chain, steps=(*_scaled_inputs(first, least), *rest))
    if norm == "linf":
        front = _of_norm(chain.channels, math.prod(shape[1:]))
        chain = replace(chain, steps=(*front, *chain.steps), channels=1)
    return chain


def _scaled_inputs(first: Step, scales: Array) -> tuple[Step, ...]:
    """The first step of inputs divided by a scale per channel."""
    if not isinstance(first, Correlation):
        one = Correlation(np.eye(len(scales))[:, :, None, None])
        return () if (scales == 1.0).all() else (*_scaled_inputs(one, scales), first)
    kernel = first.kernel / scales[:, None, None]
    return (_exchanged(first, kernel, scales, 1.0 / float(scales.min())),)


def _scaled_outputs(last: Step, scales: Array) -> tuple[Step, ...]:
    """The last step with its outputs times a scale per channel."""
    if not isinstance(last, Correlation):
        one = Correlation(np.eye(len(scales))[:, :, None, None])
        return (last, *_scaled_outputs(one, scales))
    kernel = last.kernel * scales[:, None, None, None]
    return (_exchanged(last, kernel, scales, float(scales.max())),)


def _exchanged(step: Correlation, kernel: Array, scales: Array, growth: float) -> Correlation:
    """A scaled kernel: its error has grown with it; powers of two round nothing."""
    inexact = bool((np.frexp(scales)[0] != 0.5).any())
    lost = 1.01 * U * float(np.linalg.norm(kernel)) * inexact + SQUARED_AWAY
    return replace(step, kernel=kernel, error=lost + 1.01 * growth * step.error)


def _of_norm(channels: int, pixels: int) -> tuple[Step, ...]:
    kernel = np.full((channels, 1, 1, 1), math.sqrt(pixels))
    error = 2.0 * U * float(np.linalg.norm(kernel))
    ones = np.ones(channels)
    return (
        Correlation(kernel, error=error),
        Pointwise(INPUT_NORM, np.arange(channels), -ones, ones),
    )


def _with_outputs(chain: TorusChain, inputs: int, units: Units) -> TorusChain:
    head = chain.head
    shape = chain.image if head is None else head.shapes()[head.output]
    check_units(units, inputs, math.prod(shape))
    scales = np.array(units.output_scales(math.prod(shape))).reshape(shape)
    if not units.scales_outputs:
        return chain
    if head is None:
        *front, last = chain.steps
        return replace(chain, steps=(*front, *_scaled_outputs(last, scales.max(axis=(1, 2)))))
    end = LayerSpec("elementwise", f"{head.output}_in_units", {})
    arrays = {**head.arrays, f"{end.name}.weight": scales}
    return replace(chain, head=Network((*head.layers, end), arrays, head.input_shape))
