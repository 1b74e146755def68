"""The certification LMI of a chain whose layers are all of one width, all layers in one call.

The symbols and the formulas are those of ``lmi_operator.py``.  Fewer inputs than neurons in a layer
are filled up with inputs that no one hears, which change neither bound nor multiplier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ...phases import phase
from ...problem import CertifyProblem
from .block_cholesky import Band, Tensors
from .lmi_operator import LmiOperator, Rows

# Fewer layers are as quick one by one, and so are wider ones.
_LEAST_LAYERS, _MOST_WIDTH = 4, 128


def is_even(problem: CertifyProblem, least: int = _LEAST_LAYERS) -> bool:
    """Whether it has so many hidden layers, all of one width, and not a large one."""
    hidden = problem.widths[1:-1]
    here = problem.weights[0].device.type == "cpu"
    return len(hidden) >= least and len(set(hidden)) == 1 and hidden[0] <= _MOST_WIDTH and here


def filled_up(problem: CertifyProblem) -> CertifyProblem | None:
    """An even problem with as many inputs as a layer has neurons; ``None`` where it has more."""
    first, *others = problem.weights
    missing = first.shape[0] - first.shape[1]
    if not is_even(problem) or missing < 0:
        return None
    filled = torch.nn.functional.pad(first, (0, missing))
    return replace(problem, weights=(filled, *others))


@dataclass(frozen=True, eq=False)
class EvenOperator(LmiOperator):
    """:class:`LmiOperator` of such a chain; its bands stand in two tensors."""

    even = True

    @cached_property
    def _weights(self) -> Tensor:
        """Those of the hidden layers, shape ``(layers, n, n)``."""
        return torch.stack(self.problem.weights[:-1])

    def _by_layer(self, flat: Sequence[Tensor] | Tensor) -> Tensor:
        """One row per hidden layer."""
        laid = flat if isinstance(flat, Tensor) else torch.cat(list(flat))
        return laid.view(len(self._weights), -1)

    @cached_property
    def _sum(self) -> Tensor:
        return self._by_layer(self.alpha + self.beta)

    @cached_property
    def _product(self) -> Tensor:
        return self._by_layer(self.alpha * self.beta)

    @cached_property
    def into_u(self) -> Tensor:
        """``diag(alpha) W_k``."""
        return self._by_layer(self.alpha)[..., None] * self._weights

    @cached_property
    def into_v(self) -> Tensor:
        """``diag(beta) W_k``."""
        return self._by_layer(self.beta)[..., None] * self._weights

    @cached_property
    def _heard(self) -> Tensor:
        """What the outputs take off the last block."""
        last = self.problem.weights[-1]
        return last.T @ last

    def slack(self, y: Tensor) -> Band:
        """``S(y)``."""
        band = self._map(y[0], self._by_layer(self.multiplier(y)))
        band.diagonal[-1].sub_(self._heard)
        return band

    def direction(self, dy: Tensor) -> Band:
        """``drho E_0 + sum_i dt_i A_i``."""
        return self._map(dy[0], self._changes(dy))

    def _changes(self, dy: Tensor) -> Tensor:
        return self._by_layer(self._split(dy[1:], torch.zeros_like(self.fixed)))

    def _map(self, rho: Tensor, t: Tensor) -> Band:
        w = self._weights
        diagonal = torch.diag_embed(torch.cat([rho.expand(1, t.shape[1]), 2.0 * t]))
        if self.has_alpha:
            diagonal[:-1].baddbmm_(w.mT, (self._product * t)[..., None] * w, alpha=2.0)
        return Band(diagonal, (self._sum * t).neg_()[..., None] * w)

    def adjoint(self, z: Band) -> Tensor:
        """``(tr Z_00, tr(A_1 Z), ..., tr(A_N Z))``."""
        w, (diagonal, lower) = self._weights, (_stacked(part) for part in z)
        value = torch.diagonal(diagonal[1:], dim1=1, dim2=2) - self._sum * (lower * w).sum(2)
        if self.has_alpha:
            value = value + self._product * ((w @ diagonal[:-1]) * w).sum(2)
        trace = torch.diagonal(diagonal[0]).sum().reshape(1)
        return torch.cat([trace, self.restrict(2.0 * value.view(-1))])

    def _left(self, into: Tensors, p: Tensor) -> Tensor:
        blocks = p.view(-1, self.sizes[0], p.shape[1])
        return torch.baddbmm(blocks[1:], _stacked(into), blocks[:-1], alpha=-1.0).flatten(0, 1)

    def _right(self, into: Tensors, m: Tensor) -> Tensor:
        blocks = m.view(len(m), -1, self.sizes[0]).movedim(1, 0)
        out = torch.baddbmm(blocks[1:], blocks[:-1], _stacked(into).mT, alpha=-1.0)
        return out.movedim(0, 1).flatten(1)

    @phase("products")
    def times(self, dy: Tensor, p: Tensor, rows: Rows) -> Tensor:
        """``dS P``, from the rows of P."""
        n, change = self.sizes[0], self._changes(dy)
        up, vp = (r.view(-1, n, p.shape[1]) for r in rows)
        out = p.new_empty(p.shape)
        blocks = out.view(-1, n, p.shape[1])
        torch.mul(p[:n], dy[0], out=blocks[0])
        torch.add(up, vp, out=blocks[1:]).mul_(change[..., None])
        blocks[:-1].baddbmm_(self.into_v.mT * change[:, None], up, alpha=-1.0)
        if self.has_alpha:
            blocks[:-1].baddbmm_(self.into_u.mT * change[:, None], vp, alpha=-1.0)
        return out

    @phase("products")
    def adjoint_of_product(self, left: Tensor, rows: Rows, right: Tensor) -> Tensor:
        """``A*`` of the symmetric part of ``left @ right``, with the rows of ``left``."""
        n, turned = self.sizes[0], right.T.contiguous()
        trace = (left[:n] * turned[:n]).sum().reshape(1)
        by_u, by_v = self.rows(turned)
        both = torch.mul(rows.up, by_v).addcmul_(rows.vp, by_u).sum(1)
        return torch.cat([trace, self.restrict(both)])


def _stacked(blocks: Tensors) -> Tensor:
    return blocks if isinstance(blocks, Tensor) else torch.stack(blocks)
