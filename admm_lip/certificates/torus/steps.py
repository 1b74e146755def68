"""A convolutional network on a torus: correlations and activations, one block per frequency.

Put on a torus that is large enough for no kernel to reach around it, a zero-padded network is the
periodic one with every neuron outside the images at 0.  A slope range that contains 0 allows that,
so what holds for the periodic network, whose multipliers are constant over space, holds for the
padded one: its matrix inequality is a principal submatrix.  Where no activation stands between two
layers nothing sets the outside to 0; where the second looks there, one is put between them that
does, with slopes in [0, 1] (``reading.zeroed``).

The state of a step is every value that is still needed, stacked by channels.  NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...float64 import SQUARED_AWAY, U
from ...networks.layers import Array, Shape
from ...networks.network import Network

Pair = tuple[int, int]
# Kinds of activations that no layer is of (``reading.zeroed``, ``measure.py``).
ZERO_PADDING, INPUT_NORM = "zero_padding", "input_norm"
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Correlation:
    """``y[o, q] = sum_{i, d} kernel[o, i, d] x[i, stride q + d - start]``.

    Attributes:
        kernel: float64 ``(out, in, rows, columns)``.
        start: how many rows and columns the window begins before its place.
        stride: rows and columns from one place to the next.
        error: bound on the Frobenius norm of the kernel's distance from the exact one.
    """

    kernel: Array
    start: Pair = (0, 0)
    stride: Pair = (1, 1)
    error: float = 0.0


@dataclass(frozen=True, eq=False)
class Pointwise:
    """An activation on some of the channels, with its slope range for each; the others pass.

    Attributes:
        kind: of the activation, as a certificate states it; two are no layer's.
        rows: which channels, in the order of the multipliers.
        alpha: least slope, at most 0.
        beta: greatest slope, at least 0.
    """

    kind: str
    rows: Rows
    alpha: Array
    beta: Array

    def least(self, width: int) -> Array:
        """The least slope of each of so many channels, 1 for those that pass."""
        found = np.ones(width)
        found[self.rows] = self.alpha
        return found


Step = Correlation | Pointwise


@dataclass(frozen=True, eq=False)
class TorusChain:
    """The part of a network that is taken frequency by frequency, and the rest of it.

    Attributes:
        steps: from the input on.
        channels: of the input.
        grid: rows and columns of the torus under the input.
        image: shape of the value after the last step, which stands in a corner of its torus.
        head: what follows, a network of that value; ``None`` where nothing does.
        phases: rows and columns of the input that stand at one place, as channels (``phases.py``).
    """

    steps: tuple[Step, ...]
    channels: int
    grid: Pair
    image: Shape
    head: Network | None
    phases: Pair = (1, 1)

    @property
    def activations(self) -> list[Pointwise]:
        """The steps that have multipliers."""
        return [step for step in self.steps if isinstance(step, Pointwise)]

    @property
    def last_grid(self) -> Pair:
        """Rows and columns of the torus after the last step."""
        rows, columns = self.grid
        for step in self.steps:
            if isinstance(step, Correlation):
                rows, columns = rows // step.stride[0], columns // step.stride[1]
        return rows, columns


Index = npt.NDArray[np.int64]


def half_of(grid: Pair) -> tuple[Index, Array]:
    """One of every two opposite frequencies of a torus, and for how many each stands.

    Returns:
        ``(frequencies, 2)`` and ``(frequencies,)``, of 1 and 2.
    """
    rows, columns = grid
    all_of = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    flat = all_of.reshape(-1, 2)
    place = flat[:, 0] * columns + flat[:, 1]
    opposite = (-flat[:, 0] % rows) * columns + (-flat[:, 1] % columns)
    kept = place <= opposite
    return flat[kept], np.where(place == opposite, 1.0, 2.0)[kept]


def above(frequencies: Index, grid: Pair, stride: Pair) -> Index:
    """The frequencies of the finer torus that fold onto these, ``prod(stride)`` to each in turn."""
    shifts = np.stack(np.meshgrid(*(np.arange(s) for s in stride), indexing="ij"), axis=-1)
    found: Index = frequencies[:, None, :] + shifts.reshape(1, -1, 2) * np.array(grid)
    return found.reshape(-1, 2)


def levels_of(chain: TorusChain, last: Index) -> list[tuple[Index, Pair]]:
    """For every step the frequencies of its input and their torus, from those after the last."""
    grid, frequencies, found = chain.last_grid, last, []
    for step in reversed(chain.steps):
        if isinstance(step, Correlation):
            frequencies = above(frequencies, grid, step.stride)
            grid = (grid[0] * step.stride[0], grid[1] * step.stride[1])
        found.append((frequencies, grid))
    return found[::-1]


def waves(
    frequencies: Sequence[int] | Index, places: Index, period: int
) -> npt.NDArray[np.complex128]:
    """``exp(2 pi i f p / period)``; the argument is reduced in integers, so its error is some ulps.

    Returns:
        ``(frequencies, places)``; each entry within ``WAVE_ERROR`` of the exact one.
    """
    turns = np.outer(np.asarray(frequencies), places) % period
    table = np.exp(2j * np.pi * np.arange(period) / period)
    found: npt.NDArray[np.complex128] = table[turns]
    return found


# 2 pi k / n carries three roundings of a number below 6.3, and cosine and sine one ulp each.
WAVE_ERROR = 32.0 * U


def symbol(step: Correlation, frequencies: Index, grid: Pair) -> npt.NDArray[np.complex128]:
    """The matrices ``W(f)[o, i] = sum_d K[o, i, d] exp(2 pi i f (d - start) / grid)``."""
    out, channels, rows, columns = step.kernel.shape
    down = waves(frequencies[:, 0], np.arange(rows) - step.start[0], grid[0])
    across = waves(frequencies[:, 1], np.arange(columns) - step.start[1], grid[1])
    taps = (down[:, :, None] * across[:, None, :]).reshape(len(frequencies), -1)
    matrices = step.kernel.reshape(out * channels, -1).astype(complex) @ taps.T
    return np.ascontiguousarray(matrices.T).reshape(len(frequencies), out, channels)


def symbol_error(step: Correlation) -> float:
    """Bound on the Frobenius norm of a symbol's distance from the exact one.

    A tap's wave is a product of two, within ``2.1`` of the error of one and ``8 u``; the sum of n
    complex terms adds ``(n + 4) u`` of the sum of absolute values twice over.
    """
    taps = step.kernel.shape[2] * step.kernel.shape[3]
    size = float(np.sqrt((np.abs(step.kernel).sum(axis=(2, 3)) ** 2).sum())) + SQUARED_AWAY
    rounding = (2.1 * WAVE_ERROR + (2.0 * taps + 16.0) * U) * size
    return float(1.01 * (rounding + step.error * np.sqrt(taps)))
