"""Chains of equal widths side by side, and the certification LMI of each, as dense matrices.

The symbols are those of ``lmi/lmi_operator.py``.  Every array has a leading dimension, the chain,
so that one call does for all of them what is too little work for a call each.  Products with U and
V are taken layer by layer, equal layers in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np

from ..lmi.block_cholesky import block_slices
from .batched import Array, Mask


class Run(NamedTuple):
    """Consecutive layers of equal shape: where they read and write, and their matrices.

    Attributes:
        before, after: rows of S of the neurons that are heard, and of those that hear.
        into: shape ``(chains, layers, n, m)``.
    """

    before: slice
    after: slice
    into: Array


class Forms(NamedTuple):
    """``U'PU, V'PU, V'PV, U'P_0, V'P_0, P_00``."""

    uu: Array
    vu: Array
    vv: Array
    u_in: Array
    v_in: Array
    in_in: Array


@dataclass(frozen=True, eq=False)
class Stack:
    """Chains of equal widths whose neurons are all variables.

    Attributes:
        weights: per layer, shape ``(chains, n_{k+1}, n_k)``.
        alphas, betas: per hidden layer the slopes, shape ``(chains, n_k)``.
    """

    weights: tuple[Array, ...]
    alphas: tuple[Array, ...]
    betas: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.weights[0])

    def pick(self, index: Mask) -> Stack:
        """Some of the chains."""
        return Stack(*(tuple(a[index] for a in f) for f in (self.weights, self.alphas, self.betas)))

    def astype(self, dtype: type) -> Stack:
        """The same, rounded to another precision."""
        fields = (self.weights, self.alphas, self.betas)
        return Stack(*(tuple(a.astype(dtype) for a in f) for f in fields))

    @staticmethod
    def joined(stacks: Sequence[Stack]) -> Stack:
        """The chains of all stacks."""
        fields = zip(*((s.weights, s.alphas, s.betas) for s in stacks), strict=True)
        layers = (zip(*field, strict=True) for field in fields)
        return Stack(*(tuple(map(np.concatenate, layer)) for layer in layers))

    @cached_property
    def sizes(self) -> list[int]:
        """Widths of the blocks: input and hidden layers."""
        return [w.shape[-1] for w in self.weights]

    @cached_property
    def order(self) -> int:
        """Order D of S."""
        return sum(self.sizes)

    @cached_property
    def has_alpha(self) -> bool:
        """Whether some lower slope is not zero."""
        return any(bool(a.any()) for a in self.alphas)

    def _runs(self, factors: Sequence[Array]) -> list[Run]:
        runs, at, k = list[Run](), block_slices(self.sizes), 0
        hidden = zip(factors, self.weights, strict=False)
        for _, group in groupby(hidden, key=lambda layer: layer[1].shape):
            into = np.stack([f[..., None] * w for f, w in group], axis=1)
            last = k + into.shape[1]
            before = slice(at[k].start, at[last - 1].stop)
            runs.append(Run(before, slice(at[k + 1].start, at[last].stop), into))
            k = last
        return runs

    @cached_property
    def _into_u(self) -> list[Run]:
        return self._runs(self.alphas)

    @cached_property
    def _into_v(self) -> list[Run]:
        return self._runs(self.betas)

    def _left(self, runs: Sequence[Run], p: Array) -> Array:
        (count, _, columns), n = p.shape, self.sizes[0]
        out = p[:, n:].copy()
        for before, after, into in runs:
            heard = p[:, before].reshape(count, into.shape[1], into.shape[3], columns)
            into_rows = (into @ heard).reshape(count, after.stop - after.start, columns)
            out[:, after.start - n : after.stop - n] -= into_rows
        return out

    def u_times(self, p: Array) -> Array:
        """``U'P``."""
        return self._left(self._into_u, p) if self.has_alpha else p[:, self.sizes[0] :]

    def v_times(self, p: Array) -> Array:
        """``V'P``."""
        return self._left(self._into_v, p)

    @cached_property
    def _rows(self) -> tuple[Array, Array]:
        """``U'`` and ``V'``."""
        eye = np.eye(self.order, dtype=self.weights[0].dtype)[None].repeat(len(self), 0)
        return self.u_times(eye), self.v_times(eye)

    def direction(self, dy: Array) -> Array:
        """``drho E_0 + sum_i dt_i A_i``, ``dy`` of shape ``(chains, 1 + neurons)``."""
        n, (u, v) = self.sizes[0], self._rows
        scaled = dy[:, 1:, None] * v
        if self.has_alpha:
            half = u.mT @ scaled
            change = half + half.mT
        else:
            change = np.zeros((len(self), self.order, self.order), dy.dtype)
            change[:, n:] = scaled
            change[:, :, n:] += scaled.mT
        change[:, range(n), range(n)] += dy[:, :1]
        return np.asarray(change)

    def slack(self, y: Array) -> Array:
        """``S(y)``."""
        slack, last = self.direction(y), self.weights[-1]
        slack[:, -self.sizes[-1] :, -self.sizes[-1] :] -= last.mT @ last
        return slack

    def adjoint(self, x: Array) -> Array:
        """``(tr X_00, tr(A_1 X), ..., tr(A_N X))`` of symmetric X."""
        n = self.sizes[0]
        found = np.empty((len(x), 1 + self.order - n), x.dtype)
        found[:, 0] = x[:, :n, :n].trace(axis1=1, axis2=2)
        np.einsum("bij,bij->bi", self.u_times(x), self._rows[1], out=found[:, 1:])
        found[:, 1:] *= 2.0
        return found

    def forms(self, p: Array) -> Forms:
        """Everything that the Schur complement needs of a symmetric P."""
        n, up, vp = self.sizes[0], self.u_times(p), self.v_times(p)
        vu = self.u_times(vp.mT).mT
        uu = self.u_times(up.mT)
        return Forms(uu, vu, self.v_times(vp.mT), up[..., :n], vp[..., :n], p[:, :n, :n])


def schur_complement(z: Forms, p: Forms) -> Array:
    """``tr(A_i Z A_j P)`` for all i, j, the input block first."""
    n = z.vu.shape[-1]
    h = np.empty((len(z.vu), n + 1, n + 1), z.vu.dtype)
    cross = z.vu * p.vu.mT
    core = cross + cross.mT
    core += z.uu * p.vv
    core += z.vv * p.uu
    h[:, 1:, 1:] = core
    h[:, 0, 0] = np.einsum("bij,bij->b", z.in_in, p.in_in)
    border = np.einsum("bij,bij->bi", z.u_in, p.v_in) + np.einsum("bij,bij->bi", z.v_in, p.u_in)
    h[:, 0, 1:] = h[:, 1:, 0] = border
    return h
