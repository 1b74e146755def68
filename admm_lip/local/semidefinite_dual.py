"""The dual of a semidefinite relaxation: one functional on one ball, all hidden layers at once.

Linear and quadratic bounds pass one layer at a time, and each pass forgets something.  Here every
fact about the ball keeps a multiplier of its own, and one Lagrangian holds all of them (A.
Raghunathan, J. Steinhardt, P. Liang, NeurIPS 2018; its dual is S. Dathathri et al., NeurIPS 2020):

    c a_L + v  >=  min over all d, z, p of  c a_L + v - sum_j y_j C_j,        for any y_j >= 0,

with d the displacement of the input, z the pre-activations, p = max(z, 0), ``a = b z + (1 - b) p``
for an activation of slope b below 0 and 1 above, and C_j >= 0 wherever the network can be:

    ball      r^2 - |d|^2                     l2 only
    box       (d_i + s_i)(t_i - d_i)          -s <= d <= t: the admissible inputs, and the ball
    on an open neuron, l < 0 < u:
    product   p (z - p)
    above 0   p
    above z   p - z
    upper     p (u - p)
    lower     (z - p)(l - (z - p))
    chord     u (z - l) - (u - l) p
    on another that can move:
    upper     (z - l)(u - z)

Affine maps are exact: with x the variables, here d (or coordinates of what the first layer sees of
it) and then p of the open neurons, all as deviations from the sample, ``z_k - z^_k = B_k x``.  The
Lagrangian is a quadratic ``x'Qx/2 + q'x + k``, of least value ``k - q'Q^-1 q/2`` where Q > 0.
NumPy alone; rounding is for ``semidefinite_proof.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..certificates.definite import SLACK
from ..float64 import FLOOR
from ..networks.layers import Array

Flags = npt.NDArray[np.bool_]
# Rows of the multipliers of a neuron; which of them others than open ones have.
PRODUCT, ABOVE_ZERO, ABOVE_Z, UPPER, LOWER, CHORD = range(6)


@dataclass(frozen=True, eq=False)
class LayerOnBall:
    """One hidden layer on one ball; arrays ``(n,)`` unless said.

    Attributes:
        weight: ``(n, n_in)``; of the first layer, of inputs as the ball measures them.
        below: slopes below 0; above it is 1.
        low: least pre-activations on the ball, and
        high: greatest; a neuron is open where they enclose a kink.
        at: pre-activations at the sample, z^, and
        out: outputs there, a^: definitions.
        off: bound on ``|W a^ + b - z^|``.
        error: bound on the Frobenius norm of stored minus exact weights.
    """

    weight: Array
    below: Array
    low: Array
    high: Array
    at: Array
    out: Array
    off: Array
    error: float

    @property
    def open(self) -> Flags:
        """Which neurons have a kink in their interval."""
        kink: Flags = (self.low < 0.0) & (self.high > 0.0) & (self.below != 1.0)
        return kink

    @property
    def slope(self) -> Array:
        """What a gains by z, p apart: b where z can be below 0, else 1."""
        return np.where((self.low >= 0.0) & ~self.open, 1.0, self.below)

    @property
    def moving(self) -> Flags:
        """Which neurons are not constant."""
        moves: Flags = self.open | (self.slope != 0.0)
        return moves

    @property
    def reach(self) -> Array:
        """Greatest ``|z - z^|``; p moves no further."""
        return SLACK * np.maximum(self.high - self.at, self.at - self.low) + FLOOR


@dataclass(frozen=True, eq=False)
class OnBall:
    """A network on one ball.

    Attributes:
        layers: the hidden ones.
        down: s, how far each input may fall, ``(n_0,)``, and
        up: t, how far it may rise; neither is above r.
        radius: r; ``None`` where the box is all there is (linf).
    """

    layers: tuple[LayerOnBall, ...]
    down: Array
    up: Array
    radius: float | None

    @property
    def step(self) -> Array:
        """Greatest ``|d_i|``."""
        return np.maximum(self.down, self.up)

    def displaced(self, functional: Functional, d: Array) -> float:
        """The functional at a displacement, but for rounding."""
        moved = d
        for layer in self.layers:
            z = layer.at + layer.weight @ moved
            moved = np.where(z > 0.0, z, layer.below * z) - layer.out
        return float(functional.row @ (layer.out + moved) + functional.value)


@dataclass(frozen=True, eq=False)
class Functional:
    """``row a_L + value``, which the functional of the outputs is above but for ``lost``."""

    row: Array
    value: float
    lost: float = 0.0


@dataclass(frozen=True, eq=False)
class Multipliers:
    """Multipliers >= 0: of the ball, of the box ``(n_0,)``, of the neurons ``(6, moving)``."""

    ball: float
    box: Array
    neurons: Array


@dataclass(frozen=True, eq=False)
class Relaxation:
    """The moving neurons of all layers, ``(K,)``, and their maps from the variables.

    Attributes:
        ball: where.
        maps: B, ``(K, variables)``.
        moves: of each layer ``(n, variables)``: deviations of its outputs.
        own: of open neurons the variable p, -1 of others, ``(K,)``.
    """

    ball: OnBall
    maps: Array
    moves: tuple[Array, ...]
    own: Array

    @staticmethod
    def of(ball: OnBall, base: Array) -> Relaxation:
        """In the variables of a base.

        Args:
            ball: the network there.
            base: from the first variables to the first pre-activations, ``(n_1, n)``.
        """
        inner, opened = base.shape[1], sum(int(layer.open.sum()) for layer in ball.layers)
        before = np.zeros((0, inner + opened))
        maps, moves, own, place = [], [], [], inner
        for k, layer in enumerate(ball.layers):
            z = layer.weight @ before if k else np.pad(base, ((0, 0), (0, opened)))
            kinks = np.flatnonzero(layer.open)
            columns = np.full(len(layer.at), -1)
            columns[kinks] = place + np.arange(len(kinks))
            before = layer.slope[:, None] * z
            before[kinks, columns[kinks]] += 1.0 - layer.below[kinks]
            place += len(kinks)
            moves.append(before)
            maps.append(z[layer.moving])
            own.append(columns[layer.moving])
        return Relaxation(ball, np.concatenate(maps), tuple(moves), np.concatenate(own))

    def of_neurons(self, name: str) -> Array:
        """A fact about every moving neuron."""
        layers = self.ball.layers
        return np.concatenate([getattr(layer, name)[layer.moving] for layer in layers])

    @cached_property
    def at(self) -> Array:
        """z^."""
        return self.of_neurons("at")

    @cached_property
    def positive(self) -> Array:
        """p at the sample."""
        return np.maximum(self.at, 0.0)

    @cached_property
    def reach(self) -> Array:
        """Greatest ``|z - z^|``."""
        return self.of_neurons("reach")

    @cached_property
    def open(self) -> Flags:
        """Which neurons have a variable p."""
        opened: Flags = self.own >= 0
        return opened

    @cached_property
    def allowed(self) -> Flags:
        """Which multipliers there are, ``(6, K)``."""
        found = np.repeat(self.open[None], 6, axis=0)
        found[UPPER] = True
        return found

    @cached_property
    def constraints(self) -> Array:
        """The C_j as rows over (1, z, p, z^2, z p, p^2), ``(6, 6, K)``."""
        low, high = self.of_neurons("low"), self.of_neurons("high")
        one, no = np.ones_like(low), np.zeros_like(low)
        ranged = np.stack([-low * high, low + high, no, -one, no, no])
        return np.stack(
            [
                np.stack([no, no, no, no, one, -one]),
                np.stack([no, no, one, no, no, no]),
                np.stack([no, -one, one, no, no, no]),
                np.where(self.open, np.stack([no, no, high, no, no, -one]), ranged),
                np.stack([no, low, -low, -one, 2.0 * one, -one]),
                np.stack([-high * low, high, low - high, no, no, no]),
            ]
        )

    def row(self, functional: Functional) -> tuple[Array, Array]:
        """The functional's coefficients of z and p of every moving neuron."""
        *inner, last = self.ball.layers
        before = [np.zeros(layer.moving.sum()) for layer in inner]
        row = np.concatenate([*before, functional.row[last.moving]])
        kinked = np.where(self.open, 1.0 - self.of_neurons("below"), 0.0)
        return row * self.of_neurons("slope"), row * kinked


@dataclass(frozen=True, eq=False)
class Lagrangian:
    """A quadratic in the deviations e of z and f of p, neuron by neuron, ``(K,)`` each.

    ``constant + sum of linear_z e + linear_p f + (zz e^2 + 2 zp e f + pp f^2) / 2``.
    """

    constant: float
    linear_z: Array
    linear_p: Array
    zz: Array
    zp: Array
    pp: Array

    @staticmethod
    def of(relaxation: Relaxation, y: Array, functional: Functional) -> Lagrangian:
        """With multipliers ``(6, K)``."""
        one, z, p, zz, zp, pp = -np.einsum("jk,jck->ck", y, relaxation.constraints)
        at, positive = relaxation.at, relaxation.positive
        by_z, by_p = relaxation.row(functional)
        each = one + (z + zz * at) * at + (p + zp * at + pp * positive) * positive
        out = relaxation.ball.layers[-1].out
        return Lagrangian(
            float(each.sum() + functional.row @ out) + functional.value,
            by_z + z + 2.0 * zz * at + zp * positive,
            by_p + p + 2.0 * pp * positive + zp * at,
            2.0 * zz,
            zp,
            2.0 * pp,
        )

    def quadratic(self, relaxation: Relaxation) -> tuple[Array, Array]:
        """Q and q of these neurons, in the variables."""
        maps, opened = relaxation.maps, np.flatnonzero(relaxation.open)
        own = relaxation.own[opened]
        matrix = (maps * self.zz[:, None]).T @ maps
        crossed = self.zp[opened, None] * maps[opened]
        matrix[own] += crossed
        matrix[:, own] += crossed.T
        matrix[own, own] += self.pp[opened]
        linear = self.linear_z @ maps
        linear[own] += self.linear_p[opened]
        return matrix, linear


@dataclass(frozen=True, eq=False)
class Pixels:
    """What ball and box say of the displacement: ``constant + linear d + diagonal d^2 / 2``."""

    constant: float
    linear: Array
    diagonal: Array

    @staticmethod
    def of(ball: OnBall, y: Multipliers) -> Pixels:
        """With these multipliers."""
        whole = 0.0 if ball.radius is None else y.ball * ball.radius**2
        return Pixels(
            -whole - float(y.box @ (ball.down * ball.up)),
            -y.box * (ball.up - ball.down),
            2.0 * (y.box + (0.0 if ball.radius is None else y.ball)),
        )
