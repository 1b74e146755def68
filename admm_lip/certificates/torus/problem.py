"""What is sought on a torus: the least ``L^2`` of the matrix inequality, with its barrier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...networks.layers import Array
from ..claim_matrices import Matrices
from .barrier import Backward, Forward, activated, backward, forward, real_product, second
from .covariance import adjoint
from .stages import Activation, Stage, aliases_of, head_stages, parts_of, ports, torus_stages
from .steps import TorusChain, half_of
from .sums import Derivatives, Sums

# Complex numbers in the largest arrays of one part of the frequencies.
_ENTRIES = 2**21


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the frequencies: their stages, weights and what enters the head."""

    stages: list[Stage]
    weights: Array
    ports: Any


@dataclass(frozen=True, eq=False)
class Passing:
    """All stages passed at some multipliers: ``end`` is P at the output."""

    parts: list[Forward]
    head: Forward | None
    ends: list[Any]
    log_det: float


# From the place of an activation, P in front of it, weights, and itself, to P behind it.
Through = Callable[[int, list[Any], list[Array], Activation], list[Any]]


# Frequencies by their places among all of ``steps.half_of``.
Places = npt.NDArray[np.intp]


class Problem:
    """A chain with its head, at all frequencies."""

    def __init__(
        self, chain: TorusChain, head: Matrices | None, places: Places | None = None
    ) -> None:
        self.chain = chain
        aliases, channels = aliases_of(chain), chain.channels
        self.parts = [
            Part(
                torus_stages(chain, last),
                weights,
                None if head is None else ports(chain, head.weights[0], last),
            )
            for last, weights in parts_of(chain, _ENTRIES, places)
        ]
        self.head = None if head is None else head_stages(head)
        self.first = np.broadcast_to(np.eye(channels, dtype=complex), (aliases, channels, channels))
        acts = [s.activation for s in (*self.parts[0].stages, *(self.head or ())) if s.activation]
        self.sizes = [len(act.rows) for act in acts]
        self.torus = len(chain.activations)
        self.inputs = sum(float(part.weights.sum()) for part in self.parts) * aliases * channels
        self.dimension = self.inputs + float(np.dot(self._copies(), self.sizes))

    def only(self, places: Places) -> Problem:
        """The same at some of the frequencies, of a chain without a head."""
        return Problem(self.chain, None, places)

    def coarse(self, side: int) -> Places:
        """Which of the frequencies are nearest to those of a grid of so many points per side."""
        frequencies, grid = half_of(self.chain.last_grid)[0], np.array(self.chain.last_grid)
        points = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1)
        wanted = np.round(points.reshape(-1, 2) * (grid / side))
        away = np.abs(frequencies[:, None] - wanted)
        return np.unique(np.minimum(away, grid - away).sum(axis=2).argmin(axis=0))

    def failing(self, t: Sequence[Array], squared: float, most: int) -> Places:
        """Those of the frequencies where the multipliers prove less than a square, worst first."""
        worst: list[Array] = []
        for part in self.parts:
            found = np.zeros(len(part.weights))
            p = np.repeat(self.first[None], len(part.weights), axis=0)
            for k, stage in enumerate(part.stages):
                p = p if stage.linear is None else stage.linear.forward(p)
                if stage.activation is None:
                    break
                rows, root = stage.activation.rows, np.sqrt(t[k])
                inner = root[:, None] * p[:, :, rows[:, None], rows] * root
                over = np.linalg.eigvalsh(inner)[..., -1].max(axis=1) / 2.0
                # Where nothing is proven, as if the neurons of the worst were left out.
                bad = over >= 1.0
                found = np.maximum(found, np.where(bad, 1e3 * over, 0.0))
                p[bad] *= 0.5 / over[bad, None, None, None]
                # Not None: all of them are away from the edge by now.
                p = activated(p, stage.activation, root)[1]  # type: ignore[index]
            found = np.maximum(found, np.linalg.eigvalsh(p[:, 0])[:, -1] / squared)
            worst.append(found)
        values = np.concatenate(worst)
        order = np.argsort(-values)[:most]
        return order[values[order] > 1.0 + 1e-9]

    def _copies(self) -> list[float]:
        """How many neurons each multiplier stands for, in the weights of the barrier."""
        stages = [s for s in self.parts[0].stages if s.activation]
        count = sum(float(part.weights.sum()) for part in self.parts)
        found, aliases = [], self.first.shape[0]
        for stage in stages:
            aliases //= 1 if stage.linear is None else stage.linear.fold
            found.append(count * aliases)
        return found + [1.0] * (len(self.sizes) - len(found))

    def split(self, values: Array) -> list[Array]:
        """One array per activation."""
        return np.split(values, np.cumsum(self.sizes)[:-1])

    def walk(self, through: Through) -> None:
        """Covariances carried through all stages, layer by layer."""
        weights = [part.weights for part in self.parts]
        p = [np.repeat(self.first[None], len(own), axis=0) for own in weights]
        done = 0
        for place in range(len(self.parts[0].stages)):
            stages = [part.stages[place] for part in self.parts]
            p = [
                one if at.linear is None else at.linear.forward(one)
                for one, at in zip(p, stages, strict=True)
            ]
            if stages[0].activation is not None:
                p, done = through(done, p, weights, stages[0].activation), done + 1
        if self.head is None:
            return
        p, weights = [self._gathered(p)], [np.ones(1)]
        for stage in self.head:
            p = p if stage.linear is None else [stage.linear.forward(p[0])]
            if stage.activation is not None:
                p, done = through(done, p, weights, stage.activation), done + 1

    def start(self, alike: bool) -> list[Array]:
        """``T^1/2 P_JJ T^1/2 <= 1``, layer by layer: every slack is at least T.

        Args:
            alike: all entries of a layer, which proves the product of norms at least; else as the
                channels' own sizes are.
        """
        found: list[Array] = []

        def through(k: int, p: list[Any], weights: list[Array], act: Activation) -> list[Any]:
            inner = [one[:, :, act.rows[:, None], act.rows] for one in p]
            size = np.ones(len(act.rows)) if alike else _powers(inner, weights)
            root = 1.0 / np.sqrt(size)
            most = max(float(np.linalg.eigvalsh(root[:, None] * one * root).max()) for one in inner)
            found.append(1.0 / (size * most))
            behind = [activated(one, act, np.sqrt(found[-1])) for one in p]
            if any(one is None for one in behind):
                raise np.linalg.LinAlgError("nothing is definite: the scales of layers overflow")
            return [one[1] for one in behind if one is not None]

        self.walk(through)
        return found

    def loudest(self) -> list[Array]:
        """``E z_i^2`` of a unit signal loudest at i, all activations at the steeper of their ends.

        Where all are fed by one number (``measure.py``), signals alike would cancel: there every
        activation is at one end or the other at random.
        """
        found: list[Array] = []

        def through(k: int, p: list[Any], weights: list[Array], act: Activation) -> list[Any]:
            each = (np.einsum("faii->fai", one[:, :, act.rows[:, None], act.rows]) for one in p)
            found.append(np.max([one.real.max(axis=(0, 1)) for one in each], axis=0))
            low, high = act.least[act.rows], act.least[act.rows] + act.span
            slope = act.least.copy()
            if self.chain.channels == 1 and (low == -high).all():
                return [np.diag(high**2) * one for one in p]
            slope[act.rows] = np.where(-low > high, low, high)
            return [slope[:, None] * one * slope for one in p]

        self.walk(through)
        return found

    def _gathered(self, p: Sequence[Any]) -> Any:
        """What enters the head."""
        total = 0.0
        for part, one in zip(self.parts, p, strict=True):
            each = (part.ports @ one[:, 0] @ adjoint(part.ports)).real
            total = total + np.einsum("f,fij->ij", part.weights, each)
        return np.asarray(total)[None, None]

    def forward(self, t: Sequence[Array]) -> Passing | None:
        """P everywhere; ``None`` where the inequality does not hold."""
        found, log_det = [], 0.0
        for part in self.parts:
            p = np.repeat(self.first[None], len(part.weights), axis=0)
            one = forward(part.stages, p, t[: self.torus])
            if one is None:
                return None
            found.append(one)
            log_det += float(part.weights @ one.log_det)
        if self.head is None:
            return Passing(found, None, [one.p[:, 0] for one in found], log_det)
        behind = forward(self.head, self._gathered([one.p for one in found]), t[self.torus :])
        if behind is None:
            return None
        return Passing(found, behind, [behind.p[:, 0]], log_det + float(behind.log_det[0]))

    def squared(self, passing: Passing) -> float:
        """``L^2`` that the multipliers prove."""
        return max(float(np.linalg.eigvalsh(p).max()) for p in passing.ends)

    def outputs(self, passing: Passing) -> float:
        """How many rows P has at the output, all frequencies together."""
        return float(sum(w.sum() * p.shape[-1] for w, p in self.at_end(passing)))

    def loudness(self, passing: Passing) -> float:
        """The trace of P at the output."""
        return sum(float(w @ np.einsum("fii->f", p).real) for w, p in self.at_end(passing))

    def at_end(self, passing: Passing) -> list[tuple[Array, Any]]:
        """P at the output with the weights of its frequencies, part by part."""
        return list(zip(self._weights(), passing.ends, strict=True))

    def _weights(self) -> list[Array]:
        """Of the outputs."""
        return [p.weights for p in self.parts] if self.head is None else [np.ones(1)]

    def log_det(self, passing: Passing, s: float) -> float:
        """``log det F``, minus infinity where F is not definite."""
        found = passing.log_det
        for p, weights in zip(passing.ends, self._weights(), strict=True):
            try:
                factor = np.linalg.cholesky(np.eye(p.shape[-1]) - s * p)
            except np.linalg.LinAlgError:
                return -math.inf
            pivots = np.einsum("fii->fi", factor).real
            if not (pivots > 0.0).all():
                return -math.inf
            found += 2.0 * float(weights @ np.log(pivots).sum(axis=1))
        return found

    def derivatives(self, passing: Passing, s: float, eta: float = 1.0) -> Derivatives:
        """First and second ones, of ``log det F - (1 - eta) log det A``."""
        if self.head is None:
            return self._headless(passing, s, eta)
        return self._headed(passing, s, eta)

    def _headless(self, passing: Passing, s: float, eta: float) -> Derivatives:
        sums = Sums(self.sizes)
        for part, one in zip(self.parts, passing.parts, strict=True):
            _ending(sums, one, part.weights, s, eta, 0)
        return sums.found()

    def _headed(self, passing: Passing, s: float, eta: float) -> Derivatives:
        assert passing.head is not None
        sums, rest = Sums(self.sizes), 1.0 - eta
        head, lam, n_y = _ending(sums, passing.head, np.ones(1), s, eta, self.torus)
        # What the head knows of what enters it: without the output, and with it.
        out = head.port[0, 0]
        without = head.lam[0, 0] if head.lam is not None else np.zeros((len(out), len(out)))
        inner, y = without + out @ lam[0] @ out.T, out @ n_y[0]
        meets: list[Any] = [0.0] * self.torus
        for part, passed in zip(self.parts, passing.parts, strict=True):
            back = backward(passed, part.weights, adjoint(part.ports)[:, None])
            sums.add(second(back, (inner - rest * without)[None, None], eta, alone=False), 0)
            for k, pair in enumerate(back.rows):
                meets[k] = meets[k] + _met(part.weights, *pair)
        sums.meet(meets, inner, 1.0)
        sums.meet(meets, without, -rest)
        # Signals of the torus with those of the head and with the output.
        n_v, n_u = head.v[0, 0], head.u[0, 0]
        v, u = (_columns_of(head.rows, i, lam.shape[-1]) for i in (0, 1))
        with_v, with_u = (n + out @ lam[0] @ p.T for n, p in ((n_v, v), (n_u, u)))
        for k, met in enumerate(meets):
            both = ((met @ with_v) * with_u).sum(axis=1) - rest * ((met @ n_v) * n_u).sum(axis=1)
            sums.beside(k, self.torus, 2.0 * both)
            sums.cross(k, -((met @ y) * y).sum(axis=(1, 2)))
        return sums.found()


def _ending(
    sums: Sums, passed: Forward, weights: Array, s: float, eta: float, first: int
) -> tuple[Backward, Any, Any]:
    """What ends at the output; its pass back, lam there, and the columns of ``sqrt(s) y``."""
    lam, n_y, output = _at_output(passed.p[:, 0], s)
    sums.add_output(weights, output)
    eye = np.zeros_like(passed.p)
    eye[..., range(lam.shape[-1]), range(lam.shape[-1])] = 1.0
    back = backward(passed, weights, eye)
    sums.add(second(back, lam[:, None], eta, alone=True), first)
    for k, (v, u) in enumerate(back.rows):
        both = real_product(v @ n_y[:, None], u @ n_y[:, None])
        sums.cross(first + k, -2.0 * np.einsum("f,fajm->j", weights, both))
    return back, lam, n_y


def _columns_of(rows: Sequence[tuple[Any, Any]], which: int, port: int) -> Array:
    """The covariances with the port of all signals of a head, one below the other."""
    return np.concatenate([pair[which][0, 0] for pair in rows]) if rows else np.zeros((0, port))


def _at_output(p: Any, s: float) -> tuple[Any, Any, Any]:
    """lam at the output, the columns of ``sqrt(s) y``, and its covariance."""
    identity = np.eye(p.shape[-1])
    lam = s * np.linalg.inv(identity - s * p)
    lam = (lam + adjoint(lam)) / 2.0
    n_y = math.sqrt(s) * (identity + lam @ p)
    return lam, n_y, math.sqrt(s) * (p @ n_y)


def _met(weights: Array, v: Any, u: Any) -> Array:
    """``B + B'`` for every signal j, of ``B = sum_f Re v_j^H u_j``: how it enters the head."""
    left, right = (
        np.ascontiguousarray(one.transpose(2, 3, 0, 1)).view(np.float64).reshape(*one.shape[2:], -1)
        for one in (weights[:, None, None, None] * v, u)
    )
    met = left @ right.swapaxes(1, 2)
    return np.asarray(met + met.swapaxes(1, 2))


def _powers(p: Sequence[Any], weights: Sequence[Array]) -> Array:
    """Diagonals, summed over frequencies and aliases."""
    each = (np.einsum("f,faii->i", w, one).real for w, one in zip(weights, p, strict=True))
    return np.asarray(sum(each))
