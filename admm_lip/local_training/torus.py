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

import torch
from torch import Tensor, nn

from ..rounding import SLACK, TINY, lengths, proven_norms
from .operators import Shape

# Relative error of an entry of S, far above the rounding of the sines and of the sum.
_ROUNDING = 1e-12
_ENTRIES = 2**24


def torus_norm(layer: nn.Conv2d, shape_in: Shape, padding: tuple[int, int]) -> float:
    """An upper bound of the norm of a convolution, proven.

    Args:
        layer: the convolution, in float64.
        shape_in: ``(channels, height, width)``.
        padding: rows and columns of zeros on each side.

    Returns:
        inf where a weight is not finite.
    """
    weight = layer.weight.detach()
    if not bool(torch.isfinite(weight).all()):
        return math.inf
    spread, counts = _phases(layer, weight, shape_in[1:], padding)
    groups = spread.view(layer.groups, -1, *spread.shape[1:])
    return max(_largest(group, counts) for group in groups)


def _phases(
    layer: nn.Conv2d, weight: Tensor, sizes: Shape, padding: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """``w[o, (c, r), m1, m2]``, and the number of frequencies per direction."""
    out, channels, *kernel = weight.shape
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, kernel, strict=True)]
    taps = [-(-r // s) for r, s in zip(reach, layer.stride, strict=True)]
    whole = [t * s for t, s in zip(taps, layer.stride, strict=True)]
    wide = weight.new_zeros((out, channels, *whole))
    wide[:, :, : reach[0] : layer.dilation[0], : reach[1] : layer.dilation[1]] = weight
    rows, columns = layer.stride
    split = wide.view(out, channels, taps[0], rows, taps[1], columns).permute(0, 1, 3, 5, 2, 4)
    counts = [
        max(t, -(-(n + 2 * p) // s))
        for t, n, p, s in zip(taps, sizes, padding, layer.stride, strict=True)
    ]
    return split.reshape(out, channels * rows * columns, *taps), (counts[0], counts[1])


def _largest(kernel: Tensor, counts: tuple[int, int]) -> float:
    """The largest ``||S(f)||``; conjugate frequencies have the same norm."""
    first, second = (_waves(n, m) for n, m in zip(counts, kernel.shape[2:], strict=True))
    off = _ROUNDING * lengths(kernel.abs().sum(dim=(2, 3)), dim=(0, 1))
    half = first[: counts[0] // 2 + 1]
    entries = 4 * counts[1] * kernel.shape[0] * kernel.shape[1]
    most = 0.0
    for waves in torch.split(half, max(1, _ENTRIES // entries)):
        symbols = torch.einsum("ocab,fa,gb->fgoc", kernel.to(waves.dtype), waves, second)
        real, imaginary = symbols.real.flatten(0, 1), symbols.imag.flatten(0, 1)
        upper, lower = torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)
        most = max(most, float(proven_norms(torch.cat([upper, lower], -2)).max()))
    # The real form holds every entry's error twice.
    return (most + 2.0 * float(off)) * SLACK + TINY


def _waves(count: int, taps: int) -> Tensor:
    """``exp(2 pi i f m / n)``, ``(n, taps)``."""
    turns = torch.outer(torch.arange(count), torch.arange(taps)) % count
    return torch.exp(2j * math.pi * turns.double() / count)
