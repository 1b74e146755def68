"""A bound on a convolution's norm that costs little at any image size.

A zero-padded convolution is a part of one on a torus large enough that nothing wraps around: its
inputs and outputs are some of that one's.  On the torus, with the inputs ``s q + r`` of each phase
r of a stride s as channels of their own, the convolution is block diagonal in frequencies f,

    S(f)[o, (c, r)] = sum_m w[o, c, r + s m] exp(2 pi i f m / n),

so that ``||W|| <= max_f ||S(f)||``, which for large images is hardly above the norm itself
(H. Sedghi, V. Gupta, P. Long, ICLR 2019).  The norms are proven by Cholesky factors, on the real
form ``[[Re, -Im], [Im, Re]]`` of twice the size.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..certificates.torus.steps import waves
from ..float64 import TINY
from ..rounding import SLACK, lengths, proven_norms
from .convolutions import Convolution

# Relative error of an entry of S, far above the rounding of the sines and of the sum.
_ROUNDING = 1e-12
_ENTRIES = 2**24


def torus_norm(operator: Convolution) -> float:
    """An upper bound of the norm of a convolution in float64, proven.

    Returns:
        inf where a weight is not finite.
    """
    weight = operator.own_entries().detach()
    if not bool(torch.isfinite(weight).all()):
        return math.inf
    spread, counts = _phases(operator, weight)
    groups = spread.view(operator.options["groups"], -1, *spread.shape[1:])
    return max(_largest(group, counts) for group in groups)


def _phases(operator: Convolution, weight: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """``w[o, (c, r), m1, m2]``, and the number of frequencies per direction."""
    (rows, columns), dilation, _ = operator.window
    out, channels, *kernel = weight.shape
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    taps = [-(-r // s) for r, s in zip(reach, (rows, columns), strict=True)]
    wide = weight.new_zeros((out, channels, taps[0] * rows, taps[1] * columns))
    wide[:, :, : reach[0] : dilation[0], : reach[1] : dilation[1]] = weight
    split = wide.view(out, channels, taps[0], rows, taps[1], columns).permute(0, 1, 3, 5, 2, 4)
    top, bottom, left, right = operator.sides
    padded = operator.shape_in[1] + top + bottom, operator.shape_in[2] + left + right
    counts = [max(t, -(-n // s)) for t, n, s in zip(taps, padded, (rows, columns), strict=True)]
    return split.reshape(out, channels * rows * columns, *taps), (counts[0], counts[1])


def _largest(kernel: Tensor, counts: tuple[int, int]) -> float:
    """The largest ``||S(f)||``; conjugate frequencies have the same norm."""
    first, second = (
        torch.from_numpy(waves(np.arange(n), np.arange(m), n))
        for n, m in zip(counts, kernel.shape[2:], strict=True)
    )
    off = _ROUNDING * lengths(kernel.abs().sum(dim=(2, 3)), dim=(0, 1))
    half = first[: counts[0] // 2 + 1]
    entries = 4 * counts[1] * kernel.shape[0] * kernel.shape[1]
    most = 0.0
    for part in torch.split(half, max(1, _ENTRIES // entries)):
        symbols = torch.einsum("ocab,fa,gb->fgoc", kernel.to(part.dtype), part, second)
        real, imaginary = symbols.real.flatten(0, 1), symbols.imag.flatten(0, 1)
        upper, lower = torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)
        most = max(most, float(proven_norms(torch.cat([upper, lower], -2)).max()))
    # The real form holds every entry's error twice.
    return (most + 2.0 * float(off)) * SLACK + TINY
