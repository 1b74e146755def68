"""The ball of a residual block with a linear shortcut, ``y = S x + G2 phi(G1 x)``.

For slopes in [0, 1] the matrix inequality of a bound r on the block with multipliers ``b^2 r`` is,
by a Schur complement on the output and a scaling by ``diag(r, b sqrt(2 r), 1)``,

    K = [[0, ., .], [b G1 / sqrt(2 r), 0, .], [-S / r, -G2 / (b sqrt(2 r)), 0]],    K <= I,

K Hermitian: an eigenvalue bound instead of a singular-value one, convex in all three weights, 0
inside.  S may be of any size, so that the block shares in the bound: it counts as two layers of
norm ``n = sqrt(r)``, as a module does (``module_ball.py``), G1 and G2 following n and S its square.
A larger r, with its multipliers, never excludes weights: K becomes its entrywise product with
``[[1, q, q^2], [q, 1, q], [q^2, q, 1]] >= 0``, q < 1 the root of the ratio (I. Schur, 1911).

Convolutions (``kernel_ball.py``) stand on the frequencies of the torus behind a stride, which
shortcut and G1 share: both are placed in one window, and the shortcut is moved by where the window
of G2 begins, so that no phases are left between the three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from ..certificates.torus.block_figures import least_square
from ..errors import UnsupportedModule
from ..networks.layer_spec import LayerSpec
from .admm_state import Matrices
from .kernel_ball import (
    SINGLE,
    KernelBall,
    Pair,
    Spreading,
    Symbols,
    by_loads,
    eigenvalue_excess,
    largest_eigenvalue,
    split,
    symbols_of,
)
from .residual_ball import Taps, from_diagonal, on_diagonal, one_window, places_of
from .terms import Ball, LayerBall

_POINT = KernelBall((1, 1), (1, 1))
# To which the least bound of a block is found, relatively.
_FOUND = 1e-11
_LONGEST = 2.0
# Tolerance for kernels: what a coarse grid of frequencies leaves is more, and steps are dear.
_COARSE = 1e-3


@dataclass(frozen=True)
class ShortcutBall(Ball):
    """The weights of G1, G2 and S, in this order, by what their block may grow.

    Attributes:
        window: of the taps of G1 and S, on the torus of the outputs.
        taps: of G1 and of S in it.
        back: the ball of G2 by itself.
        balance: b, with which G1 counts, and G2 by its inverse.
        groups: of channels, of G1, G2 and S; kernels stand in blocks on the diagonal.
    """

    window: KernelBall = _POINT
    taps: tuple[Taps, Taps] = (Taps(), Taps())
    back: KernelBall = _POINT
    balance: float = 1.0
    groups: tuple[int, int, int] = (1, 1, 1)
    layers = 3
    degrees = (1, 1, 2)

    @property
    def factors(self) -> tuple[float, ...]:
        """b, its inverse, and nothing."""
        return self.balance, 1.0 / self.balance, 1.0

    def scaled(self, weights: Matrices, factors: Sequence[float]) -> Matrices:
        """S goes with G2 behind G1: a factor of its own it has none."""
        (first, second, past), (f, g, _) = weights, factors
        return f * first, g * second, f * g * past

    def apart(self) -> tuple[Ball, ...]:
        """None: the three weights stand in one matrix."""
        return ()

    def fitted(self, weights: Matrices) -> ShortcutBall:
        """With the multiplier that is best for these weights."""
        share, square = self._least(weights)
        fits = 0.0 < share < math.inf and 0.0 < square < math.inf
        return replace(self, balance=math.sqrt(share / math.sqrt(square))) if fits else self

    def gain_of(self, weights: Matrices) -> float:
        """The least bound that some multiplier, the same for all channels, proves, computed."""
        return math.sqrt(self._least(weights)[1])

    def norm_of(self, weights: Matrices) -> float:
        """The root of the least r at which ``K <= I``."""
        double = tuple(w.to(torch.float64) for w in weights)

        def excess(log_bound: float) -> float:
            return math.log(self._size(double, math.exp(log_bound)))

        if self._size(double, 1.0) == 0.0:
            return 0.0
        # Of r the entries of K are powers of degree -1/2 and -1: so is its largest eigenvalue.
        start = excess(0.0)
        low, high = sorted((start, 2.0 * start))
        slack = 1e-6 * (1.0 + abs(start))
        low, high = low - slack, high + slack
        while excess(high) > 0.0:
            high += 1.0
        while excess(low) < 0.0:
            low -= 1.0
        found = brentq(excess, low, high, xtol=_FOUND, rtol=_FOUND)
        return math.exp(0.5 * float(found))

    def nearest_to(
        self, anchor: Matrices, radius: float, tol: float, warm: Any = None
    ) -> tuple[Matrices, Any, int]:
        """The nearest weights of norm at most ``radius``, restart data, and steps taken."""
        if self.window.grid != _POINT.grid:
            tol = max(tol, _COARSE)
        bound, dtype = radius**2, torch.float32 if tol >= SINGLE else torch.float64
        goal = tuple(w.to(dtype) for w in anchor)
        near, warm, steps = split(self._spreading(goal, bound), goal, tol, warm)
        found = tuple(w.to(torch.float64) for w in near)
        size = self._size(found, bound)
        return tuple(w / max(1.0, size) for w in found), warm, steps

    @property
    def _coarse(self) -> Pair:
        """The grid of the splitting: fine enough for all kernels."""
        (rows, columns), (others, across) = self.window.coarse, self.back.coarse
        return max(rows, others), max(columns, across)

    def _shares(self, bound: float) -> tuple[float, float, float]:
        """With which the weights stand in K."""
        root = math.sqrt(2.0 * bound)
        return self.balance / root, -1.0 / (self.balance * root), -1.0 / bound

    def _symbols(self, grid: Pair, like: Tensor) -> tuple[Symbols, Symbols]:
        return (
            symbols_of(self.window, grid, like.dtype, like.device),
            symbols_of(self.back, grid, like.dtype, like.device),
        )

    def _parts(self, weights: Matrices, symbols: Sequence[Symbols]) -> tuple[Tensor, ...]:
        """The symbols of all three."""
        first, second, past = map(on_diagonal, weights, self.groups)
        seen, back = symbols
        into, beside = (
            self.window.spread(taps.placed(w, self.window.kernel), seen)
            for taps, w in zip(self.taps, (first, past), strict=True)
        )
        return into, self.back.spread(_as_kernel(second, self.back), back), beside

    def _spread(self, weights: Matrices, shares: Sequence[float], symbols: Any) -> Tensor:
        """K at every frequency."""
        rows = zip(shares, self._parts(weights, symbols), strict=True)
        into, second, past = (share * part for share, part in rows)
        hidden, columns = into.shape[1:]
        size = columns + hidden + second.shape[1]
        whole = into.new_zeros(len(into), size, size)
        whole[:, columns : -len(past[0]), :columns] = into
        whole[:, columns + hidden :, :columns] = past
        whole[:, columns + hidden :, columns : columns + hidden] = second
        return whole + whole.mH

    def _gather(self, whole: Tensor, shares: Sequence[float], symbols: Any, like: Matrices) -> Any:
        """The adjoint, of Hermitian matrices."""
        hidden, out = len(like[0]), len(like[1])
        columns = whole.shape[1] - hidden - out
        into, beside = whole[:, columns:-out, :columns], whole[:, -out:, :columns]
        between = whole[:, -out:, columns:-out]
        whole_first, kernel, whole_past = map(on_diagonal, like, self.groups)
        placed = [
            taps.placed(w, self.window.kernel)
            for taps, w in zip(self.taps, (whole_first, whole_past), strict=True)
        ]
        inner, outer = (
            taps.taken(self.window.gather(part, symbols[0], w))
            for taps, part, w in zip(self.taps, (into, beside), placed, strict=True)
        )
        middle = self.back.gather(between, symbols[1], _as_kernel(kernel, self.back))
        found = map(from_diagonal, (inner, middle, outer), self.groups)
        rows = zip(shares, found, like, strict=True)
        return tuple(2.0 * share * w.reshape(own.shape) for share, w, own in rows)

    def _spreading(self, like: Matrices, bound: float) -> Spreading:
        symbols, shares = self._symbols(self._coarse, like[0]), self._shares(bound)
        # Kernels no longer than this: with 1 or 4 there are twice as many steps.
        size = _LONGEST / (math.sqrt(2.0) * max(map(abs, shares)))
        own = [size * share for share in shares]
        return Spreading(
            lambda weights: self._spread(weights, own, symbols),
            lambda whole: self._gather(whole, own, symbols, like),
            by_loads([2.0 * share**2 for share in own]),
            size * symbols[0].limits,
            eigenvalue_excess,
        )

    def _size(self, weights: Matrices, bound: float) -> float:
        """The largest eigenvalue of K at all frequencies of the torus."""
        symbols, shares = self._symbols(self.window.grid, weights[0]), self._shares(bound)
        entries = sum(len(w) for w in weights[:2]) + weights[0].shape[1] * math.prod(
            self.window.stride
        )
        return largest_eigenvalue(
            symbols, lambda own: self._spread(weights, shares, own), entries**2
        )

    def _least(self, weights: Matrices) -> tuple[float, float]:
        """The best multiplier, and the square of the bound that it proves."""
        double = tuple(w.to("cpu", torch.float64) for w in weights)
        symbols = self._symbols(self.window.grid, double[0])
        limits = symbols[0].limits[:, None, None]
        into, second, past = ((part / limits).numpy() for part in self._parts(double, symbols))
        return least_square(into, second, past)


def _as_kernel(weight: Tensor, ball: KernelBall) -> Tensor:
    return weight.reshape(*weight.shape[:2], *ball.kernel)


def shortcut_ball(balls: Sequence[LayerBall], specs: Sequence[LayerSpec]) -> ShortcutBall:
    """The ball of a block.

    Args:
        balls: of G1, G2 and S by themselves.
        specs: of these layers.

    Raises:
        UnsupportedModule: by name, where G2 strides.
    """
    first, back, past = balls
    if not all(isinstance(ball, KernelBall) for ball in balls):
        return ShortcutBall()
    assert isinstance(first, KernelBall)
    assert isinstance(back, KernelBall)
    assert isinstance(past, KernelBall)
    for spec, ball in zip(specs, (first, back, past), strict=True):
        strides = back.stride != (1, 1) or first.stride != past.stride
        if strides:
            raise UnsupportedModule(
                f"{spec.name}: of residual blocks with a shortcut are trained those whose first "
                f"layer strides as the shortcut does and whose second does not, got "
                f"stride={ball.stride}; such a block is only certified"
            )
    moved = [s * min(own) for s, own in zip(first.stride, places_of(back, 1), strict=True)]
    rows, columns = (
        [p - by for p in own] for own, by in zip(places_of(past, 1), moved, strict=True)
    )
    placed = [(first, places_of(first, 1)), (past, (rows, columns))]
    window, taps = one_window(specs[0].name, placed, (first, back, past))
    own = replace(back, grid=window.grid, groups=1)
    groups = first.groups, back.groups, past.groups
    return ShortcutBall(window, (taps[0], taps[1]), own, groups=groups)
