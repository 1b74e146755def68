"""Search for the multipliers of the dual in ``semidefinite_dual.py``: Adam on their logarithms.

1. The displacement leaves by its diagonal: with W_1 = M V' (V orthonormal, w = V'd what the first
   layer sees of d) and D, g the pixels' curvature and slope,

       min over d with V'd = w of d'Dd/2 + g'd  =  (w + h)'H(w + h)/2 - g'D^-1 g/2,
       H = (V'D^-1 V)^-1,   h = V'D^-1 g;

2. one Cholesky factor of Q in (w, p) gives the minimiser x*, and the derivative of the bound in a
   multiplier is ``-C_j(x*)`` (envelope theorem): no factorisation is differentiated;
3. where Q is not positive definite, the multipliers go most of the way back to the last good ones;
4. x* is an input too: where the functional is not above 0 there, no bound is, and nothing more is
   sought.

What is found is proven by itself (``semidefinite_proof.py``).  Classes of a sample come one after
another, the furthest from its proof first, and the first that fails ends the sample: it is not
certified whatever the others are.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.linalg as sl
import torch
from torch import Tensor

from ..float64 import FLOOR
from ..networks.layers import Array
from .quadratic_proof import OpenPass
from .semidefinite_dual import (
    ABOVE_Z,
    ABOVE_ZERO,
    PRODUCT,
    Flags,
    Functional,
    Lagrangian,
    Multipliers,
    OnBall,
    Pixels,
    Relaxation,
)
from .semidefinite_proof import ExactDual, row_of
from .semidefinite_witness import Duals, Relaxations

# Rate of Adam, and how it forgets.
_RATE, _BETAS = 0.2, (0.8, 0.9)
# The way back to the last good multipliers.
_BACK = 0.7
# Start: curvature of a layer over what the next one needs, the ball's over the first layer's, and
# the multipliers without a part in it.
_NEXT, _BALL, _FAINT = 0.83, 2.08, math.exp(-4.0)
# Share of what the bound gave away that it must be above 0 by.
_CLEAR = 1e-5


class Seen(NamedTuple):
    """The Lagrangian's minimum, the displacement there, the derivatives, and what it gave away."""

    bound: float
    d: Array
    gradient: Multipliers
    spent: float


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """``W_1 = base V'``."""

    base: Array
    v: Array

    @staticmethod
    def of(weight: Array) -> FirstLayer:
        """By its singular vectors."""
        u, s, v = np.linalg.svd(weight, full_matrices=False)
        return FirstLayer(u * s, v.T)


def raised(
    passing: OpenPass,
    rows: Tensor,
    asked: Tensor,
    margin: Tensor,
    left: Tensor,
    budget: tuple[int, float],
) -> tuple[Tensor, Duals | None]:
    """Margins raised by duals where they are asked for, and the multipliers that prove them.

    Args:
        passing: the pass of the samples.
        rows: ``(batch, m, n_out)``.
        asked: ``(batch, m)``.
        margin: proven so far, ``(batch, m)``.
        left: ``(batch,)``, int32: the sizes of relaxations that are not taken are noted there.
        budget: steps of the search, for each functional, and ``time.monotonic()`` after which no
            further functional is begun.
    """
    steps, deadline = budget
    asked, margin, found = passing.among(asked), margin.clone(), {}
    relaxations, first = Relaxations(passing), None
    for sample in asked.any(dim=1).nonzero()[:, 0].tolist():
        ball = relaxations.ball(sample)
        if ball is None:
            left[sample] = relaxations.size(sample)
            continue
        if not all(layer.moving.any() for layer in ball.layers):
            continue
        first = first or FirstLayer.of(relaxations.weights[0])
        hardest = torch.where(asked[sample], margin[sample], math.inf).argsort()
        for item in hardest[: int(asked[sample].sum())].tolist():
            if time.monotonic() >= deadline:
                break
            functional = relaxations.functional(sample, rows[sample, item])
            row, bound = _stated(ball, searched(ball, first, functional, steps), functional)
            if row is not None and bound > margin[sample, item]:
                margin[sample, item], found[sample, item] = bound, row
            if not bound > 0.0:
                break
    if not found:
        return margin, None
    items = torch.zeros_like(asked)
    items[tuple(zip(*found, strict=True))] = True
    stated = [found[sample, item] for sample, item in items.nonzero().tolist()]
    return margin, Duals(items, torch.from_numpy(np.stack(stated)))


def _stated(
    ball: OnBall, found: Multipliers | None, functional: Functional
) -> tuple[Array | None, float]:
    """A row of a witness, and what it proves."""
    if found is None:
        return None, -math.inf
    y, bound = ExactDual.of(ball).bound(found, functional)
    return row_of(y, ball), bound


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def searched(
    ball: OnBall, first: FirstLayer, functional: Functional, steps: int
) -> Multipliers | None:
    """Multipliers that prove a functional positive on a ball, or the best in so many steps.

    ``None`` where a displacement shows that there are none.
    """
    relaxation = Relaxation.of(ball, first.base)
    start = _start(relaxation, functional)
    pixels = [ball.radius is not None, *np.ones(len(ball.up), dtype=bool)]
    allowed = np.concatenate([pixels, relaxation.allowed.ravel()])
    free = np.log(np.maximum(_flat(start)[allowed], FLOOR))
    adam, good, best, highest = _Adam(free), None, start, -math.inf
    # While nothing is good: more curvature of the displacement.
    more = np.where(np.arange(len(free)) < sum(pixels), math.log(2.0), 0.0)
    for k in range(steps):
        y = _unflat(np.exp(free), allowed, relaxation)
        seen = minimum(relaxation, first.v, functional, y)
        if seen is None:
            free = free + more if good is None else good + (1.0 - _BACK) * (free - good)
            continue
        good = free
        if seen.bound > highest:
            best, highest = y, seen.bound
        if seen.bound > _CLEAR * seen.spent:
            break
        if not ball.displaced(functional, _on_ball(ball, seen.d)) > 0.0:
            return None
        share = min(1.0, 2.0 * (1.0 - k / steps))
        free = free + share * adam.step(_flat(seen.gradient)[allowed] * np.exp(free))
    return best


def minimum(
    relaxation: Relaxation, v: Array, functional: Functional, y: Multipliers
) -> Seen | None:
    """Steps 1 and 2; ``None`` where Q is not positive definite."""
    neurons = Lagrangian.of(relaxation, y.neurons, functional)
    matrix, linear = neurons.quadratic(relaxation)
    pixels, size = Pixels.of(relaxation.ball, y), v.shape[1]
    scaled = v / pixels.diagonal[:, None]
    inverse, failed = sl.lapack.dpotrf(v.T @ scaled, lower=1)
    if failed:
        return None
    curved, _ = sl.lapack.dpotri(inverse, lower=1)
    curved = np.tril(curved) + np.tril(curved, -1).T
    shift = scaled.T @ pixels.linear
    pull = curved @ shift
    matrix[:size, :size] += curved
    linear[:size] += pull
    constant = neurons.constant + pixels.constant + 0.5 * float(shift @ pull)
    constant -= 0.5 * float(pixels.linear**2 @ (1.0 / pixels.diagonal))
    factor, failed = sl.lapack.dpotrf(matrix, lower=1)
    if failed:
        return None
    x, _ = sl.lapack.dpotrs(factor, -linear, lower=1)
    spent = -0.5 * float(linear @ x)
    if not math.isfinite(constant - spent):
        return None
    d = scaled @ (curved @ (x[:size] + shift)) - pixels.linear / pixels.diagonal
    return Seen(constant - spent, d, _derivatives(relaxation, x, d), spent)


def _derivatives(relaxation: Relaxation, x: Array, d: Array) -> Multipliers:
    """``-C_j`` at the minimiser."""
    ball, z = relaxation.ball, relaxation.at + relaxation.maps @ x
    p = np.where(relaxation.open, relaxation.positive + x[relaxation.own], 0.0)
    powers = np.stack([np.ones_like(z), z, p, z * z, z * p, p * p])
    each = np.einsum("jck,ck->jk", relaxation.constraints, powers)
    whole = 0.0 if ball.radius is None else ball.radius**2 - float(d @ d)
    return Multipliers(-whole, -(d + ball.down) * (ball.up - d), -each)


def _start(relaxation: Relaxation, functional: Functional) -> Multipliers:
    """Curvatures from what each layer passes on; ``p (e - f) >= 0`` of deviations in products."""
    ball, layers = relaxation.ball, relaxation.ball.layers
    norms, seen = [], np.ones_like(ball.up, dtype=bool)
    for layer in layers:
        norms.append(float(np.linalg.norm(layer.weight[layer.moving][:, seen], 2)))
        seen = layer.moving
    step = float(np.linalg.norm(ball.step))
    step = step if ball.radius is None else min(step, ball.radius)
    curvature = float(np.linalg.norm(functional.row)) / (step * math.prod(norms) + FLOOR)
    product = []
    for layer, norm in zip(reversed(layers), reversed(norms), strict=True):
        product.append(np.full(layer.moving.sum(), curvature))
        curvature *= _NEXT * norm**2
    every = np.concatenate(product[::-1])
    curvature *= _BALL
    neurons = np.repeat(_FAINT * every[None], 6, axis=0)
    neurons[PRODUCT] = every
    neurons[ABOVE_ZERO] = every * np.maximum(-relaxation.at, _FAINT**2 * relaxation.reach)
    neurons[ABOVE_Z] = every * np.maximum(relaxation.positive, _FAINT**2 * relaxation.reach)
    box = curvature * (1.0 if ball.radius is None else _FAINT)
    return Multipliers(curvature, np.full(len(ball.up), box), neurons)


def _on_ball(ball: OnBall, d: Array) -> Array:
    """The displacement, stretched or shortened to the ball and cut to the box."""
    length = float(np.linalg.norm(d))
    share = 1.0 if ball.radius is None else ball.radius / (length + FLOOR)
    return np.clip(share * d, -ball.down, ball.up)


def _flat(y: Multipliers) -> Array:
    return np.concatenate([[y.ball], y.box, y.neurons.ravel()])


def _unflat(values: Array, allowed: Flags, relaxation: Relaxation) -> Multipliers:
    """Of the allowed multipliers, zeros elsewhere."""
    flat = np.zeros(len(allowed))
    flat[allowed] = values
    inputs = len(relaxation.ball.up)
    neurons = flat[1 + inputs :].reshape(relaxation.allowed.shape)
    return Multipliers(float(flat[0]), flat[1 : 1 + inputs], neurons)


class _Adam:
    """Upwards (D. Kingma, J. Ba, 2015)."""

    def __init__(self, free: Array) -> None:
        self.first, self.second = np.zeros_like(free), np.zeros_like(free)
        self.steps = 0

    def step(self, gradient: Array) -> Array:
        """What to add."""
        self.steps += 1
        self.first += (1.0 - _BETAS[0]) * (gradient - self.first)
        self.second += (1.0 - _BETAS[1]) * (gradient**2 - self.second)
        mean = self.first / (1.0 - _BETAS[0] ** self.steps)
        size = np.sqrt(self.second / (1.0 - _BETAS[1] ** self.steps))
        return _RATE * mean / (size + FLOOR)
