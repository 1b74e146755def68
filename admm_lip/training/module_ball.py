"""The ball of a module ``W1 phi(W0 x)``: two layers with the activation between them.

For slopes in [0, 1] the matrix inequality of a bound r on the module with multipliers ``b^2 / r``
says, by a Schur complement and a scaling,

    b^2 W0 W0' + W1' W1 / b^2 <= 2 r I        or        ||[b W0'; W1 / b]|| <= sqrt(2 r).

So ``norm = ||[b W0'; W1 / b]|| / sqrt 2`` is what each of two layers counts for, ``r = norm^2``.
It is at most the root of ``(b^2 ||W0||^2 + ||W1||^2 / b^2) / 2``: with b that makes the layers
equal, no more than ``||W0|| ||W1||``, and as little as half of that.  Multipliers of each neuron's
own, or each channel's, are a scaling of the neurons, which weights that move find by themselves: at
``b = 1`` the ball reaches all that they certify.

Convolutions (``kernel_ball.py``) stand on the frequencies of the torus behind both.  A stride t of
the second folds t times t places between them onto one: they are the columns of ``S1(f)`` and the
rows of ``S0(f)``, a kernel of stride ``s t`` for each.  Every tap of the first then stands there
t times t times, which is its load in the splitting.  What pads shifts the columns, and with them a
circulant ``W0 W0'``: no norm sees it.  On zero-padded images the inequality is a principal
submatrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .admm_state import Matrices
from .kernel_ball import (
    SINGLE,
    KernelBall,
    Pair,
    Spreading,
    Symbols,
    by_loads,
    coarse_of,
    largest_norm,
    split,
    symbols_of,
)
from .matrix_ball import DENSE, DenseBall
from .terms import Ball, LayerBall

_POINT = KernelBall((1, 1), (1, 1))


@dataclass(frozen=True)
class ModuleBall(Ball):
    """Two layers of one kind, dense or convolutions without groups, by their module's bound.

    Attributes:
        first, second: the balls of the layers; places between them are those of the first's grid,
            ``stride`` times the second's.
        balance: b, with which the first layer counts, and the second by its inverse.
    """

    first: DenseBall | KernelBall
    second: DenseBall | KernelBall
    balance: float = 1.0
    layers = 2

    @property
    def factors(self) -> tuple[float, ...]:
        """b and its inverse."""
        return self.balance, 1.0 / self.balance

    def apart(self) -> tuple[LayerBall, ...]:
        """The balls of both layers."""
        return self.first, self.second

    def fitted(self, weights: Matrices) -> ModuleBall:
        """With b that makes the norms of the layers equal."""
        sizes = [ball.norm(w) for ball, w in zip(self.apart(), weights, strict=True)]
        return replace(self, balance=math.sqrt(sizes[1] / sizes[0])) if min(sizes) > 0.0 else self

    def norm_of(self, weights: Matrices) -> float:
        """The norm of the module's docstring, 0 where a layer is."""
        return self._size(weights) if all(bool((w != 0).any()) for w in weights) else 0.0

    def nearest_to(
        self, anchor: Matrices, radius: float, tol: float, warm: Any = None
    ) -> tuple[Matrices, Any, int]:
        """The nearest weights of norm at most ``radius``, restart data, and steps taken."""
        reach = math.sqrt(2.0) * radius
        if self._is_plain and self.balance == 1.0:
            found, warm, steps = DENSE.nearest(_stacked(anchor), reach, tol)
            inner = anchor[0].shape[1]
            return (found[:inner].T.contiguous(), found[inner:].contiguous()), warm, steps
        dtype = torch.float32 if tol >= SINGLE else torch.float64
        goal = tuple((w / reach).to(dtype) for w in anchor)
        near, warm, steps = split(self._spreading(goal), goal, tol, warm)
        weights = tuple(reach * w.to(torch.float64) for w in near)
        size = self._size(weights)
        share = radius / size if size > radius else 1.0
        return tuple(share * w for w in weights), warm, steps

    @property
    def _is_plain(self) -> bool:
        return isinstance(self.first, DenseBall)

    @property
    def _kernels(self) -> tuple[KernelBall, KernelBall]:
        first, second = self.first, self.second
        if isinstance(first, KernelBall) and isinstance(second, KernelBall):
            return first, second
        return _POINT, _POINT

    @property
    def _coarse(self) -> Pair:
        """The grid of the splitting: fine enough for both layers."""
        first, second = self._kernels
        axes = zip(
            *(first.dilation, first.kernel, first.stride, second.stride, second.spans), strict=True
        )
        rows, columns = (
            max(own, (d * (k - 1) + s * (t - 1)) // (s * t) + 1) for d, k, s, t, own in axes
        )
        return coarse_of(second.grid, (rows, columns))

    def _symbols(self, grid: Pair, dtype: torch.dtype, device: torch.device) -> list[Symbols]:
        first, second = self._kernels
        return [
            symbols_of(first, grid, dtype, device, second.stride),
            symbols_of(second, grid, dtype, device),
        ]

    def _spread(self, weights: Matrices, symbols: Sequence[Symbols]) -> Tensor:
        """``[b S0^H; S1 / b]`` at every frequency."""
        rows = zip(self.factors, self._kernels, weights, symbols, strict=True)
        first, second = (f * ball.spread(w, own) for f, ball, w, own in rows)
        return torch.cat((first.mH, second), dim=1)

    def _gather(self, scaled: Tensor, symbols: Sequence[Symbols], like: Matrices) -> Matrices:
        """The adjoint."""
        out = len(like[1])
        parts = (scaled[:, :-out].mH, scaled[:, -out:])
        rows = zip(self.factors, self._kernels, parts, symbols, like, strict=True)
        return tuple(f * ball.gather(part, own, w) for f, ball, part, own, w in rows)

    def _spreading(self, like: Matrices) -> Spreading:
        symbols = self._symbols(self._coarse, like[0].dtype, like[0].device)
        return Spreading(
            lambda weights: self._spread(weights, symbols),
            lambda scaled: self._gather(scaled, symbols, like),
            by_loads([f**2 * own.copies for f, own in zip(self.factors, symbols, strict=True)]),
            symbols[0].limits,
        )

    def _size(self, weights: Matrices) -> float:
        """The norm of both layers side by side over the root of 2, in double precision."""
        double = tuple(w.to(torch.float64) for w in weights)
        if self._is_plain:
            scaled = [f * w for f, w in zip(self.factors, double, strict=True)]
            return DENSE.norm(_stacked(scaled)) / math.sqrt(2.0)
        first, second = self._kernels
        symbols = self._symbols(second.grid, torch.float64, double[0].device)
        columns = len(double[0]) * math.prod(second.stride)
        rows = double[0].shape[1] * math.prod(first.stride + second.stride) + len(double[1])
        found = largest_norm(symbols, lambda own: self._spread(double, own), rows * columns)
        return found / math.sqrt(2.0)


def _stacked(weights: Sequence[Tensor]) -> Tensor:
    return torch.cat((weights[0].T, weights[1]))
