"""The ball of a residual block ``y = x + G2 phi(G1 x)`` that grows nothing by more than r.

For slopes in [0, 1] the matrix inequality of a gain r, the multipliers gauged into the weights, is

    [[r^2 I, -G1'], [-G1, 2 I]] - [I G2]' [I G2] >= 0,

and by a Schur complement, with ``s^2 = r^2 - 1 > 0``, a spectral ball in both weights:

    ||[G2; (G1' + G2) / s]|| <= sqrt(2).

For r near 1 it holds G2 near ``-G1'``: a tied block (``networks/tied.py``). Convolutions on one
grid stand there frequency by frequency (``kernel_ball.py``), the kernel of G1 transposed and read
backwards, so that a tap of it meets one tap of G2: where both kernels have that tap the splitting's
step for the weights is two equations in two unknowns. With multipliers ``b^2`` the weights count as
``b G1`` and ``G2 / b``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..certificates.torus.block_figures import least_square
from ..errors import UnsupportedModule
from ..networks.layer_spec import LayerSpec
from .admm_state import Matrices
from .kernel_ball import (
    PENALTY,
    SINGLE,
    KernelBall,
    Pair,
    Spreading,
    Symbols,
    largest_norm,
    split,
    symbols_of,
)
from .terms import Ball, LayerBall

# Rows and columns.
Places = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Taps:
    """Where the taps of a kernel stand in the window of both.

    Attributes:
        kernel: its rows and columns.
        rows, columns: of the window, for each row and column of the kernel.
    """

    kernel: Pair = (1, 1)
    rows: tuple[int, ...] = (0,)
    columns: tuple[int, ...] = (0,)

    def placed(self, weight: Tensor, window: Pair) -> Tensor:
        """A kernel ``(a, b, *taps)`` in the window, zeros elsewhere."""
        full = weight.new_zeros(*weight.shape[:2], *window)
        full[(..., *self._at)] = weight.reshape(*weight.shape[:2], *self.kernel)
        return full

    def taken(self, full: Tensor) -> Tensor:
        """What :meth:`placed` has placed."""
        return full[(..., *self._at)]

    @property
    def _at(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.rows)[:, None], torch.tensor(self.columns)


@dataclass(frozen=True)
class ResidualBall(Ball):
    """Two layers by what their block may grow.

    Attributes:
        window: of the taps of both, G1's read backwards, on the torus of their grid.
        taps: of G1 and of G2 in it.
        gain: r, above 1.
        balance: b.
        radius: of the ball, 1 less the rounding of weights.
        sign: of what the block adds: -1 where G2 is the negative of the second weight.
        groups: of channels, of G1 and of G2; kernels stand in blocks on the diagonal.
    """

    window: KernelBall
    taps: tuple[Taps, Taps]
    gain: float
    balance: float = 1.0
    radius: float = 1.0
    sign: float = 1.0
    groups: Pair = (1, 1)
    layers = 2
    shares = False
    grows = True

    def norm_of(self, weights: Matrices) -> float:
        """The norm of the module's docstring over the root of 2: at most 1 in the ball."""
        weights = self._placed(tuple(w.to(torch.float64) for w in weights))
        entries = 2 * math.prod(weights[1].shape[:2])
        symbols = symbols_of(self.window, self.window.grid, torch.float64, weights[0].device)
        found = largest_norm((symbols,), lambda own: self._spread(weights, *own), entries)
        return found / math.sqrt(2.0)

    def gain_of(self, weights: Matrices) -> float:
        """The least gain that some multiplier, the same for all channels, proves, computed."""
        return math.sqrt(self._least(weights)[1])

    def apart(self) -> tuple[Ball, ...]:
        """None: the two weights stand in one matrix."""
        return ()

    def with_gain(self, gain: float) -> ResidualBall:
        """The same for another r."""
        return replace(self, gain=gain)

    def fitted(self, weights: Matrices) -> ResidualBall:
        """With the multiplier that is best for these weights."""
        return replace(self, balance=math.sqrt(self._least(weights)[0]))

    def fresh(self, weights: Matrices) -> Matrices:
        """The second weight minus the adjoint of the first, as far as it has its taps."""
        first, second = weights
        moved = from_diagonal(self.taps[1].taken(self._placed(weights)[0]), self.groups[1])
        return first, -self.sign * moved.reshape(second.shape)

    def begun(self, weights: Matrices, fills: bool) -> tuple[float, ...]:
        """The factors that bring the weights into the ball, or to its edge."""
        ball = self.fitted(weights)
        size = ball.norm_of(weights)
        share = self.radius / size if size > self.radius or (fills and size > 0.0) else 1.0
        return share * ball.balance, share / ball.balance

    def nearest_to(
        self, anchor: Matrices, radius: float, tol: float, warm: Any = None
    ) -> tuple[Matrices, Any, int]:
        """The nearest weights in the ball, whatever the share of the others is."""
        dtype = torch.float32 if tol >= SINGLE else torch.float64
        reach = math.sqrt(2.0) * self.radius
        goal = self._placed(tuple((w / reach).to(dtype) for w in anchor))
        near, warm, steps = split(self._spreading(goal), goal, tol, warm)
        first, second = (reach * w.to(torch.float64) for w in near)
        inner = from_diagonal(self.taps[0].taken(first).transpose(0, 1), self.groups[0])
        outer = from_diagonal(self.taps[1].taken(second), self.groups[1])
        found = inner.reshape(anchor[0].shape), self.sign * outer.reshape(anchor[1].shape)
        size = self.norm_of(found)
        share = self.radius / size if size > self.radius else 1.0
        return tuple(share * w for w in found), warm, steps

    def _placed(self, weights: Matrices) -> Matrices:
        """Both kernels in the window, channels of the block first."""
        first, second = map(on_diagonal, weights, self.groups)
        kernels = (first.transpose(0, 1), self.sign * second)
        return tuple(
            t.placed(w, self.window.kernel) for t, w in zip(self.taps, kernels, strict=True)
        )

    @property
    def _span(self) -> float:
        return math.sqrt(self.gain**2 - 1.0)

    def _spread(self, kernels: Matrices, symbols: Symbols) -> Tensor:
        """``[G2 / b; (b G1' + G2 / b) / s]`` at every frequency."""
        first, second = (self.window.spread(w, symbols) for w in kernels)
        second = second / self.balance
        return torch.cat((second, (self.balance * first + second) / self._span), dim=1)

    def _gather(self, scaled: Tensor, symbols: Symbols, like: Matrices) -> Matrices:
        """The adjoint, at the taps that there are."""
        top, low = scaled.chunk(2, dim=1)
        low = low / self._span
        first = self.balance * self.window.gather(low, symbols, like[0])
        second = self.window.gather(top + low, symbols, like[1]) / self.balance
        return tuple(w * m for w, m in zip((first, second), self._masks(like[0]), strict=True))

    def _masks(self, like: Tensor) -> Matrices:
        """1 at the taps of each kernel."""
        channels, hidden = like.shape[:2] if max(self.groups) > 1 else (1, 1)
        one = like.new_ones
        own, other = (t.kernel for t in self.taps)
        first = on_diagonal(one(hidden, channels // self.groups[0], *own), self.groups[0])
        second = on_diagonal(one(channels, hidden // self.groups[1], *other), self.groups[1])
        kernels = zip(self.taps, (first.transpose(0, 1), second), strict=True)
        return tuple(t.placed(w, self.window.kernel) for t, w in kernels)

    def _spreading(self, like: Matrices) -> Spreading:
        symbols = symbols_of(self.window, self.window.coarse, like[0].dtype, like[0].device)
        first, second = self._masks(like[0])
        # All rows by s / r, so that kernels are not made longer: half the steps, or fewer.
        size = self._span / self.gain
        outer, inner = PENALTY * size**2, PENALTY / self.gain**2
        own = 1.0 + inner * self.balance**2 * first
        other = 1.0 + (outer + inner) / self.balance**2 * second
        both = inner * first * second
        det = own * other - both**2

        def solve(rows: Matrices) -> Matrices:
            a, b = rows
            return (other * a - both * b) / det, (own * b - both * a) / det

        return Spreading(
            lambda kernels: size * self._spread(kernels, symbols),
            lambda scaled: self._gather(size * scaled, symbols, like),
            solve,
            size * symbols.limits,
        )

    def _least(self, weights: Matrices) -> tuple[float, float]:
        """The best ``b^2``, and ``r^2``."""
        kernels = self._placed(tuple(w.to("cpu", torch.float64) for w in weights))
        symbols = symbols_of(self.window, self.window.grid, torch.float64, kernels[0].device)
        first, second = (
            (self.window.spread(w, symbols) / symbols.limits[:, None, None]).numpy()
            for w in kernels
        )
        return least_square(first.conj().swapaxes(1, 2), second)


def residual_ball(
    balls: Sequence[LayerBall], specs: Sequence[LayerSpec], radius: float
) -> ResidualBall:
    """The ball of a block, of gain 2 until it is told another.

    Args:
        balls: of its layers, by themselves.
        specs: of both layers.
        radius: of the ball.

    Raises:
        UnsupportedModule: by name, for strides.
    """
    first, second = balls
    if not isinstance(first, KernelBall) or not isinstance(second, KernelBall):
        return ResidualBall(KernelBall((1, 1), (1, 1)), (Taps(), Taps()), 2.0, radius=radius)
    for spec, ball in zip(specs, (first, second), strict=True):
        if ball.stride != (1, 1):
            raise UnsupportedModule(
                f"{spec.name}: residual blocks are trained without strides, got "
                f"stride={ball.stride}; such a block is only certified"
            )
    placed = [(first, places_of(first, -1)), (second, places_of(second, 1))]
    window, taps = one_window(specs[0].name, placed, (first, second))
    groups = first.groups, second.groups
    return ResidualBall(window, (taps[0], taps[1]), 2.0, radius=radius, groups=groups)


def on_diagonal(weight: Tensor, groups: int) -> Tensor:
    """A kernel ``(out, in / groups, ...)`` as one of all channels, zero between the groups."""
    if groups == 1:
        return weight
    out, width, *rest = weight.shape
    full = weight.new_zeros(groups, out // groups, groups, width, *rest)
    each = torch.arange(groups)
    full[each, :, each] = weight.reshape(groups, out // groups, width, *rest)
    return full.reshape(out, groups * width, *rest)


def from_diagonal(kernel: Tensor, groups: int) -> Tensor:
    """What :func:`on_diagonal` has placed."""
    if groups == 1:
        return kernel
    out, channels, *rest = kernel.shape
    each = torch.arange(groups)
    blocks = kernel.reshape(groups, out // groups, groups, channels // groups, *rest)
    return blocks[each, :, each].reshape(out, channels // groups, *rest)


def one_window(
    name: str, placed: Sequence[tuple[KernelBall, Places]], balls: Sequence[KernelBall]
) -> tuple[KernelBall, list[Taps]]:
    """The window of several kernels, and where the taps of each stand in it.

    Args:
        name: of the block's first layer.
        placed: kernels of one stride, and where their taps read.
        balls: of all layers of the block, whose torus is the window's.

    Raises:
        UnsupportedModule: by name, where kernels that are padded around need another torus.
    """
    axes = [[p for _, own in placed for p in own[axis]] for axis in (0, 1)]
    least, size = [min(own) for own in axes], [max(own) - min(own) + 1 for own in axes]
    taps = [
        Taps(
            ball.kernel,
            *(tuple(p - low for p in own) for own, low in zip(place, least, strict=True)),
        )
        for ball, place in placed
    ]
    stride = placed[0][0].stride
    rows, columns = (
        max(*(ball.grid[k] for ball in balls), (size[k] - 1) // stride[k] + 1) for k in (0, 1)
    )
    for k, side in enumerate((rows, columns)):
        own = tuple(ball.grid[k] for ball in balls)
        if any(ball.wraps[k] for ball in balls) and {*own, side} != {own[0]}:
            raise UnsupportedModule(
                f"{name}: pads around, so that its block stands on the image itself, got {own} "
                f"places for its kernels, which together span {size[k]}; pad all around"
            )
    return KernelBall((size[0], size[1]), (rows, columns), stride), taps


def places_of(ball: KernelBall, sign: int) -> Places:
    """Where the taps of a kernel read, rows and columns; backwards by the sign -1."""
    rows, columns = (
        [sign * (d * k - first) for k in range(n)]
        for d, n, first in zip(ball.dilation, ball.kernel, ball.start, strict=True)
    )
    return rows, columns
