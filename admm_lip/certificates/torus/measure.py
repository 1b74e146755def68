"""How inputs and outputs are measured, as steps of a torus chain in front of it and behind.

* **Raw units**: a scale per channel is a kernel of one tap.  Where scales differ within a channel,
  inputs have its least and outputs its largest: what is proven holds for all.
* **Inputs in linf**: one number r at every place feeds, by a tap ``sqrt(n_c)``, an activation of
  slopes [-1, 1] on every channel of the input; ``n_c`` is how many pixels of the image it has.  The
  covariance in front of it is ``sqrt(n_c n_d)``, so that the slack ``2 T - T P T`` is definite if
  and only if ``sum_c n_c t_c < 2``, and behind it stands ``2 T^-1``, whatever P.  So what follows
  is proven for inputs with ``sum_c (t_c / 2) |x_c|^2 <= 1``, as all have whose entries are at most
  1: outside the image x is 0.  It is the dense chain's layer for the norm (``claim_matrices.py``),
  with one multiplier per channel.

A phase of the input (``phases.py``) is a channel, of fewer pixels and with a scale of its own.

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
from .steps import INPUT_NORM, Correlation, Pair, Pointwise, Step, TorusChain


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
        scales = np.array(units.input_scales(inputs)).reshape(shape)
        # A phase that no image reaches has any.
        least = np.array([own.min(initial=scales.max()) for own in _apart(scales, chain.phases)])
        first, *rest = chain.steps
        chain = replace(chain, steps=(*_scaled_inputs(first, least), *rest))
    if norm == "linf":
        pixels = np.array([max(1, own.size) for own in _apart(np.ones(shape), chain.phases)])
        front = _of_norm(pixels)
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


def _apart(values: Array, phases: Pair) -> list[Array]:
    """What the channels of the chain hold of an image ``(channels, rows, columns)``."""
    rows, columns = phases
    return [v[a::rows, b::columns] for v in values for a in range(rows) for b in range(columns)]


def _of_norm(pixels: Array) -> tuple[Step, ...]:
    """The norm of inputs, of channels of so many pixels."""
    kernel = np.sqrt(pixels.astype(np.float64))[:, None, None, None]
    error = 2.0 * U * float(np.linalg.norm(kernel))
    ones = np.ones(len(pixels))
    return (
        Correlation(kernel, error=error),
        Pointwise(INPUT_NORM, np.arange(len(pixels)), -ones, ones),
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
