"""How distances around a sample are measured: l2 or linf, in the model's units or in raw ones.

A displacement d of raw inputs moves the model's input by ``d / s`` and the first pre-activations by
``W_0 diag(1/s) d``.  Everything that bounds need to know of the unit ball is how far that reaches:
per neuron, all together in l2, and for a row a over the neurons, ``max a W_0 diag(1/s) d``.

For linf the Lipschitz levels measure d in a weighted l2 norm that the box fits into:
``|d_i| <= r`` implies ``sum_i (c_i d_i)^2 <= r^2`` for any c with ``sum c_i^2 <= 1``.  The c chosen
grow with the columns of ``W_0``, so that features which the network ignores cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..certificates.claim_matrices import NORMS, measured, units_of_scale
from ..networks.layers import Array
from ..networks.network import Chain
from ..rounding import SLACK, TINY, lengths
from .affine import Affine, affine_of, first_factor

# Weight of a column that is zero, as a share of the mean one.
_LEAST = 1e-3


@dataclass(frozen=True, eq=False)
class Ball:
    """The unit ball, seen from the first pre-activations.

    Attributes:
        norm: ``"l2"`` or ``"linf"``.
        scale: s, per feature, ``None`` for 1.
        first: ``W_0 diag(1/s)``.
        rows: upper bounds of what one neuron's pre-activation moves, ``(n_1,)``.
        reach: upper bound of what all of them move, in l2.
        factor: F with ``max a W_0 diag(1/s) d <= ||a F||`` over the unit ball, for every row a.
    """

    norm: str
    scale: Tensor | None
    first: Affine
    rows: Tensor
    reach: float
    factor: Tensor


def ball_of(chain: Chain, norm: str = "l2", input_scale: Sequence[float] | None = None) -> Ball:
    """The unit ball of a norm.

    Raises:
        ValueError: for an unknown norm.
        CertificateError: for scales that do not fit the inputs.
    """
    if norm not in NORMS:
        raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")
    first = _first(chain, input_scale)
    scale = None
    if input_scale is not None:
        inputs = chain.widths[0]
        scales = units_of_scale(input_scale, inputs).input_scales(inputs)
        scale = torch.tensor(scales, dtype=torch.float64)
    if norm == "l2":
        return Ball(norm, scale, first, first.rows, first.norm, first_factor(first))
    inputs = first.weight.shape[1]
    rows = (first.size.sum(dim=1) + first.error * inputs**0.5) * SLACK + TINY
    share = lengths(first.weight, dim=0).numpy()
    share = share / share.max()
    share = share + _LEAST * share.mean()
    c = np.sqrt(share / share.sum())
    own = np.ones(inputs) if scale is None else scale.numpy()
    fitted = _first(chain, c * own)
    factor = first_factor(fitted) * (float(np.linalg.norm(c)) * SLACK)
    return Ball(norm, scale, first, rows, float(lengths(rows)), factor)


def _first(chain: Chain, scale: Sequence[float] | Array | None) -> Affine:
    """The first map for inputs in other units."""
    if scale is None:
        weight, error = chain.weights[0], chain.errors[0]
    else:
        matrices = measured(
            chain, "l2", units_of_scale(tuple(float(s) for s in scale), chain.widths[0])
        )
        weight, error = matrices.weights[0], matrices.errors[0]
    return affine_of(
        torch.from_numpy(weight), torch.from_numpy(chain.biases[0]), error, chain.bias_errors[0]
    )
