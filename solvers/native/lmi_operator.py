"""The certification LMI as an affine map of ``y = (rho, t)``, and its Schur complement.

    S(y) = rho E_0 - C + sum_i t_i A_i,        A_i = u_i v_i' + v_i u_i'

with ``E_0`` the identity of the input block, ``C`` holding ``W_l' W_l`` at the last hidden block,
``u_i = e_i - alpha_i w_i``, ``v_i = e_i - beta_i w_i``, ``e_i`` the unit vector of neuron i and
``w_i`` its row of weights, placed in the previous layer.  Because every ``A_i`` has rank two,

    tr(A_i Z A_j P) = (V'ZU)_ij (U'PV)_ij + (U'ZV)_ij (V'PU)_ij
                    + (U'ZU)_ij (V'PV)_ij + (V'ZV)_ij (U'PU)_ij

is four entrywise products: nothing is assembled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..lmi import eliminate_output, lmi_blocks
from ..problem import CertifyProblem, Multiplier
from .block_cholesky import Band, block_slices


class Forms(NamedTuple):
    """``U'PU, U'PV, V'PV`` of a dense symmetric P, and the input columns ``U'P_0, V'P_0, P_00``."""

    uu: Tensor
    uv: Tensor
    vv: Tensor
    u_in: Tensor
    v_in: Tensor
    in_in: Tensor


@dataclass(frozen=True, eq=False)
class LmiOperator:
    """The map ``y -> S(y)``, its adjoint and its Schur complement, for one certify problem.

    Attributes:
        problem: the weights and slopes.
        fixed: multipliers of the neurons that are not variables, laid end to end, 0 for those that
            are: ``y`` holds ``rho`` and the others only.
    """

    problem: CertifyProblem
    fixed: Tensor

    @cached_property
    def sizes(self) -> list[int]:
        """Widths of the blocks: input and hidden layers."""
        return list(self.problem.widths[:-1])

    @cached_property
    def order(self) -> int:
        """Order D of S."""
        return sum(self.sizes)

    @cached_property
    def alpha(self) -> Tensor:
        """All lower slopes, laid end to end."""
        return torch.cat([s.alpha for s in self.problem.slopes])

    @cached_property
    def beta(self) -> Tensor:
        """All upper slopes, laid end to end."""
        return torch.cat([s.beta for s in self.problem.slopes])

    @cached_property
    def has_alpha(self) -> bool:
        """Whether some lower slope is not zero."""
        return bool((self.alpha != 0).any())

    @cached_property
    def free(self) -> Tensor | None:
        """Indices of the neurons that are variables; ``None`` where all are."""
        free = self.fixed == 0
        return None if bool(free.all()) else free.nonzero()[:, 0]

    def restrict(self, flat: Tensor) -> Tensor:
        """The entries that are variables."""
        return flat if self.free is None else flat[self.free]

    def _split(self, t: Tensor, others: Tensor) -> Multiplier:
        """One tensor per hidden layer, ``others`` giving the entries that are not variables."""
        flat = t if self.free is None else others.index_copy(0, self.free, t)
        return torch.split(flat, self.sizes[1:])

    def multiplier(self, y: Tensor) -> Multiplier:
        """``(t_1, ..., t_l)`` of ``y``, fixed entries included."""
        return self._split(y[1:], self.fixed)

    def slack(self, y: Tensor) -> Band:
        """``S(y)`` for ``y = (rho, t)``."""
        w, s = self.problem.weights, self.problem.slopes
        return Band(*eliminate_output(*lmi_blocks(w, s, self.multiplier(y), y[0])))

    def direction(self, dy: Tensor) -> Band:
        """``drho E_0 + sum_i dt_i A_i``: the change of S."""
        w, s = self.problem.weights, self.problem.slopes
        change = self._split(dy[1:], torch.zeros_like(self.fixed))
        diagonal, lower = lmi_blocks(w, s, change, dy[0])
        return Band(diagonal[:-1], lower[:-1])

    def adjoint(self, z: Band) -> Tensor:
        """``(tr Z_00, tr(A_1 Z), ..., tr(A_N Z))``."""
        parts = []
        for k, s in enumerate(self.problem.slopes):
            w = self.problem.weights[k]
            value = torch.diagonal(z.diagonal[k + 1]) - (s.alpha + s.beta) * (z.lower[k] * w).sum(1)
            if self.has_alpha:
                value = value + s.alpha * s.beta * ((w @ z.diagonal[k]) * w).sum(1)
            parts.append(2.0 * value)
        trace = torch.diagonal(z.diagonal[0]).sum().reshape(1)
        return torch.cat([trace, self.restrict(torch.cat(parts))])

    def output_value(self, z: Band) -> float:
        """``tr(C Z) = tr(W_l Z_ll W_l')``: the dual objective."""
        w = self.problem.weights[-1]
        return float(((w @ z.diagonal[-1]) * w).sum())

    def forms(self, p: Tensor) -> Forms:
        """Everything the Schur complement needs of P, in O(D^2 n)."""
        at = block_slices(self.sizes)
        hidden = slice(self.sizes[0], None)
        pw = p.new_empty(self.order, self.order - self.sizes[0])  # column i is P w_i
        wpw = torch.empty_like(pw[hidden])
        columns = block_slices(self.sizes[1:])
        for k, c in enumerate(columns):
            torch.mm(p[:, at[k]], self.problem.weights[k].T, out=pw[:, c])
        for k, c in enumerate(columns):
            torch.mm(self.problem.weights[k], pw[at[k]], out=wpw[c])
        forms = self._combine(p, pw, wpw)
        if self.free is None:
            return forms
        uu, uv, vv = (m[self.free][:, self.free] for m in forms[:3])
        return Forms(uu, uv, vv, forms.u_in[self.free], forms.v_in[self.free], forms.in_in)

    def _combine(self, p: Tensor, pw: Tensor, wpw: Tensor) -> Forms:
        """The forms of all neurons from ``P``, ``P w_i`` and ``w_i' P w_j``."""
        n = self.sizes[0]
        ee, ew, in_in = p[n:, n:], pw[n:], p[:n, :n]
        e_in, w_in, b = p[n:, :n], pw[:n].T, self.beta[:, None]
        ev = ee - ew * self.beta
        wv = ew.T - wpw * self.beta
        vv, v_in = ev - b * wv, e_in - b * w_in
        if not self.has_alpha:
            return Forms(ee, ev, vv, e_in, v_in, in_in)
        a = self.alpha[:, None]
        uu = ee - ew * self.alpha - a * (ew.T - wpw * self.alpha)
        return Forms(uu, ev - a * wv, vv, e_in - a * w_in, v_in, in_in)


def schur_complement(z: Forms, p: Forms) -> Tensor:
    """``tr(A_i Z A_j P)`` for all i, j, the input block first: order N + 1, symmetric."""
    n = z.uv.shape[0]
    h = z.uv.new_empty(n + 1, n + 1)
    core = h[1:, 1:]
    torch.mul(z.uv, p.uv.T, out=core)
    core.add_(core.T.clone()) if z is p else core.addcmul_(z.uv.T, p.uv)
    core.addcmul_(z.uu, p.vv).addcmul_(z.vv, p.uu)
    h[0, 0] = (z.in_in * p.in_in).sum()
    border = (z.u_in * p.v_in).sum(1) + (z.v_in * p.u_in).sum(1)
    h[0, 1:] = border
    h[1:, 0] = border
    return h
