"""The dual of ``semidefinite_dual.py`` proven through rounding, from its multipliers alone.

In the variables x = (d, p of the open neurons), all of them deviations from the sample and bounded
by ``|x_i| <= m_i`` (the ball, the box, the intervals):

1. B, the coefficients of the neurons' quadratics, Q's diagonal part and q are computed in float64
   and then taken as *definitions*.  What they miss multiplies quantities that are bounded on the
   ball, so that the true functional is at least ``L(x) - lost`` with L exactly the quadratic of
   these numbers:
   - ``z_k - z^_k`` is within r_k of ``B_k x``, layer by layer from ``|W_k| r``, the rounding of
     ``W_k`` times the map before, of z^ and a^, and of stored weights;
   - a neuron's coefficients are sums of some dozens of products, off by ``gamma`` times the same
     sum of absolute values, at the greatest ``|z|`` and ``p``;
   - entries of Q and q are sums: ``gamma |B|'|.||B|`` between the bounds of x;
2. ``L - lost >= t`` for every x where ``M = [[2 (k - lost - t), q'], [q, Q]] >= 0``, which a
   Cholesky factor of M, scaled by powers of two and less its own rounding, proves
   (``certificates/definite.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.linalg as sl

from ..certificates.definite import SLACK, ScaledLmi, failing_block, inverse_root
from ..float64 import FLOOR, U, gamma
from ..networks.layers import Array
from .semidefinite_dual import (
    PRODUCT,
    UPPER,
    Functional,
    Lagrangian,
    Multipliers,
    OnBall,
    Pixels,
    Relaxation,
)

# Roundings of a neuron's coefficients.
_TERMS = 64
# Shares of what a bound gives away that are tried as its distance from the least value, and of the
# curvatures that are added to make the matrix definite.
_SHARES, _ADDED = (1e-7, 1e-5, 1e-3), (0.0, 1e-6, 1e-4)
# A check by another order of summation needs less than this part of the margin for rounding.
_SPARE = 2.0


@dataclass(frozen=True, eq=False)
class ExactDual:
    """The dual on one ball, with a bound on everything that its numbers miss."""

    relaxation: Relaxation

    @staticmethod
    def of(ball: OnBall) -> ExactDual:
        """In the displacement itself."""
        return ExactDual(Relaxation.of(ball, ball.layers[0].weight))

    @cached_property
    def most(self) -> Array:
        """m: greatest ``|x_i|``."""
        found, relaxation = np.empty(self.relaxation.maps.shape[1]), self.relaxation
        found[: len(relaxation.ball.step)] = relaxation.ball.step
        found[relaxation.own[relaxation.open]] = relaxation.reach[relaxation.open]
        return found

    @cached_property
    def off(self) -> Array:
        """r, of the moving neurons."""
        ball, found, inner = self.relaxation.ball, [], None
        for k, layer in enumerate(ball.layers):
            if inner is None:
                r = layer.off + layer.error * SLACK * float(np.linalg.norm(ball.step))
            else:
                moved, missed, spread = inner
                lost = gamma(layer.weight.shape[1]) * spread + missed
                r = layer.off + np.abs(layer.weight) @ lost
                r = r + layer.error * SLACK * float(np.linalg.norm(moved))
            r = SLACK * r + FLOOR
            found.append(r[layer.moving])
            spread = np.abs(self.relaxation.moves[k]) @ self.most
            steep = np.maximum(np.abs(layer.below), 1.0)
            missed = np.abs(layer.slope) * r + 8.0 * U * (
                spread + steep * (np.abs(layer.at) + 2.0 * layer.reach)
            )
            missed = SLACK * missed + FLOOR
            inner = (steep * layer.reach + missed, missed, spread)
        return np.concatenate(found)

    def matrix(self, y: Multipliers, functional: Functional) -> tuple[Array, float]:
        """M for a claim of 0, and a bound on the error of half its first entry."""
        relaxation, inputs = self.relaxation, len(y.box)
        neurons = Lagrangian.of(relaxation, y.neurons, functional)
        pixels = Pixels.of(relaxation.ball, y)
        matrix, linear = neurons.quadratic(relaxation)
        places = np.arange(inputs)
        matrix[places, places] += pixels.diagonal
        linear[:inputs] += pixels.linear
        whole = np.empty((len(matrix) + 1, len(matrix) + 1))
        whole[1:, 1:], whole[0, 1:], whole[1:, 0] = matrix, linear, linear
        whole[0, 0] = 2.0 * (neurons.constant + pixels.constant)
        lost = self._of_neurons(neurons, y, functional) + self._of_pixels(y) + functional.lost
        return whole, SLACK * lost + FLOOR

    def _of_neurons(self, here: Lagrangian, y: Multipliers, functional: Functional) -> float:
        """What coefficients, maps and sums lose."""
        relaxation, reach, r = self.relaxation, self.relaxation.reach, self.off
        z = np.abs(relaxation.at) + reach
        p = np.where(relaxation.open, relaxation.positive + reach, 0.0)
        powers = np.stack([np.ones_like(z), z, p, z * z, z * p, p * p])
        sizes = np.einsum("jck,jk,ck->k", np.abs(relaxation.constraints), y.neurons, powers)
        last, (by_z, by_p) = relaxation.ball.layers[-1], relaxation.row(functional)
        row = np.abs(functional.row)
        sizes = sizes + np.abs(by_z) * z + np.abs(by_p) * p
        constant = float(row @ np.abs(last.out)) + abs(functional.value)
        # A row also loses what outputs at the sample miss.
        constant += float(row @ (np.maximum(np.abs(last.below), 1.0) * np.abs(last.at)))
        coefficients = gamma(_TERMS + len(z) + len(row)) * (float(sizes.sum()) + constant)
        bent = np.abs(here.zz) * (reach + r) + np.abs(here.zp) * p
        maps = float((np.abs(here.linear_z) + bent) @ r)
        spread = np.abs(relaxation.maps) @ self.most
        summed = np.abs(here.linear_z) * spread + np.abs(here.linear_p) * p
        summed = summed + np.abs(here.zz) * spread**2 + np.abs(here.zp) * spread * p
        summed = summed + np.abs(here.pp) * p**2
        return coefficients + maps + gamma(2 * len(z)) * float(summed.sum())

    def _of_pixels(self, y: Multipliers) -> float:
        """What sums over the inputs lose."""
        ball = self.relaxation.ball
        whole = 0.0 if ball.radius is None else y.ball * ball.radius**2
        each = float(y.box @ (ball.down + ball.up + ball.step) ** 2)
        return gamma(len(y.box) + 16) * 2.0 * (whole + each)

    def proves(self, y: Multipliers, functional: Functional, claim: float) -> bool:
        """Whether multipliers >= 0 prove the functional at least ``claim`` on the ball."""
        with np.errstate(over="ignore", invalid="ignore"):
            return _proves(*self.matrix(y, functional), claim, 1.0)

    def bound(self, y: Multipliers, functional: Functional) -> tuple[Multipliers, float]:
        """Multipliers near the given ones, of float32, and what they prove; ``-inf`` if nothing."""
        for added in _ADDED:
            near = single(self._raised(y, added))
            with np.errstate(over="ignore", invalid="ignore"):
                whole, lost = self.matrix(near, functional)
                claim = _claimed(whole, lost)
            if claim is not None:
                return near, claim
        return near, -np.inf

    def _raised(self, y: Multipliers, share: float) -> Multipliers:
        """With more curvature in all variables."""
        neurons = y.neurons.copy()
        neurons[UPPER] += share * neurons[PRODUCT]
        return replace(y, ball=(1.0 + share) * y.ball, box=(1.0 + share) * y.box, neurons=neurons)


def single(y: Multipliers) -> Multipliers:
    """As float32 holds them."""
    ball, box, neurons = (_single(np.asarray(part)) for part in (y.ball, y.box, y.neurons))
    return Multipliers(float(ball), box, neurons)


def _single(values: Array) -> Array:
    most = float(np.finfo(np.float32).max)
    return np.clip(values, 0.0, most).astype(np.float32).astype(np.float64)


def _claimed(whole: Array, lost: float) -> float | None:
    """The best bound that goes through, of some a little below the least value."""
    if not np.isfinite(whole).all():
        return None
    _, x, failed = sl.lapack.dposv(whole[1:, 1:], -whole[1:, 0], lower=1)
    if failed:
        return None
    spent = -0.5 * float(whole[0, 1:] @ x)
    least = 0.5 * float(whole[0, 0]) - lost - spent
    for share in _SHARES:
        claim = least - share * (abs(spent) + abs(least))
        if _proves(whole, lost, claim, _SPARE):
            return claim
    return None


def _proves(whole: Array, lost: float, claim: float, spare: float) -> bool:
    """Step 2."""
    first = 0.5 * whole[0, 0] - lost - claim
    first = 2.0 * (first - 4.0 * U * (abs(whole[0, 0]) + lost + abs(claim)))
    matrix = whole.copy()
    matrix[0, 0] = first
    diagonal = np.diag(matrix)
    if not (np.isfinite(matrix).all() and diagonal.min() > 0.0):
        return False
    scale = inverse_root(diagonal)
    lmi = ScaledLmi((matrix * scale[:, None] * scale,), (), 0.0)
    return failing_block(lmi, spare * lmi.shift()) is None


def row_of(y: Multipliers, ball: OnBall) -> Array:
    """All multipliers as a witness holds them: ball, box, then six for each neuron; float32."""
    moving = np.concatenate([layer.moving for layer in ball.layers])
    neurons = np.zeros((6, len(moving)))
    neurons[:, moving] = y.neurons
    return np.concatenate([[y.ball], y.box, neurons.ravel()]).astype(np.float32)


def multipliers_of(row: Array, relaxation: Relaxation) -> Multipliers:
    """Those of a witness; what the relaxation does not have counts as 0."""
    ball, inputs = relaxation.ball, len(relaxation.ball.up)
    moving = np.concatenate([layer.moving for layer in ball.layers])
    row = np.maximum(row.astype(np.float64), 0.0)
    neurons = row[1 + inputs :].reshape(6, -1)[:, moving] * relaxation.allowed
    return Multipliers(float(row[0]), row[1 : 1 + inputs], neurons)
