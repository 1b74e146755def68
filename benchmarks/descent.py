"""The honest rival of a semidefinite solver: plain descent on the multipliers.

Adam on ``log T`` through the bound that T implies (the backward block elimination, differentiated
by torch), from the best of a few closed forms.  It needs no Schur complement and proves no gap; on
shallow wide networks it is hard to beat.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Descent:
    """Best bound found, when it was found, and when ``target`` was first met (``None``: never)."""

    lip: float
    seconds: float
    seconds_to_target: float | None
    steps: int


def log_lip_sq(weights: Sequence[Tensor], log_t: Sequence[Tensor]) -> Tensor | None:
    """``log L^2`` implied by ``exp(log_t)``, slopes [0, 1]; ``None`` if it proves nothing."""
    schur = torch.diag(2.0 * log_t[-1].exp()) - weights[-1].T @ weights[-1]
    for k in range(len(log_t) - 1, -1, -1):
        factor, info = torch.linalg.cholesky_ex(schur)
        if int(info):
            return None
        half = torch.linalg.solve_triangular(
            factor, log_t[k].exp()[:, None] * weights[k], upper=False
        )
        if k:
            schur = torch.diag(2.0 * log_t[k - 1].exp()) - half.T @ half
    gram = half @ half.T if half.shape[0] <= half.shape[1] else half.T @ half
    largest: Tensor = torch.linalg.eigvalsh(gram)[-1]
    return largest.log()


def forward_start(weights: Sequence[Tensor], theta: float) -> list[Tensor]:
    """``log T`` in closed form (the idea of ECLipsE-Fast; theta = 1 is its formula), all layers 1.

    ``Q = W X^{-1} W', T = theta I / ||Q||, X+ = 2 T - T Q T`` from ``X = I``; the last layer fixes
    the common factor, which must make ``2 T_l - W_l' W_l`` positive definite.
    """
    state = torch.eye(weights[0].shape[1], dtype=torch.float64)
    logs = []
    for w in weights[:-1]:
        q = w @ torch.linalg.solve(state, w.T)
        t = theta / float(torch.linalg.eigvalsh(q)[-1])
        state = 2.0 * t * torch.eye(len(w), dtype=torch.float64) - t * t * q
        logs.append(torch.full((len(w),), t, dtype=torch.float64).log())
    last = weights[-1]
    rho = torch.linalg.eigvalsh(last @ torch.linalg.solve(state, last.T))[-1]
    return [v + (1.001 * rho).log() for v in logs]


def best_start(weights: Sequence[Tensor]) -> list[Tensor]:
    """The forward start with the least bound among a few theta."""
    starts = [forward_start(weights, theta) for theta in (1.0, 1.1, 1.2, 1.3)]
    values = [log_lip_sq(weights, s) for s in starts]
    known = [(float(v), k) for k, v in enumerate(values) if v is not None]
    return starts[min(known)[1]]


def descend(weights: Sequence[Tensor], target: float, seconds: float, lr: float = 0.05) -> Descent:
    """Minimise until ``target`` is met, the time is up, or the step size has become tiny."""
    first = weights[0]
    if first.shape[1] > first.shape[0]:
        first = torch.linalg.qr(first.T, mode="r")[1].T
    weights = [first, *weights[1:]]
    begun = time.perf_counter()
    best_t = best_start(weights)
    best, steps, idle, met = float("inf"), 0, 0, None
    variables = [t.clone().requires_grad_(True) for t in best_t]
    optimizer = torch.optim.Adam(variables, lr=lr)
    while lr > 1e-5 and met is None and time.perf_counter() - begun < seconds:
        steps += 1
        value = log_lip_sq(weights, variables)
        idle += 1
        if value is not None and float(value.detach()) < best - 1e-7:
            best, idle = float(value.detach()), 0
            best_t = [v.detach().clone() for v in variables]
            if best <= 2.0 * torch.tensor(target).log():
                met = time.perf_counter() - begun
        if value is None or idle > 40:
            lr, idle = lr / 2.0, 0
            variables = [t.clone().requires_grad_(True) for t in best_t]
            optimizer = torch.optim.Adam(variables, lr=lr)
            continue
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
    lip = torch.tensor(best / 2.0).exp().item()
    return Descent(lip, time.perf_counter() - begun, met, steps)
