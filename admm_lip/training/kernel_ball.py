"""The spectral-norm ball of one convolution, frequency by frequency.

A zero-padded convolution is a part of one on a torus that is large enough for no window to reach
around it (``certificates/torus/steps.py``).  There, the inputs ``s q + r`` of each phase r of a
stride s taken as channels of their own, it is block diagonal in frequencies f, up to phases that no
norm sees:

    S(f)[o, (c, r)] = sum_m K[o, c, r + s m] exp(2 pi i f m / n),        ||K|| = max_f ||S(f)||.

Every tap stands in one block of columns, so that ``spread`` (K to all S(f), each by the square root
of how many of the n frequencies it stands for) keeps lengths, and ``gather``, its adjoint, undoes
it.  The nearest kernel in the unit ball is found by splitting: with X a copy of ``spread(K)`` and Y
the scaled dual,

1. ``K = (V + sigma gather(X - Y)) / (1 + sigma)``, V the anchor;
2. ``A = a spread(K) + (1 - a) X + Y``, over-relaxed, combined with earlier ones (``Anderson``);
3. ``X = A`` with the singular values of every frequency clipped, ``Y = A - X``.

Symbols of short kernels vary slowly: the splitting looks at a coarse grid of frequencies, in single
precision where no more is asked for.  What it returns is divided by the norm on the whole torus,
measured in double precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..certificates.torus.steps import half_of, waves
from ..solvers.native.ball.anderson import Anderson

Pair = tuple[int, int]
# X and Y, as pairs of real numbers.
Warm = tuple[Tensor, Tensor]

# Frequencies of a side of the coarse grid, for every one that a kernel spans.
_PER_SPAN = 4
_LEAST_SIDE = 8
_RELAX = 1.6
_PENALTY = 4.0
_MOST_STEPS = 2000
# Steps before they are combined, which a warm start seldom takes.
_PLAIN = 6
# How much larger the relative dual residual may be than the primal one.
_RATIO = 12.0
# Tolerance below which single precision does not do.
SINGLE = 1e-5
# How far a norm may be above the one found: it is returned so much larger.
_EXCESS = 1e-10
# Numbers of the largest batch, and the frequencies that are decomposed before others are looked at.
_ENTRIES = 2**22
_FIRST = 4


class Symbols(NamedTuple):
    """What makes the symbols of a kernel, on one grid.

    Attributes:
        real, imaginary: ``(taps, phases * frequencies)``; every column is scaled by its ``limit``.
        limits: the square roots of each frequency's share of all, ``(frequencies,)``.
    """

    real: Tensor
    imaginary: Tensor
    limits: Tensor


@dataclass(frozen=True)
class KernelBall:
    """Kernels ``(out, in / groups, rows, columns)`` of one shape, measured on one torus.

    Attributes:
        kernel: rows and columns of the kernel.
        grid: rows and columns of the torus of the outputs.
        stride, dilation: of the window, rows and columns.
        groups: of channels.
    """

    kernel: Pair
    grid: Pair
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    groups: int = 1
    shares = True

    def __post_init__(self) -> None:
        for axis, (span, side) in enumerate(zip(self.spans, self.grid, strict=True)):
            if side < span:
                raise ValueError(
                    f"grid: expected at least {span} along axis {axis}, which the kernel spans, "
                    f"got {side}: it would reach around the torus"
                )

    @property
    def spans(self) -> Pair:
        """How many places of the outputs' torus the taps of a kernel are spread over."""
        rows, columns = (
            (d * (k - 1)) // s + 1
            for k, s, d in zip(self.kernel, self.stride, self.dilation, strict=True)
        )
        return rows, columns

    @property
    def coarse(self) -> Pair:
        """The grid of the splitting."""
        rows, columns = (
            min(n, max(_LEAST_SIDE, _PER_SPAN * span))
            for n, span in zip(self.grid, self.spans, strict=True)
        )
        return rows, columns

    def spread(self, kernel: Tensor, symbols: Symbols) -> Tensor:
        """The scaled symbols, ``(groups * frequencies, out, in * phases)``, complex."""
        rows = kernel.shape[0] // self.groups
        taps = kernel.reshape(-1, math.prod(self.kernel))
        shape = (self.groups, rows, kernel.shape[1], -1, len(symbols.limits))
        found = torch.complex(taps @ symbols.real, taps @ symbols.imaginary).view(shape)
        return found.permute(0, 4, 1, 2, 3).reshape(self.groups * shape[4], rows, -1)

    def gather(self, scaled: Tensor, symbols: Symbols, like: Tensor) -> Tensor:
        """The adjoint of :meth:`spread`, a kernel of the shape of ``like``."""
        frequencies, rows = len(symbols.limits), like.shape[0] // self.groups
        shape = (self.groups, frequencies, rows, like.shape[1], -1)
        columns = (
            scaled.view(shape).permute(0, 2, 3, 4, 1).reshape(like.shape[0], like.shape[1], -1)
        )
        found = columns.real @ symbols.real.T + columns.imag @ symbols.imaginary.T
        return found.view(like.shape)

    def norm(self, kernel: Tensor) -> float:
        """The largest ``||S(f)||`` of all frequencies of the torus, in double precision."""
        kernel = kernel.to(torch.float64)
        entries = kernel.numel() // math.prod(self.kernel) * math.prod(self.stride)
        return _largest(
            self, kernel, symbols_of(self, self.grid, torch.float64, kernel.device), entries
        )

    def nearest(
        self, anchor: Tensor, radius: float, tol: float, warm: Warm | None = None
    ) -> tuple[Tensor, Warm, int]:
        """The nearest kernel of norm at most ``radius``, restart data, and how many steps it took.

        Args:
            anchor: the kernel to be near to, float64.
            radius: of the ball.
            tol: relative residuals that end the splitting.
            warm: of a kernel nearby.
        """
        dtype = torch.float32 if tol >= SINGLE else torch.float64
        symbols = symbols_of(self, self.coarse, dtype, anchor.device)
        goal = (anchor / radius).to(dtype)
        limits = symbols.limits.repeat(self.groups)
        found, warm, steps = _split(self, goal, symbols, limits, tol, warm)
        kernel = radius * found.to(torch.float64)
        norm = self.norm(kernel)
        return (kernel * (radius / norm) if norm > radius else kernel), warm, steps


@lru_cache(maxsize=64)
def symbols_of(ball: KernelBall, grid: Pair, dtype: torch.dtype, device: torch.device) -> Symbols:
    """One of every two opposite frequencies of a grid."""
    frequencies, counts = half_of(grid)
    wave = np.ones((1, 1, len(counts)))
    for axis in (0, 1):
        step, side = ball.stride[axis], grid[axis]
        places = ball.dilation[axis] * np.arange(ball.kernel[axis])
        moved = waves(frequencies[:, axis], places // step, side).T
        own = (places % step)[:, None] == np.arange(min(step, places[-1] + 1))
        here = np.where(own[:, :, None], moved[:, None, :], 0.0)
        taps, phases = len(wave) * len(here), wave.shape[1] * here.shape[1]
        wave = (wave[:, None, :, None] * here[None, :, None]).reshape(taps, phases, -1)
    limits = np.sqrt(counts / counts.sum())
    flat = (wave * limits).reshape(len(wave), -1)
    parts = (flat.real, flat.imag, limits)
    return Symbols(*(torch.from_numpy(np.array(p)).to(device, dtype) for p in parts))


def _split(
    ball: KernelBall,
    anchor: Tensor,
    symbols: Symbols,
    limits: Tensor,
    tol: float,
    warm: Warm | None,
) -> tuple[Tensor, Warm, int]:
    """The steps of the module's docstring, in the unit ball."""
    c = ball.spread(anchor, symbols)
    if warm is None or warm[0].shape != torch.view_as_real(c).shape:
        excess = clip_excess(c, limits)
        inside = c - excess
    else:
        inside, excess = (torch.view_as_complex(part.to(anchor.dtype)) for part in warm)
    memory, kernel, steps = Anderson(torch.view_as_real(inside)), anchor, 0
    for steps in range(1, _MOST_STEPS + 1):
        pull = ball.gather(inside - excess, symbols, anchor)
        kernel = (anchor + _PENALTY * pull) / (1.0 + _PENALTY)
        c = ball.spread(kernel, symbols)
        point = excess + _RELAX * c + (1.0 - _RELAX) * inside
        if steps > _PLAIN:
            pair = (torch.view_as_real(part) for part in (inside + excess, point))
            point = torch.view_as_complex(memory.propose(*pair))
        before, excess = inside, clip_excess(point, limits)
        inside = point - excess
        size, force = float(inside.norm()), float(excess.norm())
        primal = float((c - inside).norm()) / size if size else 0.0
        dual = float((inside - before).norm()) / force if force else 0.0
        if max(primal, dual / _RATIO) <= tol:
            break
    return kernel, (torch.view_as_real(inside), torch.view_as_real(excess)), steps


def clip_excess(matrices: Tensor, limits: Tensor) -> Tensor:
    """What cutting all singular values at each matrix's limit takes away."""
    excess = torch.zeros_like(matrices)
    gram = _gram(matrices)
    slack = -gram
    slack.diagonal(dim1=1, dim2=2).add_(limits.square()[:, None])
    outside = torch.linalg.cholesky_ex(slack)[1] != 0
    if not bool(outside.any()):
        return excess
    own, limit = matrices[outside], limits[outside]
    squares, vectors = torch.linalg.eigh(gram[outside])
    singular = squares.clamp(min=torch.finfo(limits.dtype).tiny).sqrt()
    share = (1.0 - limit[:, None] / singular).clamp(min=0.0)
    removed = (vectors * share[:, None]) @ vectors.mH
    wide = matrices.shape[1] <= matrices.shape[2]
    excess[outside] = removed @ own if wide else own @ removed
    return excess


def _largest(ball: KernelBall, kernel: Tensor, symbols: Symbols, entries: int) -> float:
    """The largest of the symbols' norms: few are decomposed, the others proven no larger."""
    count, most = len(symbols.limits), 0.0
    phases = symbols.real.shape[1] // count
    real, imaginary = (part.view(-1, phases, count) for part in symbols[:2])
    rows = max(1, _ENTRIES // entries)
    for k in range(0, count, rows):
        part = slice(k, k + rows)
        limits = symbols.limits[part]
        own = Symbols(real[:, :, part].flatten(1), imaginary[:, :, part].flatten(1), limits)
        gram = _gram(ball.spread(kernel, own) / limits.repeat(ball.groups)[:, None, None])
        most = _largest_square(gram, most)
    return math.sqrt(most * (1.0 + _EXCESS))


def _largest_square(gram: Tensor, most: float) -> float:
    """The largest eigenvalue of a batch, or ``most`` where that is larger."""
    traces = torch.linalg.matrix_norm(gram)
    while len(gram):
        order = traces.argsort(descending=True)
        gram, traces = gram[order], traces[order]
        most = max(most, float(torch.linalg.eigvalsh(gram[:_FIRST]).max()))
        gram, traces = gram[_FIRST:], traces[_FIRST:]
        slack = -gram
        slack.diagonal(dim1=1, dim2=2).add_(most * (1.0 + _EXCESS))
        larger = torch.linalg.cholesky_ex(slack)[1] != 0
        gram, traces = gram[larger], traces[larger]
    return most


def _gram(matrices: Tensor) -> Tensor:
    wide = matrices.shape[1] <= matrices.shape[2]
    return matrices @ matrices.mH if wide else matrices.mH @ matrices
