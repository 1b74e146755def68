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

1. ``K = (V + sigma gather(X - Y)) / (1 + sigma load)``, V the anchor, load 1 (``module_ball.py``
   has others);
2. ``A = a spread(K) + (1 - a) X + Y``, over-relaxed, combined with earlier ones (``Anderson``);
3. ``X = A`` with the singular values of every frequency clipped, ``Y = A - X``.

Symbols of short kernels vary slowly: the splitting looks at a coarse grid of frequencies, in single
precision where no more is asked for.  What it returns is divided by the norm on the whole torus,
measured in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..certificates.torus.steps import half_of, waves
from ..solvers.native.ball.anderson import Anderson
from .admm_state import Matrices
from .terms import LayerBall

Pair = tuple[int, int]
# X and Y, as pairs of real numbers.
Warm = tuple[Tensor, Tensor]

# Frequencies of a side of the coarse grid, for every one that a kernel spans.
_PER_SPAN = 4
_LEAST_SIDE = 8
_RELAX = 1.6
PENALTY = 4.0
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
        real, imaginary: ``(taps, copies * phases * frequencies)``; every column is scaled by its
            ``limit``.
        limits: the square roots of each frequency's share of all, ``(frequencies,)``.
        copies: places of the outputs in one of the grid's, so that lengths grow by the root of it.
    """

    real: Tensor
    imaginary: Tensor
    limits: Tensor
    copies: int = 1

    def at(self, part: slice) -> Symbols:
        """At some of the frequencies."""
        real, imaginary = (
            m.view(len(m), -1, len(self.limits))[:, :, part].flatten(1)
            for m in (self.real, self.imaginary)
        )
        return Symbols(real, imaginary, self.limits[part], self.copies)


@dataclass(frozen=True, eq=False)
class Spreading:
    """How kernels are spread to all frequencies, for :func:`split`.

    Attributes:
        spread: of kernels, ``(matrices, rows, columns)``, complex.
        gather: its adjoint.
        solve: what makes ``(1 + PENALTY gather(spread(.)))`` of kernels undone.
        limits: of the singular values of each matrix.
        excess: what a cut at the limits takes away from matrices.
    """

    spread: Callable[[Matrices], Tensor]
    gather: Callable[[Tensor], Matrices]
    solve: Callable[[Matrices], Matrices]
    limits: Tensor
    excess: Callable[[Tensor, Tensor], Tensor] = field(default_factory=lambda: clip_excess)


@dataclass(frozen=True)
class KernelBall(LayerBall):
    """Kernels ``(out, in / groups, rows, columns)`` of one shape, measured on one torus.

    Attributes:
        kernel: rows and columns of the kernel.
        grid: rows and columns of the torus of the outputs.
        stride, dilation: of the window, rows and columns.
        groups: of channels.
        start: rows and columns that the window begins before its place.
        wraps: along which axes the torus is the image itself, so that no other will do.
    """

    kernel: Pair
    grid: Pair
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    groups: int = 1
    start: Pair = (0, 0)
    wraps: tuple[bool, bool] = (False, False)

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
        return coarse_of(self.grid, self.spans)

    def spread(self, kernel: Tensor, symbols: Symbols) -> Tensor:
        """The scaled symbols, ``(groups * frequencies, out * copies, in * phases)``, complex."""
        rows, copies = kernel.shape[0] // self.groups, symbols.copies
        taps = kernel.reshape(-1, math.prod(self.kernel))
        shape = (self.groups, rows, kernel.shape[1], copies, -1, len(symbols.limits))
        found = torch.complex(taps @ symbols.real, taps @ symbols.imaginary).view(shape)
        return found.permute(0, 5, 1, 3, 2, 4).reshape(self.groups * shape[5], rows * copies, -1)

    def gather(self, scaled: Tensor, symbols: Symbols, like: Tensor) -> Tensor:
        """The adjoint of :meth:`spread`, a kernel of the shape of ``like``."""
        frequencies, rows = len(symbols.limits), like.shape[0] // self.groups
        shape = (self.groups, frequencies, rows, symbols.copies, like.shape[1], -1)
        turned = scaled.reshape(shape).permute(0, 2, 4, 3, 5, 1)
        columns = turned.reshape(like.shape[0], like.shape[1], -1)
        found = columns.real @ symbols.real.T + columns.imag @ symbols.imaginary.T
        return found.view(like.shape)

    def norm(self, kernel: Tensor) -> float:
        """The largest ``||S(f)||`` of all frequencies of the torus, in double precision."""
        kernel = kernel.to(torch.float64)
        entries = kernel.numel() // math.prod(self.kernel) * math.prod(self.stride)
        symbols = symbols_of(self, self.grid, torch.float64, kernel.device)
        return largest_norm((symbols,), lambda own: self.spread(kernel, *own), entries)

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
        spreading = Spreading(
            lambda kernels: self.spread(kernels[0], symbols),
            lambda scaled: (self.gather(scaled, symbols, goal),),
            by_loads((1.0,)),
            symbols.limits.repeat(self.groups),
        )
        (found,), warm, steps = split(spreading, (goal,), tol, warm)
        kernel = radius * found.to(torch.float64)
        norm = self.norm(kernel)
        return (kernel * (radius / norm) if norm > radius else kernel), warm, steps


def coarse_of(grid: Pair, spans: Pair) -> Pair:
    """The grid on which kernels of these spans are split, one of ``grid`` at most."""
    rows, columns = (
        min(n, max(_LEAST_SIDE, _PER_SPAN * span)) for n, span in zip(grid, spans, strict=True)
    )
    return rows, columns


@lru_cache(maxsize=64)
def symbols_of(
    ball: KernelBall, grid: Pair, dtype: torch.dtype, device: torch.device, finer: Pair = (1, 1)
) -> Symbols:
    """One of every two opposite frequencies of a grid.

    Args:
        ball: of the kernel.
        grid: rows and columns.
        dtype, device: of what is returned.
        finer: places of the kernel's outputs in one of the grid's: the stride of what reads them.
            Of ``finer = t`` the one at r takes the inputs ``s (t q + r) + d`` of q: a kernel of
            stride ``s t`` whose taps stand ``s r`` further on.
    """
    frequencies, counts = half_of(grid)
    wave = np.ones((1, 1, 1, len(counts)))
    for axis in (0, 1):
        step, side = ball.stride[axis] * finer[axis], grid[axis]
        first = ball.stride[axis] * np.arange(finer[axis])
        places = first[:, None] + ball.dilation[axis] * np.arange(ball.kernel[axis])
        moved = waves(frequencies[:, axis], places.flatten() // step, side).T
        own = places[..., None] % step == np.arange(min(step, places.max() + 1))
        here = np.where(own[..., None], moved.reshape(*places.shape, 1, -1), 0.0).swapaxes(0, 1)
        sizes = [a * b for a, b in zip(wave.shape[:3], here.shape[:3], strict=True)]
        wave = wave[:, None, :, None, :, None, :] * here[None, :, None, :, None, :, :]
        wave = wave.reshape(*sizes, -1)
    limits = np.sqrt(counts / counts.sum())
    flat = (wave * limits).reshape(len(wave), -1)
    parts = (flat.real, flat.imag, limits)
    real, imaginary, each = (torch.from_numpy(np.array(p)).to(device, dtype) for p in parts)
    return Symbols(real, imaginary, each, math.prod(finer))


def by_loads(loads: Sequence[float]) -> Callable[[Matrices], Matrices]:
    """The step of :class:`Spreading` where each kernel is made longer, squared, so many times."""

    def solve(rows: Matrices) -> Matrices:
        return tuple(w / (1.0 + PENALTY * load) for w, load in zip(rows, loads, strict=True))

    return solve


def split(
    spreading: Spreading, anchor: Matrices, tol: float, warm: Warm | None
) -> tuple[Matrices, Warm, int]:
    """The steps of the module's docstring, in the unit ball."""
    c, limits = spreading.spread(anchor), spreading.limits
    if warm is None or warm[0].shape != torch.view_as_real(c).shape:
        excess = spreading.excess(c, limits)
        inside = c - excess
    else:
        inside, excess = (torch.view_as_complex(part.to(limits.dtype)) for part in warm)
    memory, kernels, steps = Anderson(torch.view_as_real(inside)), anchor, 0
    for steps in range(1, _MOST_STEPS + 1):
        pulls = spreading.gather(inside - excess)
        kernels = spreading.solve(
            tuple(v + PENALTY * pull for v, pull in zip(anchor, pulls, strict=True))
        )
        c = spreading.spread(kernels)
        point = excess + _RELAX * c + (1.0 - _RELAX) * inside
        if steps > _PLAIN:
            pair = (torch.view_as_real(part) for part in (inside + excess, point))
            point = torch.view_as_complex(memory.propose(*pair))
        before, excess = inside, spreading.excess(point, limits)
        inside = point - excess
        size, force = _length(inside), _length(excess)
        primal = _length(c - inside) / size if size else 0.0
        dual = _length(inside - before) / force if force else 0.0
        if max(primal, dual / _RATIO) <= tol:
            break
    return kernels, (torch.view_as_real(inside), torch.view_as_real(excess)), steps


def _length(matrices: Tensor) -> float:
    """The Frobenius norm, several times as fast as torch's of complex numbers."""
    return float(torch.view_as_real(matrices).norm())


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


def eigenvalue_excess(matrices: Tensor, limits: Tensor) -> Tensor:
    """What cutting the eigenvalues of Hermitian matrices at each one's limit takes away."""
    excess = torch.zeros_like(matrices)
    slack = -matrices
    slack.diagonal(dim1=1, dim2=2).add_(limits[:, None])
    outside = torch.linalg.cholesky_ex(slack)[1] != 0
    if bool(outside.any()):
        values, vectors = torch.linalg.eigh(matrices[outside])
        above = (values - limits[outside, None]).clamp(min=0.0)
        first = above.shape[1] - int((above > 0.0).sum(dim=1).max())
        taken = vectors[:, :, first:]
        excess[outside] = (taken * above[:, None, first:]) @ taken.mH
    return excess


def largest_norm(
    symbols: Sequence[Symbols], spread: Callable[[Sequence[Symbols]], Tensor], entries: int
) -> float:
    """The largest norm at all frequencies, as :func:`largest_eigenvalue` finds it."""
    return math.sqrt(largest_eigenvalue(symbols, spread, entries, _gram))


def largest_eigenvalue(
    symbols: Sequence[Symbols],
    spread: Callable[[Sequence[Symbols]], Tensor],
    entries: int,
    hermitian: Callable[[Tensor], Tensor] = lambda matrices: matrices,
) -> float:
    """The largest eigenvalue at all frequencies, not below 0: few are decomposed.

    The others are proven no larger.

    Args:
        symbols: of one grid.
        spread: the matrices at some of its frequencies, every one times its limit.
        entries: of a matrix, about.
        hermitian: what is decomposed of the matrices.
    """
    most, rows, limits = 0.0, max(1, _ENTRIES // entries), symbols[0].limits
    for k in range(0, len(limits), rows):
        own = [one.at(slice(k, k + rows)) for one in symbols]
        found = spread(own)
        here = own[0].limits.repeat(len(found) // len(own[0].limits))
        most = _largest(hermitian(found / here[:, None, None]), most)
    return most * (1.0 + _EXCESS)


def _largest(gram: Tensor, most: float) -> float:
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
