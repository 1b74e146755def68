"""Multipliers of the reduced inequality: in closed form, from a global one, optimised.

What these functions return is never trusted: ``reduced_inequality.proves`` decides.  Multipliers
are handed on as their square roots.

* :func:`closed_form`: backwards, each layer's ``t`` dominates what the layers behind it ask of it.
* :func:`from_global`: ``t_i`` of LipSDP for all inputs, narrowed to the local slopes.
* :func:`improved`: Newton's method on the barrier, batched.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .reduced_inequality import Gain, Reduced, least_lip

# How far the closed form stands above the least that dominates.
THETAS = (4.0, 12.0)
# Multipliers below this share of the mean are raised to it.
_FLOOR = 1e-9
# The path: gaps in s^2 relative to it, and Newton steps at each.
_GAPS = (0.5, 0.1, 0.03)
_STEPS = 6
_HALVINGS = 12
# Room given to a start: the bound and the multiplier are raised by this.
_ROOM = 1.1


def closed_form(gain: Gain, theta: float) -> Tensor:
    """A feasible multiplier in one backward pass.

    With F the form that the layers behind ask of ``w``, the block ``F_kk`` of layer k is dominated
    by ``diag(t)``, ``t_i = (1 + theta) sum_j |F_ij| |a_j| / |a_i|``; then ``w_k`` is eliminated
    and ``A_k' T A_k`` added, ``a_i`` being the rows of A.

    Returns:
        Roots, ``(items, N)``.
    """
    q = gain.inputs
    out = gain.out[..., q:]
    form = out.mT @ out
    weight = gain.rows.norm(dim=-1) + 1e-150
    roots = torch.ones_like(weight)
    ends = torch.tensor([0, *gain.sizes]).cumsum(0).tolist()
    for low, high in reversed(list(itertools.pairwise(ends))):
        if high == low:
            continue
        block, cross = form[:, low:high, low:high], form[:, low:high, :low]
        w = weight[:, low:high]
        t = (1.0 + theta) * (block.abs() @ w[:, :, None])[..., 0] / w
        opened = gain.open[:, low:high]
        mean = (t * opened).sum(1, keepdim=True) / opened.sum(1, keepdim=True).clamp(min=1)
        t = torch.where(opened, t.clamp(min=_FLOOR * mean + 1e-150), torch.ones_like(t))
        roots[:, low:high] = t.sqrt()
        if low == 0:
            break
        rows = gain.rows[:, low:high, q : q + low]
        solved = torch.linalg.solve_ex(torch.diag_embed(t) - block, cross)[0]
        form = form[:, :low, :low] + cross.mT @ solved + rows.mT @ (t[:, :, None] * rows)
    return roots


def from_global(reduced: Reduced, samples: Tensor, multiplier: Sequence[Tensor]) -> Tensor:
    """Roots from a multiplier for all inputs: ``t_i = 2 T_i r_i``, padding 1.

    LipSDP's ``T_i`` stands for ``2 T_i r_i^2`` here; the balance between a neuron's input and its
    answer, whose size is proportional to ``r_i``, moves it up by one power.

    Args:
        reduced: a batch of samples.
        samples: ``(items,)``, the sample of each item.
        multiplier: per hidden layer ``(n,)``, or ``(items, n)``.
    """
    roots = []
    for t, index, radius in zip(multiplier, reduced.index, reduced.radius, strict=True):
        slots, r = index[samples], radius[samples]
        picked = t[slots] if t.ndim == 1 else t.gather(1, slots)
        roots.append(torch.where(r > 0.0, (2.0 * picked * r).sqrt(), torch.ones_like(r)))
    return torch.cat(roots, dim=1)


def best_of(gain: Gain, candidates: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Per item the roots of the least implied bound, and that bound."""
    roots, lip = candidates[0], least_lip(gain, candidates[0])
    for other in candidates[1:]:
        found = least_lip(gain, other)
        better = found < lip
        roots = torch.where(better[:, None], other, roots)
        lip = torch.where(better, found, lip)
    return roots, lip


def improved(gain: Gain, roots: Tensor, lip: Tensor) -> tuple[Tensor, Tensor]:
    """Newton steps on ``rho / mu - logdet S(rho, t)``, ``rho = s^2``, for falling mu.

        S = diag(rho I, T) - [P Q]' T [P Q] - [G H]' [G H],      A_i = e_i e_i' - a_i a_i'

    so the gradient is ``tr(A_i S^-1)`` and the Hessian
    ``tr(A_i S^-1 A_j S^-1) = E_ij^2 - X_ij^2 - X_ji^2 + Y_ij^2`` with E the block of ``S^-1`` at
    the neurons, ``Y = A S^-1 A'`` and ``X_ij = e_i' S^-1 a_j``.

    Returns:
        The better of the start and the end, per item: roots and implied bound.
    """
    if gain.rows.shape[1] == 0:
        return roots, lip
    state = _start(gain, roots, lip)
    order = gain.rows.shape[-1]
    best_roots, best = roots, lip
    for gap in _GAPS:
        mu = gap * state[:, 0] / order
        for _ in range(_STEPS):
            state = _newton(gain, state, mu)
        found_roots = state[:, 1:].clamp(min=0.0).sqrt()
        found = least_lip(gain, found_roots)
        better = found < best
        best_roots = torch.where(better[:, None], found_roots, best_roots)
        best = torch.where(better, found, best)
    return best_roots, best


def _start(gain: Gain, roots: Tensor, lip: Tensor) -> Tensor:
    """``(rho, t)`` with room; items without a finite bound start anywhere and gain nothing."""
    t = roots.square() * _profile(gain)
    raised = least_lip(gain, t.sqrt())
    use = torch.isfinite(raised)
    t = torch.where(use[:, None], t, roots.square())
    rho = torch.where(use, raised, lip).square() * _ROOM
    rho = torch.where(torch.isfinite(rho), rho, torch.ones_like(rho))
    return torch.cat([rho[:, None], t], dim=1)


def _profile(gain: Gain) -> Tensor:
    """Growth towards the input, which gives every layer room against the next."""
    depth = len(gain.sizes)
    parts = [torch.full((n,), _ROOM ** (depth - k)) for k, n in enumerate(gain.sizes)]
    return torch.cat(parts).to(torch.float64)


def _slack(gain: Gain, state: Tensor) -> Tensor:
    """S of the state."""
    q, t = gain.inputs, state[:, 1:]
    diagonal = torch.cat([state[:, :1].expand(-1, q), t], dim=1)
    rows, out = gain.rows, gain.out
    return torch.diag_embed(diagonal) - rows.mT @ (t[:, :, None] * rows) - out.mT @ out


def _newton(gain: Gain, state: Tensor, mu: Tensor) -> Tensor:
    """One damped step; items whose S has no factor stay where they are."""
    q = gain.inputs
    factor, info = torch.linalg.cholesky_ex(_slack(gain, state))
    sound = info == 0
    eye = torch.eye(factor.shape[-1], dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.where(sound[:, None, None], factor, eye))
    through = gain.rows @ inverse
    x, e = through[:, :, q:], inverse[:, q:, q:]
    y = through @ gain.rows.mT
    hessian = e.square() - x.square() - x.mT.square() + y.square()
    gradient = (y - e).diagonal(dim1=1, dim2=2)
    corner = inverse[:, :q]
    mixed = corner[:, :, q:].square().sum(1) - through[:, :, :q].square().sum(2)
    first = corner[:, :, :q].square().sum(dim=(1, 2))
    hessian = _bordered(first, mixed, hessian, gain.open)
    trace = corner[:, :, :q].diagonal(dim1=1, dim2=2).sum(1)
    full = torch.cat([(1.0 / mu - trace)[:, None], torch.where(gain.open, gradient, 0.0)], dim=1)
    step = -torch.linalg.solve_ex(hessian, full)[0]
    decrement = (-(full * step).sum(1)).clamp(min=0.0).sqrt()
    sound &= torch.isfinite(step).all(dim=1)
    length = torch.where(decrement > 0.3, 1.0 / (1.0 + decrement) * 1.5, torch.ones_like(mu))
    length = torch.where(sound, length.clamp(max=1.0), torch.zeros_like(length))
    step = torch.where(sound[:, None], step, torch.zeros_like(step))
    for _ in range(_HALVINGS):
        moved = state + length[:, None] * step
        inside = torch.linalg.cholesky_ex(_slack(gain, moved))[1] == 0
        if bool((inside | ~sound).all()):
            break
        length = torch.where(inside, length, 0.5 * length)
    return torch.where((inside & sound)[:, None], moved, state)


def _bordered(first: Tensor, mixed: Tensor, block: Tensor, opened: Tensor) -> Tensor:
    """The Hessian of ``(rho, t)``; padding gets a unit diagonal and no links."""
    both = opened[:, :, None] & opened[:, None, :]
    block = torch.where(both, block, 0.0) + torch.diag_embed((~opened).double())
    mixed = torch.where(opened, mixed, 0.0)
    top = torch.cat([first[:, None], mixed], dim=1)[:, None]
    return torch.cat([top, torch.cat([mixed[:, :, None], block], dim=2)], dim=1)
