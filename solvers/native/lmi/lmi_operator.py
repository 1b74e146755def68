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
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...lmi import eliminate_output, lmi_blocks
from ...phases import phase
from ...problem import CertifyProblem, Multiplier
from .block_cholesky import Band, Tensors, band_of, band_of_product, block_slices, tiles
from .dual_repair import repaired_value


class Rows(NamedTuple):
    """``U'P`` and ``V'P`` of a dense P: one row per neuron, fixed ones included."""

    up: Tensor
    vp: Tensor


class Forms(NamedTuple):
    """``U'PU, V'PU, V'PV`` of a dense symmetric P, ``U'P_0, V'P_0, P_00``, and its rows."""

    uu: Tensor
    vu: Tensor
    vv: Tensor
    u_in: Tensor
    v_in: Tensor
    in_in: Tensor
    rows: Rows


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
    even: ClassVar[bool] = False

    def rounded(self, dtype: torch.dtype) -> LmiOperator:
        """The same in a shorter dtype (:meth:`CertifyProblem.rounded`)."""
        return type(self)(self.problem.rounded(dtype), self.fixed.to(dtype))

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

    def repaired(self, z: Band) -> float:
        """The dual value of ``z``, made exactly feasible."""
        return repaired_value(self.problem, z)

    @cached_property
    def into_u(self) -> Tensors:
        """``diag(alpha) W_k``: minus the previous layer's part of U."""
        pairs = zip(self.problem.slopes, self.problem.weights, strict=False)
        return [s.alpha[:, None] * w for s, w in pairs]

    @cached_property
    def into_v(self) -> Tensors:
        """``diag(beta) W_k``: minus the previous layer's part of V."""
        pairs = zip(self.problem.slopes, self.problem.weights, strict=False)
        return [s.beta[:, None] * w for s, w in pairs]

    def band_of(self, dense: Tensor) -> Band:
        """The band of a symmetric dense matrix (views)."""
        return band_of(dense, self.sizes, self.even)

    def band_of_product(self, left: Tensor, right: Tensor) -> Band:
        """The band of ``(left @ right + right' @ left') / 2``."""
        return band_of_product(left, right, self.sizes, self.even)

    def rows(self, p: Tensor) -> Rows:
        """``U'P`` and ``V'P``, P of D rows, not necessarily symmetric."""
        up = self._left(self.into_u, p) if self.has_alpha else p[self.sizes[0] :]
        return Rows(up, self._left(self.into_v, p))

    def _left(self, into: Tensors, p: Tensor) -> Tensor:
        out = p.new_empty(p.shape[0] - self.sizes[0], p.shape[1])
        at = block_slices(self.sizes)
        for k, c in enumerate(block_slices(self.sizes[1:])):
            torch.addmm(p[at[k + 1]], into[k], p[at[k]], alpha=-1.0, out=out[c])
        return out

    def _right(self, into: Tensors, m: Tensor) -> Tensor:
        out = m.new_empty(m.shape[0], m.shape[1] - self.sizes[0])
        at = block_slices(self.sizes)
        for k, c in enumerate(block_slices(self.sizes[1:])):
            torch.addmm(m[:, at[k + 1]], m[:, at[k]], into[k].T, alpha=-1.0, out=out[:, c])
        return out

    @phase("products")
    def forms(self, p: Tensor) -> Forms:
        """Everything the Schur complement needs of P, in O(D^2 n)."""
        n = self.sizes[0]
        rows = self.rows(p)
        up, vp = self.restrict(rows.up), self.restrict(rows.vp)
        vv = self._columns(self._right(self.into_v, vp))
        if self.has_alpha:
            uu, vu = (self._columns(self._right(self.into_u, m)) for m in (up, vp))
        else:
            uu, vu = (self._columns(m[:, n:]) for m in (up, vp))
        return Forms(uu, vu, vv, up[:, :n], vp[:, :n], p[:n, :n], rows)

    def _columns(self, m: Tensor) -> Tensor:
        return m if self.free is None else m[:, self.free]

    @phase("products")
    def times(self, dy: Tensor, p: Tensor, rows: Rows) -> Tensor:
        """``dS P = drho E_0 P + U dT V'P + V dT U'P``, from the rows of P."""
        change = self._split(dy[1:], torch.zeros_like(self.fixed))
        at, columns = block_slices(self.sizes), block_slices(self.sizes[1:])
        out = torch.empty_like(p)
        torch.mul(p[at[0]], dy[0], out=out[at[0]])
        for k, (c, dt) in enumerate(zip(columns, change, strict=True)):
            # Block by block, and dt on the small factor: no temporary as large as P.
            torch.add(rows.up[c], rows.vp[c], out=out[at[k + 1]]).mul_(dt[:, None])
            out[at[k]].addmm_(self.into_v[k].T * dt, rows.up[c], alpha=-1.0)
            if self.has_alpha:
                out[at[k]].addmm_(self.into_u[k].T * dt, rows.vp[c], alpha=-1.0)
        return out

    @phase("products")
    def adjoint_of_product(self, left: Tensor, rows: Rows, right: Tensor) -> Tensor:
        """``A*`` of the symmetric part of ``left @ right``, with the rows of ``left``.

        ``u' sym(X) v = (u' left)(right v) + (v' left)(right u)`` up to the factor 2 of ``A*``.
        """
        at, columns = block_slices(self.sizes), block_slices(self.sizes[1:])
        before = right[:, at[0]].T
        trace = (left[at[0]] * before).sum().reshape(1)
        parts = []
        for k, c in enumerate(columns):
            here = right[:, at[k + 1]].T.contiguous()
            by_v = torch.addmm(here, self.into_v[k], before, alpha=-1.0)
            by_u = torch.addmm(here, self.into_u[k], before, alpha=-1.0) if self.has_alpha else here
            both = torch.mul(rows.up[c], by_v).addcmul_(rows.vp[c], by_u)
            parts.append(both.sum(1))
            before = here
        return torch.cat([trace, self.restrict(torch.cat(parts))])


@phase("products")
def schur_complement(z: Forms, p: Forms) -> Tensor:
    """``tr(A_i Z A_j P)`` for all i, j, the input block first: order N + 1, symmetric."""
    n = z.vu.shape[0]
    h = z.vu.new_empty(n + 1, n + 1)
    core = h[1:, 1:]
    for i in tiles(n):
        for j in tiles(n):  # tiles, so that nothing as large as H is transposed
            tile = _transposed(p.vu[j, i]).mul_(z.vu[i, j])
            turned = tile.T if i == j else _transposed(z.vu[j, i]).mul_(p.vu[i, j])
            tile = (tile + turned).addcmul_(z.uu[i, j], p.vv[i, j])
            core[i, j] = tile.addcmul_(z.vv[i, j], p.uu[i, j])
    h[0, 0] = (z.in_in * p.in_in).sum()
    border = (z.u_in * p.v_in).sum(1) + (z.v_in * p.u_in).sum(1)
    h[0, 1:] = border
    h[1:, 0] = border
    return h


def _transposed(tile: Tensor) -> Tensor:
    """In memory of its own, row by row: products with it then cost a third."""
    return tile.T.clone(memory_format=torch.contiguous_format)
