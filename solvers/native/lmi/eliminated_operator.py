"""The certification LMI of a chain with linear neurons, these substituted: the LMI of a graph.

A neuron whose slope is known, ``alpha = beta = a``, is the linear function ``x_i = a v_i`` of what
it hears.  Sums of sorted pairs are such neurons, and so is what a skip connection carries.  With
the input and the outputs of all other neurons as variables, ``z = (x, w)``, every value of the
network is linear in z, and the inequality has one row per variable:

    S(y) = rho E_0 - F'F + sum_i t_i (u_i v_i' + v_i u_i'),      f = F z,
    u_i = e_i - alpha_i p_i,    v_i = e_i - beta_i p_i,          p_i z what neuron i hears.

Nothing stands in for an infinite multiplier, so nothing is stiff.  The form is dense: the blocks
are the input and all the neurons.  Everything else is as in ``lmi_operator.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...dissipation import any_known
from ...phases import phase
from ...problem import CertifyProblem, Multiplier, Slopes
from .block_cholesky import Band, band_of, block_slices, cholesky
from .even_operator import EvenOperator, filled_up
from .lmi_operator import Forms, LmiOperator, Rows

# Largest order of the dense form: an iteration takes a few seconds there.
LARGEST_ORDER = 3000


@dataclass(frozen=True, eq=False)
class Eliminated:
    """A chain in terms of the input and the neurons that are not linear.

    Attributes:
        problem: the chain.
        free: per hidden layer, the mask of the neurons that are not linear.
    """

    problem: CertifyProblem
    free: tuple[Tensor, ...]

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """How many neurons each hidden layer has that are not linear."""
        return tuple(int(mask.sum()) for mask in self.free)

    @cached_property
    def _steps(self) -> list[tuple[Tensor, Tensor, Tensor, slice]]:
        """Per hidden layer: W, its free neurons, the slopes of the others (else 0), its rows."""
        w, slopes = self.problem.weights, self.problem.slopes
        held = [torch.where(f, 0.0, s.alpha) for f, s in zip(self.free, slopes, strict=True)]
        indices = [f.nonzero()[:, 0] for f in self.free]
        return list(zip(w, indices, held, block_slices(self.layers), strict=False))

    def through(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``p z`` and ``F z``: what the neurons hear and the output, for columns of variables."""
        inputs = self.problem.weights[0].shape[1]
        state, own = z[:inputs], z[inputs:]
        heard = z.new_empty(own.shape)
        for w, free, slope, rows in self._steps:
            into = w @ state
            heard[rows] = into[free]
            state = into.mul_(slope[:, None]).index_copy_(0, free, own[rows])
        return heard, self.problem.weights[-1] @ state

    def back(self, x: Tensor) -> Tensor:
        """``p' x``, the adjoint of what the neurons hear."""
        out = x.new_zeros(self.problem.weights[0].shape[1] + x.shape[0], x.shape[1])
        own = out[-x.shape[0] :]
        pull: Tensor | None = None
        for w, free, slope, rows in reversed(self._steps):
            if pull is None:
                pull = x.new_zeros(w.shape[0], x.shape[1])
            own[rows] = pull[free]
            pull = w.T @ pull.mul_(slope[:, None]).index_copy_(0, free, x[rows])
        assert pull is not None  # there is a hidden layer
        out[: -x.shape[0]] = pull
        return out

    @cached_property
    def heard(self) -> Tensor:
        """What these neurons hear, shape ``(N, D)``."""
        return self._dense[0]

    @cached_property
    def output(self) -> Tensor:
        """F, shape ``(outputs, D)``."""
        return self._dense[1]

    @cached_property
    def _dense(self) -> tuple[Tensor, Tensor]:
        order = self.problem.weights[0].shape[1] + sum(self.layers)
        return self.through(torch.eye(order).to(self.problem.weights[0]))


def eliminate(problem: CertifyProblem) -> Eliminated:
    """Every value as a linear map of the input and of the neurons that are not linear."""
    return Eliminated(problem, tuple(s.alpha != s.beta for s in problem.slopes))


@dataclass(frozen=True, eq=False)
class EliminatedOperator(LmiOperator):
    """The map ``y -> S(y)`` of the module's docstring; ``fixed`` as in :class:`LmiOperator`."""

    @cached_property
    def reduced(self) -> Eliminated:
        """The chain without its linear neurons."""
        return eliminate(self.problem)

    @cached_property
    def sizes(self) -> list[int]:
        """The input, and all neurons that are not linear."""
        return [self.problem.weights[0].shape[1], sum(self.reduced.layers)]

    @cached_property
    def _mask(self) -> Tensor:
        return torch.cat(self.reduced.free)

    @cached_property
    def _held(self) -> Tensor:
        """Multipliers of the neurons that are not variables, linear ones left out."""
        return self.fixed[self._mask]

    @cached_property
    def free(self) -> Tensor | None:
        """Among the neurons that are not linear, the variables; ``None`` where all are."""
        free = self._held == 0
        return None if bool(free.all()) else free.nonzero()[:, 0]

    def restrict(self, flat: Tensor) -> Tensor:
        """The entries that are variables, of one number per neuron of the chain or per row."""
        rows = flat[self._mask] if flat.shape[0] == self._mask.shape[0] else flat
        return rows if self.free is None else rows[self.free]

    def _all(self, t: Tensor, others: Tensor) -> Tensor:
        return t if self.free is None else others.index_copy(0, self.free, t)

    def multiplier(self, y: Tensor) -> Multiplier:
        """``(t_1, ..., t_l)`` of ``y``; linear neurons keep what they were held at."""
        flat = self.fixed.index_copy(0, self._mask.nonzero()[:, 0], self._all(y[1:], self._held))
        return torch.split(flat, [s.alpha.shape[0] for s in self.problem.slopes])

    @cached_property
    def alpha(self) -> Tensor:
        """Lower slopes of the neurons that are not linear."""
        return torch.cat([s.alpha for s in self.problem.slopes])[self._mask]

    @cached_property
    def beta(self) -> Tensor:
        """Upper slopes of the neurons that are not linear."""
        return torch.cat([s.beta for s in self.problem.slopes])[self._mask]

    @cached_property
    def _cost(self) -> Tensor:
        return self.reduced.output.T @ self.reduced.output

    def _weighted(self, t: Tensor, rho: Tensor) -> Tensor:
        """``rho E_0 + U' T V + V' T U``."""
        n, heard = self.sizes[0], self.reduced.heard
        dense = heard.new_zeros(self.order, self.order)
        dense[n:] = (-(self.alpha + self.beta) * t)[:, None] * heard
        dense = dense + dense.T
        if self.has_alpha:
            dense.addmm_(heard.T, (2.0 * self.alpha * self.beta * t)[:, None] * heard)
        dense[n:, n:].diagonal().add_(2.0 * t)
        dense[:n, :n].diagonal().add_(rho)
        return dense

    def slack(self, y: Tensor) -> Band:
        """``S(y)``."""
        dense = self._weighted(self._all(y[1:], self._held), y[0]).sub_(self._cost)
        return band_of(dense, self.sizes)

    def direction(self, dy: Tensor) -> Band:
        """The change of S."""
        change = self._all(dy[1:], torch.zeros_like(self._held))
        return band_of(self._weighted(change, dy[0]), self.sizes)

    def adjoint(self, z: Band) -> Tensor:
        """``(tr Z_00, tr(A_1 Z), ...)``."""
        heard, below = self.reduced.heard, torch.cat([z.lower[0], z.diagonal[1]], 1)
        values = torch.diagonal(z.diagonal[1]) - (self.alpha + self.beta) * (below * heard).sum(1)
        if self.has_alpha:
            seen = self.reduced.through(_dense(z))[0]
            values = values + self.alpha * self.beta * (seen * heard).sum(1)
        trace = torch.diagonal(z.diagonal[0]).sum().reshape(1)
        return torch.cat([trace, self.restrict(2.0 * values)])

    def rows(self, p: Tensor) -> Rows:
        """``U'P`` and ``V'P``."""
        own, heard = p[self.sizes[0] :], self.reduced.through(p)[0]
        up = torch.addcmul(own, self.alpha[:, None], heard, value=-1.0) if self.has_alpha else own
        return Rows(up, torch.addcmul(own, self.beta[:, None], heard, value=-1.0))

    @phase("products")
    def forms(self, p: Tensor) -> Forms:
        """Everything the Schur complement needs of P."""
        n, rows = self.sizes[0], self.rows(p)
        up, vp = self.restrict(rows.up), self.restrict(rows.vp)
        by_v = self.rows(vp.T)
        by_u = self.rows(up.T) if self.has_alpha else Rows(up.T[n:], up.T[n:])
        uu, vu, vv = (self.restrict(m).T for m in (by_u.up, by_v.up, by_v.vp))
        return Forms(uu, vu, vv, up[:, :n], vp[:, :n], p[:n, :n], rows)

    @phase("products")
    def times(self, dy: Tensor, p: Tensor, rows: Rows) -> Tensor:
        """``dS P`` from the rows of P."""
        n, change = self.sizes[0], self._all(dy[1:], torch.zeros_like(self._held))[:, None]
        by_heard = (change * self.beta[:, None]) * rows.up
        if self.has_alpha:
            by_heard.addcmul_(change * self.alpha[:, None], rows.vp)
        out = self.reduced.back(by_heard).neg_()
        out[n:].addcmul_(change, rows.up).addcmul_(change, rows.vp)
        out[:n].add_(p[:n], alpha=float(dy[0]))
        return out

    @phase("products")
    def adjoint_of_product(self, left: Tensor, rows: Rows, right: Tensor) -> Tensor:
        """``A*`` of the symmetric part of ``left @ right``, with the rows of ``left``."""
        n, by = self.sizes[0], self.rows(right.T)
        both = (rows.up * by.vp).addcmul_(rows.vp, by.up).sum(1)
        trace = (left[:n] * right[:, :n].T).sum().reshape(1)
        return torch.cat([trace, self.restrict(both)])

    @phase("repair of the dual")
    def repaired(self, z: Band) -> float:
        """The dual value of ``dual_repair.py``, every layer on all the variables before it."""
        scaled = _dense(z) / torch.diagonal(z.diagonal[0]).sum()
        covariance: Tensor | None = scaled[: self.sizes[0], : self.sizes[0]]
        sizes = list(self.reduced.layers)
        ranges = torch.split(torch.stack([self.alpha, self.beta]), sizes, dim=1)
        heard = torch.split(self.reduced.heard, sizes)
        for (alpha, beta), into in zip(ranges, heard, strict=True):
            if covariance is not None and len(alpha):
                covariance = _extended(scaled, covariance, Slopes(alpha, beta), into)
        if covariance is None:
            return 0.0
        value = float(((self.reduced.output @ covariance) * self.reduced.output).sum())
        return value if 0.0 <= value < float("inf") else 0.0


def _extended(z: Tensor, covariance: Tensor, slopes: Slopes, heard: Tensor) -> Tensor | None:
    """The exact covariance of the variables so far and of one more layer.

    The layer keeps its conditional law in ``z``, its deviation scaled until the constraint of every
    neuron holds.  ``None`` where z is not positive definite.
    """
    before, count = len(covariance), len(slopes.alpha)
    here = slice(before, before + count)
    factor = cholesky(z[:before, :before])
    if factor is None:
        return None
    gain = torch.cholesky_solve(z[here, :before].T, factor).T
    noise = z[here, here] - gain @ z[here, :before].T
    middle, half = (slopes.alpha + slopes.beta) / 2.0, (slopes.beta - slopes.alpha) / 2.0
    into = heard[:, :before]
    nominal = middle[:, None] * into
    off = gain - nominal
    seen = ((into @ covariance) * into).sum(1)
    deviation = ((off @ covariance) * off).sum(1) + torch.diagonal(noise)
    least = torch.finfo(z.dtype).tiny
    size = half * (seen / deviation.clamp(min=least)).clamp(min=0).sqrt()
    step = nominal + size[:, None] * off
    across = step @ covariance
    corner = across @ step.T + size[:, None] * noise * size
    return torch.cat([torch.cat([covariance, across.T], 1), torch.cat([across, corner], 1)])


def _dense(z: Band) -> Tensor:
    """The matrix of two blocks."""
    (a, d), (b,) = z.diagonal, z.lower
    return torch.cat([torch.cat([a, b.T], 1), torch.cat([b, d], 1)])


def operator_of(problem: CertifyProblem, fixed: Tensor) -> LmiOperator:
    """The LMI of a problem, its linear neurons substituted where there are any.

    ``fixed`` as in :class:`LmiOperator`.  Where the dense form would be too large, the linear
    neurons stay, with the large multipliers that ``fixed`` has for them.
    """
    free = sum(int((s.alpha != s.beta).sum()) for s in problem.slopes)
    small = problem.weights[0].shape[1] + free <= LARGEST_ORDER
    if any_known(problem.slopes):
        return (EliminatedOperator if small and free else LmiOperator)(problem, fixed)
    filled = filled_up(problem)
    return LmiOperator(problem, fixed) if filled is None else EvenOperator(filled, fixed)
