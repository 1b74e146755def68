"""Multipliers per channel and phase in front of strides: the same chain, its entries moved.

Where strides whose product is R are still ahead, the network commutes with shifts by R alone, so
multipliers may differ from one phase, a place modulo R, to the next.  With a state's places taken
apart, ``X[(c, a), q] = x[c, p q + a]``, a phase is a channel: X has ``p`` times less rows and
columns, and nothing but its order has changed.  A correlation from phases p to phases p' holds

    Y[(o, b), q] = sum_d K[o, :, d] x[:, s (p' q + b) + d - start],
    s b + d - start = p m + a:   the entry K[o, i, d] at [(o, b), (i, a), m],   stride s p' / p.

What lies outside the image is 0 in x where it is 0 in X, entry for entry: what is proven for the
periodic chain holds for the padded one as before (``steps.py``).  Behind the last stride, and so at
a head, there is one phase.  NumPy only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...errors import CertificateError
from ...networks.layers import Array
from ..document import MOST_PHASES
from .steps import Correlation, Pair, Pointwise, TorusChain

# Entries of a kernel beyond which nobody's phases are looked at.
_LARGEST = 2**25
# Products of a step of Newton's method, about, up to which phases are told apart.
_PRODUCTS = 1e10


def in_phases(chain: TorusChain, phases: int) -> TorusChain:
    """The chain with its places taken apart where strides are ahead.

    Args:
        chain: of a network, not measured yet.
        phases: most of them along rows and columns; each step has the greatest common divisor of
            that and of the product of the strides ahead.

    Raises:
        CertificateError: for phases that do not divide the product of strides, or too many.
    """
    if phases == 1:
        return chain
    every = _strides(chain)
    if math.lcm(*every) % phases:
        raise CertificateError(
            f"phases: expected a divisor of the strides in front of the switch, {every[0]} by "
            f"{every[1]} in all, got {phases}"
        )
    levels = _levels(chain, phases)
    first, steps = levels[0], list[Correlation | Pointwise]()
    for step, (before, behind) in zip(chain.steps, itertools.pairwise(levels), strict=True):
        if isinstance(step, Correlation):
            steps.append(_moved(step, before, behind))
        else:
            steps.append(_each(step, math.prod(before)))
    grid = (chain.grid[0] // first[0], chain.grid[1] // first[1])
    channels = chain.channels * math.prod(first)
    return replace(chain, steps=tuple(steps), channels=channels, grid=grid, phases=first)


def phases_of(chain: TorusChain, phases: int) -> list[Pair]:
    """Of every activation, the phases along rows and columns."""
    pairs = zip(chain.steps, _levels(chain, phases), strict=False)
    return [found for step, found in pairs if isinstance(step, Pointwise)]


def affordable(chain: TorusChain) -> int:
    """The most phases whose multipliers can be sought in little time; 1 where there are no more.

    In front of a head they gain some parts in a thousand where all phases meet as many taps of the
    kernels in strides: 1 as well.
    """
    whole, found = math.lcm(*_strides(chain)), 1
    if chain.head is not None and all(_is_even(step) for step in chain.steps):
        return 1
    for phases in range(2, min(whole, MOST_PHASES) + 1):
        more = whole % phases == 0 and phases_of(chain, phases) != phases_of(chain, found)
        if more and _products(chain, phases) <= _PRODUCTS:
            found = phases
    return found


def _is_even(step: Correlation | Pointwise) -> bool:
    """Whether strides divide a kernel."""
    if isinstance(step, Pointwise):
        return True
    sizes = step.kernel.shape[2:]
    return not any(size % stride for size, stride in zip(sizes, step.stride, strict=True))


def repeated(multiplier: Sequence[Array], chain: TorusChain) -> list[Array]:
    """Multipliers per channel as those of all its phases, which prove the same.

    Args:
        multiplier: per channel of the chain's activations; what follows is left as it is.
        chain: in phases.
    """
    own = len(chain.activations)
    alike = zip(multiplier, chain.activations, strict=False)
    return [
        *(np.repeat(t, len(act.rows) // len(t)) for t, act in alike),
        *multiplier[own:],
    ]


def _strides(chain: TorusChain) -> Pair:
    (rows, columns), last = chain.grid, chain.last_grid
    return rows // last[0], columns // last[1]


def _levels(chain: TorusChain, phases: int) -> list[Pair]:
    """The phases of the input, and behind every step."""
    rows, columns = _strides(chain)
    found = [(math.gcd(phases, rows), math.gcd(phases, columns))]
    for step in chain.steps:
        if isinstance(step, Correlation):
            rows, columns = rows // step.stride[0], columns // step.stride[1]
        found.append((math.gcd(phases, rows), math.gcd(phases, columns)))
    return found


def _products(chain: TorusChain, phases: int) -> float:
    """Products of numbers, about, in a step of Newton's method: every state with all signals."""
    (rows, columns), width, total, signals = chain.grid, chain.channels, 0.0, 0.0
    for step, found in zip(chain.steps, _levels(chain, phases)[1:], strict=True):
        apart = float(math.prod(found))
        if isinstance(step, Correlation):
            rows, columns = rows // step.stride[0], columns // step.stride[1]
            width = len(step.kernel)
        else:
            signals += len(step.rows) * apart
            total += rows * columns * width**2 * apart
    return total * signals


def _each(step: Pointwise, apart: int) -> Pointwise:
    """An activation of channels that are so many each."""
    rows = (step.rows[:, None] * apart + np.arange(apart)).ravel()
    alpha, beta = np.repeat(step.alpha, apart), np.repeat(step.beta, apart)
    return replace(step, rows=rows, alpha=alpha, beta=beta)


def _moved(step: Correlation, before: Pair, behind: Pair) -> Correlation:
    """A correlation from phases to phases, by the module's docstring."""
    out, channels = step.kernel.shape[:2]
    axes = [_places(step, axis, before[axis], behind[axis]) for axis in (0, 1)]
    starts = [max(0, *(-m for *_, m, _ in places)) for places in axes]
    sizes = [
        start + 1 + max(0, *(m for *_, m, _ in places))
        for start, places in zip(starts, axes, strict=True)
    ]
    apart = (out * math.prod(behind), channels * math.prod(before))
    if math.prod((*apart, *sizes)) > _LARGEST:
        raise CertificateError(
            f"phases: expected kernels of at most {_LARGEST} entries, got {apart} channels; "
            "certify with fewer phases"
        )
    kernel = np.zeros((out, *behind, channels, *before, *sizes))
    for b0, d0, m0, a0 in axes[0]:
        for b1, d1, m1, a1 in axes[1]:
            kernel[:, b0, b1, :, a0, a1, m0 + starts[0], m1 + starts[1]] = step.kernel[..., d0, d1]
    stride = (
        step.stride[0] * behind[0] // before[0],
        step.stride[1] * behind[1] // before[1],
    )
    # Every phase that is made has the whole kernel, with all of its error.
    error = step.error * math.sqrt(math.prod(behind)) * (1.0 + 1e-15)
    return Correlation(kernel.reshape(*apart, *sizes), (starts[0], starts[1]), stride, error)


def _places(step: Correlation, axis: int, before: int, behind: int) -> list[tuple[int, ...]]:
    """``(b, d, m, a)`` of every phase that is made and every tap, along rows or columns."""
    taps, stride, start = step.kernel.shape[2 + axis], step.stride[axis], step.start[axis]
    return [
        (b, d, *divmod(stride * b + d - start, before)) for b in range(behind) for d in range(taps)
    ]
