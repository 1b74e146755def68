"""Certify problems of equal widths, from their weights to measured multipliers, all at once.

The reduction is that of ``reduction.py`` where no neuron has to be dropped: triangular ends,
balanced neurons, layers of norm 1, a closed form whose bound is 1, the smaller end first.
What this room cannot solve comes back as ``None``, for the form that takes every problem.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...lmi import implied_bounds
from ...phases import phase
from ...problem import CertifyProblem, Multiplier, Slopes, Weights
from ...proving import proving
from ...reduction import INSIDE, balanced, compressed, unit_norms
from ..lmi.block_cholesky import Band, block_slices
from ..lmi.closed_forms import forward
from ..lmi.dual_repair import repaired_values
from ..lmi.even_operator import is_even
from ..lmi.primal_dual_pair import OUTSET
from ..lmi.transpose import inverse_slopes
from ..lmi.variables import NEGLIGIBLE
from ..lmi.warm_start import warm_start
from .batched import Array
from .chains import Stack
from .interior import Answers, follow

# A dense matrix of this order costs what its blocks do.
LARGEST_ORDER = 300
# With so many hidden layers of one width, blocks cost less (``lmi/even_blocks.py``).
_DEEP = 11
# Closed forms to start from; larger ones are worse to centre from.
_THETAS = (1.0, 1.2, 1.3)
_SCALED_BY = 1.2
# Slopes nearer to each other than this share are for the other form.
_NARROW = 1e-6
_LOG_RANGE = 680.0


class Found(NamedTuple):
    """A multiplier that proves ``lip``, and what no other can beat."""

    multiplier: Multiplier
    lip: float
    lower_lip: float
    claimed_lip: float
    steps: int


class Chains(NamedTuple):
    """Weights and slopes with the chain as their leading dimension."""

    weights: Weights
    slopes: tuple[Slopes, ...]

    @staticmethod
    def of(problems: Sequence[CertifyProblem]) -> Chains:
        """Problems of equal widths side by side."""
        weights = zip(*(p.weights for p in problems), strict=True)
        slopes = zip(*(p.slopes for p in problems), strict=True)
        return Chains(
            tuple(map(torch.stack, weights)),
            tuple(Slopes(*map(torch.stack, zip(*layer, strict=True))) for layer in slopes),
        )

    def pick(self, index: Tensor) -> Chains:
        """Some of them."""
        slopes = (Slopes(s.alpha[index], s.beta[index]) for s in self.slopes)
        return Chains(tuple(w[index] for w in self.weights), tuple(slopes))


class Reduced(NamedTuple):
    """Chains of norm 1 and closed bound 1, and the way back.

    Attributes:
        chains: what is solved.
        log_scale: the original bound is ``exp(log_scale)`` times the reduced one.
        gains: per hidden layer, ``log(t_original / t_reduced)``.
        upright: the chains before they were read from their outputs, ``None`` where they were not.
    """

    chains: Chains
    log_scale: Tensor
    gains: list[Tensor]
    upright: Chains | None = None

    def lift(self, t: Sequence[Tensor]) -> list[Tensor]:
        """The original multipliers; NaN where the given ones prove nothing."""
        if self.upright is not None:
            lip = implied_bounds(*self.chains, t)[:, None]
            squares = torch.where(torch.isfinite(lip), (1.0 + INSIDE) * lip**2, float("nan"))
            t = inverse_slopes(self.chains.slopes, t, squares)
        logs = (x.log() + gain for x, gain in zip(t, self.gains, strict=True))
        return [x.clamp(-_LOG_RANGE, _LOG_RANGE).exp() for x in logs]

    def begun(self, warm: Multiplier) -> Array | None:
        """Of one chain, the y that a multiplier of a network nearby leads to, if there is one."""
        weights, slopes = self.upright or self.chains
        chain = CertifyProblem(
            tuple(w[0] for w in weights), tuple(Slopes(s.alpha[0], s.beta[0]) for s in slopes)
        )
        logs = (t.log() - gain[0] for t, gain in zip(warm, self.gains, strict=False))
        start = warm_start(chain, tuple(x.clamp(-_LOG_RANGE, _LOG_RANGE).exp() for x in logs))
        if start is None:
            return None
        t, rho = start.multiplier, start.lip_sq
        if self.upright is not None:
            t = inverse_slopes(chain.slopes, t, rho)
        return np.concatenate([[rho], *t])[None]


def fits(problem: CertifyProblem) -> bool:
    """Whether a problem has hidden neurons, is small, and not one of many equal layers."""
    widths = problem.widths
    ends = min(*widths[:2], *widths[-2:])
    small = bool(problem.slopes) and ends + sum(widths[1:-1]) <= LARGEST_ORDER
    return small and not is_even(problem, _DEEP)


def solve_stack(
    problems: Sequence[CertifyProblem], tol: float, warm: Multiplier | None = None
) -> list[Found | None]:
    """Each problem's optimum to the relative gap ``tol`` in ``L^2``; all of equal widths.

    ``warm`` is a multiplier near the solution of the only problem.
    """
    given = Chains.of(problems)
    found: list[Found | None] = [None] * len(problems)
    index = _ordinary(given).nonzero()[:, 0]
    if not len(index):
        return found
    given = given.pick(index)
    reduced = reduce(given)
    stack = _stack(reduced.chains)
    answers = _followed(stack, reduced, tol, warm)
    lower = np.sqrt(np.maximum(repaired(stack, answers.z), 0.0))
    y = torch.from_numpy(answers.y)
    multiplier = reduced.lift(torch.split(y[:, 1:], stack.sizes[1:], dim=1))
    lips = implied_bounds(*given, multiplier)
    scale = reduced.log_scale.exp()
    rows = zip(*(t.unbind() for t in multiplier), strict=True)
    for k, (place, row) in enumerate(zip(index.tolist(), rows, strict=True)):
        if not answers.solved[k]:
            continue
        lip, factor = float(lips[k]), float(scale[k])
        if not math.isfinite(lip):
            row, lip = proving(problems[place], row)
        if math.isfinite(lip):
            claimed = factor * math.sqrt(float(y[k, 0]))
            steps = int(answers.steps[k])
            found[place] = Found(row, lip, factor * float(lower[k]), claimed, steps)
    return found


def _followed(stack: Stack, reduced: Reduced, tol: float, warm: Multiplier | None) -> Answers:
    """The answers from the warm multiplier, else from closed forms."""
    y = None if warm is None else reduced.begun(warm)
    if y is not None:
        answers = follow(stack, y, tol, repaired)
        if answers.solved.all():
            return answers
    return follow(stack, OUTSET * starts(reduced.chains).numpy(), tol, repaired)


def _ordinary(chains: Chains) -> Tensor:
    """The chains whose neurons all matter, and none of which has a known slope."""
    weights, _ = unit_norms(chains.weights)
    ordinary = torch.ones(len(weights[0]), dtype=torch.bool)
    for (into, out), s in zip(pairwise(weights), chains.slopes, strict=True):
        share = torch.linalg.vector_norm(into, dim=2) * torch.linalg.vector_norm(out, dim=1)
        matters = share > NEGLIGIBLE * share.amax(1, keepdim=True)
        wide = s.beta - s.alpha > _NARROW * torch.maximum(s.beta.abs(), s.alpha.abs())
        ordinary &= (matters & wide).all(1)
    return ordinary


@phase("set-up")
def reduce(chains: Chains) -> Reduced:
    """See the module's docstring."""
    weights, logs = unit_norms(compressed(chains.weights))
    weights, balance = balanced(weights)
    weights, more = unit_norms(weights)
    _, rho = _closed(Chains(weights, chains.slopes), _SCALED_BY)
    log_lip = torch.where(rho > 0.0, 0.5 * rho.log(), 0.0)
    share = log_lip / len(weights)
    weights = tuple((-share).exp()[:, None, None] * w for w in weights)
    scales = torch.stack([a + b + share for a, b in zip(logs, more, strict=True)])
    tails = scales.flip(0).cumsum(0).flip(0)
    gains = [2.0 * (b + tail[:, None]) for b, tail in zip(balance, tails[1:], strict=True)]
    turned = min(weights[-1].shape[1:]) < min(weights[0].shape[1:])
    upright = Chains(weights, chains.slopes)
    if not turned:
        return Reduced(upright, tails[0], gains)
    back = tuple(w.mT.contiguous() for w in reversed(weights))
    return Reduced(Chains(compressed(back), chains.slopes[::-1]), tails[0], gains, upright)


def _closed(chains: Chains, theta: float | Tensor) -> tuple[Tensor, Tensor]:
    """``T`` laid end to end and ``L^2`` of the closed form; NaN where there is none."""
    t, outer = forward(*chains, theta)
    sound = torch.isfinite(outer).all(-1).all(-1)
    rho = torch.linalg.eigvalsh(torch.where(sound[:, None, None], outer, 0.0))[:, -1]
    rho = torch.where(sound & (rho > 0.0), rho, float("nan"))
    return rho[:, None] * torch.cat(t, dim=1), rho


def starts(chains: Chains) -> Tensor:
    """``(rho, t)`` of the best closed form of each chain."""
    count, times = len(chains.weights[0]), len(_THETAS)
    thetas = chains.weights[0].new_tensor(_THETAS).repeat_interleave(count)[:, None]
    t, rho = _closed(chains.pick(torch.arange(count).repeat(times)), thetas)
    found = torch.cat([rho[:, None], t], dim=1).view(times, count, -1)
    best = found[:, :, 0].nan_to_num(nan=float("inf")).argmin(0)
    return found[best, torch.arange(count)]


def _stack(chains: Chains) -> Stack:
    alphas, betas = ([s[k].numpy() for s in chains.slopes] for k in (0, 1))
    return Stack(tuple(w.numpy() for w in chains.weights), tuple(alphas), tuple(betas))


def repaired(stack: Stack, z: Array) -> Array:
    """The dual value of each Z, made exactly feasible; in float64 whatever the stack is in."""
    stack, z = stack.astype(np.float64), z.astype(np.float64)
    at, dense = block_slices(stack.sizes), torch.from_numpy(z)
    band = Band([dense[:, s, s] for s in at], [dense[:, b, a] for a, b in pairwise(at)])
    ends = zip(stack.alphas, stack.betas, strict=True)
    slopes = [Slopes(torch.from_numpy(a), torch.from_numpy(b)) for a, b in ends]
    weights = tuple(map(torch.from_numpy, stack.weights))
    return np.asarray(repaired_values(weights, slopes, band).numpy())
