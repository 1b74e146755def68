"""How the weights enter the scaled matrix B: which entries they fill, tie or hold.

The projection is over *values*: one per free weight, one per tied group.  ``spread`` writes them
into B, ``gather`` is its adjoint, and with the metric ``m`` and the anchor ``v``

    argmin_p  1/2 sum m (p - v)^2 + penalty/2 ||spread(p) - R||_F^2
           =  (m v + penalty gather(R)) / (m + penalty load),        load = sum of squared scales,

entry by entry, because no entry of B belongs to two values.  Held values stay at the anchor.

Two couplings share these formulas.  ``Dense`` is the common case, every weight once in B: its
values lie in an array of B's own shape, so the step above is one fused expression.  ``Copied``
serves tied weights, and slopes with ``alpha < 0``, where a weight stands in B twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import ProblemError
from ...lmi import Ball, Tile, ball_tiles
from ...phases import phase
from ...problem import ProjectProblem, Structure, Weights

Values = tuple[Tensor, ...]
Place = tuple[slice, slice, bool]


@dataclass(frozen=True, eq=False)
class Coupling:
    """Values, their anchor and metric, and their copies in B (see the module's formulas).

    Attributes:
        anchor: the values nearest to the problem's anchor (tied entries: their weighted mean).
        metric: positive weight of each value in the distance.
        held: per value, whether it stays at the anchor; ``None`` where nothing is held.
        load: per value, the sum of its squared scales in B.
        shape: shape of B.
        inputs: the first ``inputs`` rows of B belong to the network's input.
    """

    anchor: Values
    metric: Values
    held: tuple[Tensor, ...] | None
    load: Values
    shape: tuple[int, int]
    inputs: int

    @property
    def uniform(self) -> bool:
        """Whether B has no zero tile and sees the metric as uniform: one clip is the solution."""
        return False

    def spread(self, values: Values) -> Tensor:
        """B of the values."""
        raise NotImplementedError

    def gather(self, matrix: Tensor) -> Values:
        """Adjoint of :meth:`spread`."""
        raise NotImplementedError

    def weights(self, values: Values) -> Weights:
        """The weight matrices that the values stand for."""
        raise NotImplementedError

    def reach(self) -> Values:
        """The largest magnitude each value can have inside the ball (0 where B never sees it)."""
        raise NotImplementedError

    def rescaled(self, factor: float, inputs_only: bool = True) -> Coupling:
        """The same coupling with the rows of the input (or all of B) multiplied by ``factor``."""
        raise NotImplementedError

    def nearest(self, penalty: float, target: Tensor) -> Values:
        """The minimiser displayed in the module's docstring, for ``R = target``."""
        pull = self.gather(target)
        free = tuple(
            (m * v + penalty * g) / (m + penalty * q)
            for m, v, g, q in zip(self.metric, self.anchor, pull, self.load, strict=True)
        )
        return self.keep_held(free, self.anchor)

    def shown(self, penalty: float, inside: Tensor, excess: Tensor) -> Values:
        """The values of a state: those whose B is nearest to X, whose norm is 1 or hardly more.

        Where values are held, which X ignores, :meth:`nearest` lets the free ones make up for them.
        """
        if self.held is not None:
            return self.nearest(penalty, inside - excess)
        rows = zip(self.gather(inside), self.load, self.anchor, strict=True)
        return tuple(torch.where(q > 0, g / q, v) for g, q, v in rows)

    def averager(
        self, penalty: float, dtype: torch.dtype = torch.float64
    ) -> Callable[[Tensor], Tensor]:
        """``R -> spread(nearest(penalty, R))`` with everything that R does not change prepared."""
        own = self.anchor[0].dtype
        return lambda target: self.spread(self.nearest(penalty, target.to(own))).to(dtype)

    def keep_held(self, values: Values, instead: Values) -> Values:
        """``values`` where they are free, ``instead`` where they are held."""
        if self.held is None:
            return values
        return tuple(
            torch.where(h, i, p) for h, i, p in zip(self.held, instead, values, strict=True)
        )

    def distance(self, values: Values) -> float:
        """``1/2 sum metric (values - anchor)^2``."""
        parts = zip(self.metric, values, self.anchor, strict=True)
        return 0.5 * sum(float((m * (p - v).square()).sum()) for m, p, v in parts)

    def size(self) -> float:
        """``1/2 sum metric anchor^2``, the natural unit of the distance."""
        return 0.5 * sum(
            float((m * v.square()).sum()) for m, v in zip(self.metric, self.anchor, strict=True)
        )

    def dual_value(self, dual: Tensor, nuclear: float) -> float:
        """``min_p 1/2 sum m (p - v)^2 + <dual, B(p)> - nuclear``: a lower bound on the optimum.

        Valid for any ``dual`` with nuclear norm ``nuclear``, because ``<dual, B> <= nuclear``
        inside the ball.
        """
        pull = self.gather(dual)
        total = -nuclear
        still = self.held or (None,) * len(pull)
        for g, m, v, h in zip(pull, self.metric, self.anchor, still, strict=True):
            moved = g if h is None else g.masked_fill(h, 0.0)
            total += float((g * v).sum()) - 0.5 * float((moved.square() / m).sum())
        return total

    def centre(self) -> Values:
        """Held values and those B never sees as they are anchored, every other value at zero."""
        blank = tuple(
            torch.where(q > 0, 0.0, v) for q, v in zip(self.load, self.anchor, strict=True)
        )
        return self.keep_held(blank, self.anchor)


@dataclass(frozen=True, eq=False)
class Dense(Coupling):
    """Every weight stands in B once: the single array of values has the shape of B."""

    scale: Tensor
    places: tuple[Place, ...]

    @property
    def uniform(self) -> bool:
        """Whether B has no zero tile and sees the metric as uniform: one clip is the solution."""
        seen = self.load[0] / self.metric[0]
        least = float(seen.min())
        return self.held is None and least > 0 and float(seen.max()) <= least * (1.0 + 1e-9)

    def spread(self, values: Values) -> Tensor:
        """B = scale * values, entrywise."""
        return self.scale * values[0]

    def gather(self, matrix: Tensor) -> Values:
        """scale * matrix, entrywise (zero off the pattern)."""
        return (self.scale * matrix,)

    def weights(self, values: Values) -> Weights:
        """The tiles of the array, turned upright."""
        blocks = (
            values[0][rows, cols].T if flip else values[0][rows, cols]
            for rows, cols, flip in self.places
        )
        return tuple(block.contiguous() for block in blocks)

    def reach(self) -> Values:
        """Every entry of B is at most 1 inside the ball: 1 / scale."""
        return (torch.where(self.scale > 0, 1.0 / self.scale, 0.0),)

    def rescaled(self, factor: float, inputs_only: bool = True) -> Dense:
        """The same coupling with the rows of the input (or all of B) multiplied by ``factor``."""
        scale = self.scale.clone()
        scale[: self.inputs if inputs_only else None] *= factor
        return replace(self, scale=scale, load=(scale.square(),))

    def averager(
        self, penalty: float, dtype: torch.dtype = torch.float64
    ) -> Callable[[Tensor], Tensor]:
        """One fused ``base + gain * R`` per call."""
        strength = penalty * self.load[0]
        total = self.metric[0] + strength
        base = self.scale * (self.metric[0] * self.anchor[0] / total)
        gain = strength / total
        if self.held is not None:
            base = torch.where(self.held[0], self.scale * self.anchor[0], base)
            gain = gain.masked_fill(self.held[0], 0.0)
        base, gain = base.to(dtype), gain.to(dtype)
        return lambda target: torch.addcmul(base, gain, target)


@dataclass(frozen=True, eq=False)
class Copied(Coupling):
    """Values by layer, each with any number of copies: one array (matrix or groups) per layer."""

    copies: tuple[tuple[tuple[Tensor, Place], ...], ...]
    labels: tuple[Tensor | None, ...]

    def spread(self, values: Values) -> Tensor:
        """B of the values: every copy is written once."""
        like = values[0]
        b = torch.zeros(self.shape, dtype=like.dtype, device=like.device)
        for w, copies in zip(self.weights(values), self.copies, strict=True):
            for scale, (rows, cols, flip) in copies:
                b[rows, cols] = (scale * w).T if flip else scale * w
        return b

    def gather(self, matrix: Tensor) -> Values:
        """Sum of the scaled copies, then over the entries tied together."""
        return tuple(
            _pooled(_sum_copies(copies, matrix), labels)
            for copies, labels in zip(self.copies, self.labels, strict=True)
        )

    def weights(self, values: Values) -> Weights:
        """The matrices themselves, or each group's value at its entries (label -1: zero)."""
        return tuple(
            p if lab is None else _unpooled(p, lab)
            for p, lab in zip(values, self.labels, strict=True)
        )

    def reach(self) -> Values:
        """A value with n copies has one of scale sqrt(load / n) or more, and that is at most 1."""
        counts = (
            _pooled(torch.full_like(copies[0][0], len(copies)), labels)
            for copies, labels in zip(self.copies, self.labels, strict=True)
        )
        pairs = zip(counts, self.load, strict=True)
        return tuple(torch.where(q > 0, (n / q).sqrt(), 0.0) for n, q in pairs)

    def rescaled(self, factor: float, inputs_only: bool = True) -> Copied:
        """The same coupling with the rows of the input (or all of B) multiplied by ``factor``."""
        factors = [factor] + [1.0 if inputs_only else factor] * (len(self.copies) - 1)
        copies = tuple(
            tuple((scale * f, place) for scale, place in layer)
            for f, layer in zip(factors, self.copies, strict=True)
        )
        load = tuple(q * f**2 for q, f in zip(self.load, factors, strict=True))
        return replace(self, copies=copies, load=load)


@phase("set-up")
def couple(problem: ProjectProblem, lip_sq: float) -> Coupling:
    """The coupling of ``problem`` for ``L^2 = lip_sq``: dense where possible, else copied.

    Raises:
        ProblemError: where a structure's tensor does not have the shape of its weight.
    """
    ball = ball_of(problem, lip_sq)
    structure = problem.structure or (Structure(),) * len(problem.anchor)
    _check_structure(problem.anchor, structure)
    if len(ball.tiles) == len(problem.anchor) and all(s.ties is None for s in structure):
        return _dense(problem, ball, structure)
    return _copied(problem, ball, structure)


def ball_of(problem: ProjectProblem, lip_sq: float) -> Ball:
    """The spectral ball of the problem's multiplier; without hidden layers ``||W_0||_2 <= L``."""
    n_in, n_out = problem.widths[0], problem.widths[-1]
    if problem.multiplier:
        return ball_tiles(problem.slopes, problem.multiplier, lip_sq, n_in, n_out)
    ones = problem.anchor[0].new_ones
    tile = Tile(0, ones(n_out), ones(n_in) * lip_sq**-0.5, 1, 0)
    return Ball((tile,), ((slice(0, n_in), slice(0, n_out), True),), (n_in, n_out))


def _dense(problem: ProjectProblem, ball: Ball, structure: Sequence[Structure]) -> Dense:
    like = problem.anchor[0]
    scale, anchor = like.new_zeros(ball.shape), like.new_zeros(ball.shape)
    metric = like.new_ones(ball.shape)
    held = None
    if any(s.held is not None for s in structure):
        held = torch.zeros(ball.shape, dtype=torch.bool, device=like.device)
    for tile, (rows, cols, flip) in zip(ball.tiles, ball.places, strict=True):
        own = structure[tile.layer]
        turn = _turned if flip else _upright
        scale[rows, cols] = turn(tile.row[:, None] * tile.col[None, :])
        anchor[rows, cols] = turn(problem.anchor[tile.layer])
        if own.metric is not None:
            metric[rows, cols] = turn(own.metric)
        if own.held is not None and held is not None:
            held[rows, cols] = turn(own.held)
    n_in = problem.widths[0]
    fixed = None if held is None else (held,)
    return Dense(
        (anchor,), (metric,), fixed, (scale.square(),), ball.shape, n_in, scale, ball.places
    )


def _copied(problem: ProjectProblem, ball: Ball, structure: Sequence[Structure]) -> Copied:
    copies: list[list[tuple[Tensor, Place]]] = [[] for _ in problem.anchor]
    ties = tuple(None if s.ties is None else _compact(s.ties) for s in structure)
    for tile, place in zip(ball.tiles, ball.places, strict=True):
        copies[tile.layer].append((tile.row[:, None] * tile.col[None, :], place))
    anchor, metric, load, held = [], [], [], []
    for v, own, labels, scales in zip(problem.anchor, structure, ties, copies, strict=True):
        m = torch.ones_like(v) if own.metric is None else own.metric.to(v.dtype)
        q = torch.stack([s.square() for s, _ in scales]).sum(0)
        h = torch.zeros_like(v, dtype=torch.bool) if own.held is None else own.held
        pooled = _pooled(m, labels)
        metric.append(pooled)
        anchor.append(_pooled(m * v, labels) / pooled)
        load.append(_pooled(q, labels))
        held.append(_pooled(h.to(v.dtype), labels) > 0)
    fixed = tuple(held) if any(s.held is not None for s in structure) else None
    return Copied(
        tuple(anchor),
        tuple(metric),
        fixed,
        tuple(load),
        ball.shape,
        problem.widths[0],
        tuple(tuple(c) for c in copies),
        ties,
    )


def _sum_copies(copies: Sequence[tuple[Tensor, Place]], matrix: Tensor) -> Tensor:
    """Sum over the copies of ``scale * (their block of matrix)``, in the weight's own shape."""
    total: Tensor | None = None
    for scale, (rows, cols, flip) in copies:
        block = matrix[rows, cols].T if flip else matrix[rows, cols]
        total = scale * block if total is None else torch.addcmul(total, scale, block)
    assert total is not None  # every layer has a tile
    return total


def _compact(labels: Tensor) -> Tensor:
    """The same ties with labels 0, 1, ... without gaps, and -1 kept."""
    found: Tensor
    slots: Tensor
    found, slots = torch.unique(labels, return_inverse=True)
    return slots - int((found < 0).sum())


def _pooled(entries: Tensor, labels: Tensor | None) -> Tensor:
    """Sums of ``entries`` over equal labels, -1 left out; without labels the entries."""
    if labels is None:
        return entries
    groups = int(labels.max()) + 1
    # Label -1 (structurally zero) falls into one extra group at the end, which is dropped.
    sums = entries.new_zeros(groups + 1)
    slot = torch.where(labels < 0, groups, labels).reshape(-1)
    sums.index_add_(0, slot, entries.reshape(-1))
    return sums[:groups]


def _unpooled(values: Tensor, labels: Tensor) -> Tensor:
    """Each group's value at its entries, zero where the label is -1."""
    return torch.cat([values, values.new_zeros(1)])[labels]


def _upright(block: Tensor) -> Tensor:
    return block


def _turned(block: Tensor) -> Tensor:
    return block.T


def _check_structure(anchor: Weights, structure: Sequence[Structure]) -> None:
    """Raise :class:`ProblemError` where a structure does not fit its weight."""
    for k, (v, own) in enumerate(zip(anchor, structure, strict=True)):
        for name in ("metric", "held", "ties"):
            given = getattr(own, name)
            if given is not None and given.shape != v.shape:
                raise ProblemError(
                    f"structure[{k}].{name}: expected shape {tuple(v.shape)}, "
                    f"got {tuple(given.shape)}"
                )
        if own.ties is not None and bool((own.ties < -1).any()):
            raise ProblemError(f"structure[{k}].ties: expected labels >= -1")
        if own.metric is not None and not bool((own.metric > 0).all()):
            raise ProblemError(f"structure[{k}].metric: expected entries > 0")
