"""One bound for images of every size, from a grid of frequencies.

Whatever the size, a chain of convolutions without stride stands on a torus, whose frequencies are
some of all.  With a variable for every activation, and a second one where slopes fall below 0, the
matrix inequality is ``D + E(f) >= 0``: D is diagonal and the same for all frequencies, E holds the
symbols between one activation and the next, each once.  Signs that alternate from layer to layer
turn E into -E, so the inequality says ``|x^H E(f) x| <= x^H D x``.  As a function of f, up to
phases of its rows, ``x^H E(f) x`` is a trigonometric polynomial of the degrees ``(d_1, d_2)`` of
the widest kernel; one of degree d that is at most 1 at M equidistant points, ``M > 2 d``, is at
most ``1 / cos(pi d / M)`` between them (Ehlich and Zeller, 1964).  So if the inequality holds on
the grid with every symbol ``1 / (cos(pi d_1 / M) cos(pi d_2 / M))`` times as large, it holds
everywhere.

NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...float64 import U
from ...networks.network import Network
from .read import whole_chain
from .reading import NotShiftInvariant
from .steps import Correlation, Pair, Pointwise, Step, TorusChain

# Points per side of the grid for every degree: with 128 a symbol grows by .06 %.
_POINTS = 128


def every_size_chain(network: Network, side: int | None = None) -> TorusChain:
    """The chain on a grid whose bound holds for images of every size.

    Args:
        network: of convolutions without stride, and activations, up to its output.
        side: points per side of the grid; 128 for every degree where not given.

    Raises:
        NotShiftInvariant: by name, for a network whose layers are not of that kind, or a grid that
            is too coarse for its kernels.
    """
    chain = whole_chain(network)
    _check(chain)
    degrees = _degrees(chain.steps, chain.channels)
    side = _POINTS * max(1, *degrees) if side is None else side
    if not all(2 * d < side for d in degrees):
        raise NotShiftInvariant(
            f"every_size: {side} points per side are too few for kernels of degree {max(degrees)}"
        )
    # Cosines are within some ulps, and what is a little larger proves all the same.
    factor = math.prod(1.0 / math.cos(math.pi * d / side) for d in degrees) * (1.0 + 1e-14)
    grid = (side if degrees[0] else 1, side if degrees[1] else 1)
    steps = tuple(s for run in _runs(chain.steps, chain.channels) for s in _enlarged(run, factor))
    return replace(chain, steps=steps, grid=grid)


def side_of(chain: TorusChain) -> int:
    """Points per side of the grid of such a chain."""
    return max(chain.grid)


def _check(chain: TorusChain) -> None:
    """Raise :class:`NotShiftInvariant` unless one layer follows the other without stride."""
    width = chain.channels
    for step in chain.steps:
        if isinstance(step, Correlation):
            width = len(step.kernel)
            if step.stride != (1, 1):
                raise NotShiftInvariant(
                    f"structure: 'every_size' wants strides of 1, got {step.stride}"
                )
        elif len(step.rows) != width:
            raise NotShiftInvariant(
                f"structure: 'every_size' wants one layer after the other, but values pass a "
                f"{step.kind} by"
            )


def _runs(steps: Sequence[Step], channels: int) -> list[list[Step]]:
    """The correlations up to an activation, with it; the identity where there are none."""
    runs: list[list[Step]] = [[]]
    width = channels
    for step in steps:
        if isinstance(step, Pointwise) and not runs[-1]:
            runs[-1].append(Correlation(np.eye(width)[:, :, None, None]))
        runs[-1].append(step)
        if isinstance(step, Pointwise):
            runs.append([])
        else:
            width = len(step.kernel)
    return runs if runs[-1] else runs[:-1]


def _degrees(steps: Sequence[Step], channels: int) -> Pair:
    """Half the reach of all correlations between two activations, the widest of them."""
    found = [0, 0]
    for run in _runs(steps, channels):
        for axis in (0, 1):
            reach = sum(s.kernel.shape[2 + axis] - 1 for s in run if isinstance(s, Correlation))
            found[axis] = max(found[axis], (reach + 1) // 2)
    return found[0], found[1]


def _enlarged(run: Sequence[Step], factor: float) -> list[Step]:
    """A run whose last correlation is so many times as large."""
    last = max(k for k, step in enumerate(run) if isinstance(step, Correlation))
    found = [*run]
    step = found[last]
    assert isinstance(step, Correlation)
    kernel = factor * step.kernel
    error = factor * step.error + 2.0 * U * float(np.linalg.norm(kernel))
    found[last] = replace(step, kernel=kernel, error=error * (1.0 + 1e-12))
    return found
