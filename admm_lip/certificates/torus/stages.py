"""A torus chain and its head as stages: what is linear, then what has multipliers.

Arrays are ``(frequencies, aliases, ...)``: one entry per frequency after the last step, in which
the ``aliases`` that strides fold onto it stand side by side.  A head is one frequency without any.

Signals v and z of an activation are scaled by the roots of the multipliers, so that derivatives are
those by relative changes of t.  NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...networks.layers import Array
from ..claim_matrices import Matrices
from .covariance import adjoint
from .steps import Correlation, Index, Pointwise, TorusChain, half_of, levels_of, symbol


@dataclass(frozen=True, eq=False)
class Linear:
    """``x_+ = sum_a w_a x_a`` over the ``fold`` aliases that become one.

    Attributes:
        w: ``(frequencies, aliases, out, in)``.
        fold: how many aliases in a row become one.
    """

    w: Any
    fold: int

    def forward(self, p: Any) -> Any:
        """P behind it."""
        each = self.w @ p @ adjoint(self.w)
        if self.fold == 1:
            return each
        return each.reshape(len(each), -1, self.fold, *each.shape[2:]).sum(axis=2)

    def back(self, n: Any) -> Any:
        """``W^H n``, of ``(frequencies, aliases, out, columns)``."""
        if self.fold == 1:
            return adjoint(self.w) @ n
        f, aliases, out, inner = self.w.shape
        w = self.w.reshape(f, -1, self.fold, out, inner)
        return (adjoint(w) @ n[:, :, None]).reshape(f, aliases, inner, -1)

    def around(self, inner: Any) -> Any:
        """``W^H inner W``, of a Hermitian matrix over all aliases."""
        half = flipped(self.back(inner), inner.shape[1])
        return self.back(half)


def flipped(matrix: Any, aliases: int) -> Any:
    """Conjugate transpose of ``(frequencies, aliases, rows, columns)``, columns of ``aliases``."""
    f = len(matrix)
    flat = matrix.reshape(f, -1, matrix.shape[-1]).conj().swapaxes(1, 2)
    return flat.reshape(f, aliases, -1, flat.shape[-1])


def then(first: Linear, second: Linear) -> Linear:
    """Both in one."""
    w = second.w
    if first.fold > 1:
        w = np.repeat(w, first.fold, axis=1)
    return Linear(w @ first.w, first.fold * second.fold)


@dataclass(frozen=True, eq=False)
class Activation:
    """Channels with multipliers.

    Attributes:
        rows: those channels.
        least: least slopes of all channels, 1 for those that pass.
        span: greatest minus least slope of each of ``rows``.
        kept: channels whose least slope is not 0: of the others only what is behind it counts.
    """

    rows: Any
    least: Array
    span: Array
    kept: Any


@dataclass(frozen=True, eq=False)
class Stage:
    """Linear maps (``None``: none), then an activation (``None``: the output)."""

    linear: Linear | None
    activation: Activation | None


def torus_stages(chain: TorusChain, last: Index) -> list[Stage]:
    """The stages on the torus, at frequencies after the last step; the last one has no activation.

    The input's covariance is the identity at every alias.
    """
    found: list[Stage] = []
    linear: Linear | None = None
    width = chain.channels
    for step, (frequencies, grid) in zip(chain.steps, levels_of(chain, last), strict=True):
        if isinstance(step, Correlation):
            fold = step.stride[0] * step.stride[1]
            w = symbol(step, frequencies, grid) / math.sqrt(fold)
            own = Linear(w.reshape(len(last), -1, *w.shape[1:]), fold)
            linear, width = own if linear is None else then(linear, own), len(step.kernel)
        else:
            found.append(Stage(linear, activation(step, width)))
            linear = None
    return [*found, Stage(linear, None)]


def activation(step: Pointwise, width: int) -> Activation:
    """An activation of a state of so many channels."""
    return _activation(step.rows, step.least(width), step.beta - step.alpha)


def _activation(rows: Any, least: Array, span: Array) -> Activation:
    return Activation(rows, least, span, np.flatnonzero(least))


def head_stages(head: Matrices) -> list[Stage]:
    """The stages behind the head's first matrix."""
    found, linear = [], None
    for slopes, weight in zip(head.slopes, head.weights[1:], strict=True):
        rows = np.arange(len(slopes.alpha))
        found.append(Stage(linear, _activation(rows, slopes.alpha, slopes.beta - slopes.alpha)))
        linear = Linear(weight[None, None], 1)
    return [*found, Stage(linear, None)]


def ports(chain: TorusChain, first: Array, last: Index) -> Any:
    """The head's first matrix at every frequency, ``(frequencies, outputs, channels)``."""
    seen = symbol(Correlation(first.reshape(-1, *chain.image)), last, chain.last_grid)
    return seen / math.sqrt(math.prod(chain.last_grid))


def aliases_of(chain: TorusChain) -> int:
    """How many frequencies of the input's torus fold onto one after the last step."""
    return math.prod(chain.grid) // math.prod(chain.last_grid)


def parts_of(chain: TorusChain, entries: int, places: Any = None) -> list[tuple[Index, Array]]:
    """Half the frequencies after the last step, with their weights, in parts of so many entries.

    Args:
        chain: that has them.
        entries: of the largest arrays of a part.
        places: some of them; all where not given.
    """
    frequencies, weights = half_of(chain.last_grid)
    if places is not None:
        frequencies, weights = frequencies[places], weights[places]
    widths = [chain.channels, *(_width(step) for step in chain.steps)]
    rows = max(1, entries // (aliases_of(chain) * max(widths)) ** 2)
    cuts: Sequence[slice] = [slice(k, k + rows) for k in range(0, len(weights), rows)]
    return [(frequencies[cut], weights[cut]) for cut in cuts]


def _width(step: Correlation | Pointwise) -> int:
    return max(step.kernel.shape[:2]) if isinstance(step, Correlation) else len(step.rows)
