"""The two problems as sparse affine maps, the form that modelling languages take.

Certification, the output block eliminated (``lmi.eliminate_output``)::

    minimise s   subject to   s E_0 + sum_i t_i A_i - C >= 0,   t >= 0

with ``A_i = dM/dt_i = u_i v_i' + v_i u_i'``, ``u_i = e_i - alpha_i w_i`` and
``v_i = e_i - beta_i w_i``, where ``w_i`` is the row of neuron i, placed in the layer before it.

Projection, in the coordinates of the scaled ball (``lmi.ball_tiles`` at ``lip_sq = 1``)::

    minimise (mu / rho) s + 1/2 ||y||^2 - g' y   subject to   s E_0 + E_1 + K y >= 0

with E_0 the identity on the inputs, E_1 on all other nodes, and y the free values of the weights
times the square root of their weight in the distance.  Only g depends on the anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from .lmi import Tile, ball_tiles
from .problem import CertifyProblem, Multiplier, ProjectProblem, Structure, Weights

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def as_array(tensor: Tensor) -> Array:
    """The float64 numbers of a tensor, on the CPU."""
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class CertifyMap:
    """``vec M = maps @ (s, t) - constant``, M of order ``order``."""

    order: int
    maps: sp.csc_array
    constant: Array
    sizes: tuple[int, ...]

    def multiplier(self, t: Array, like: Tensor) -> Multiplier:
        """Split the stacked t, clipped at 0, into layers on the device of ``like``."""
        clipped = torch.as_tensor(np.maximum(t, 0.0), dtype=torch.float64, device=like.device)
        return tuple(torch.split(clipped, list(self.sizes)))


def certify_map(problem: CertifyProblem) -> CertifyMap:
    """The certification LMI of ``problem`` as one sparse affine map of ``(s, t_1, ..., t_l)``."""
    widths = problem.widths[:-1]
    starts = np.cumsum([0, *widths])
    order = int(starts[-1])
    inputs = np.arange(widths[0])
    pieces = [(inputs, inputs, np.zeros(widths[0], dtype=np.int64), np.ones(widths[0]))]
    first = 1
    for k, (w, s) in enumerate(zip(problem.weights, problem.slopes, strict=False)):
        place = np.arange(starts[k], starts[k + 1]), np.arange(starts[k + 1], starts[k + 2])
        pieces.append(_neuron_terms(as_array(w), as_array(s.alpha), as_array(s.beta), place, first))
        first += w.shape[0]
    rows, cols, which, values = (np.concatenate(part) for part in zip(*pieces, strict=True))
    maps = sp.csc_array((values, (rows + order * cols, which)), shape=(order * order, first))
    last = as_array(problem.weights[-1])
    constant = np.zeros((order, order))
    constant[starts[-2] :, starts[-2] :] = last.T @ last
    return CertifyMap(order, maps, constant.ravel(), tuple(widths[1:]))


def _neuron_terms(
    w: Array, alpha: Array, beta: Array, place: tuple[Index, Index], first: int
) -> tuple[Index, Index, Index, Array]:
    """Entries (row, column, neuron, value) of ``u_i v_i' + v_i u_i'`` for one layer's neurons."""
    before, here = place
    support = np.column_stack([np.tile(before, (len(here), 1)), here])
    u = np.column_stack([-alpha[:, None] * w, np.ones(len(here))])
    v = np.column_stack([-beta[:, None] * w, np.ones(len(here))])
    outer = u[:, :, None] * v[:, None, :]
    neuron, a, b = np.nonzero(outer)
    rows, cols, values = support[neuron, a], support[neuron, b], outer[neuron, a, b]
    return (
        np.concatenate([rows, cols]),
        np.concatenate([cols, rows]),
        np.tile(neuron + first, 2),
        np.tile(values, 2),
    )


@dataclass(frozen=True, eq=False)
class LayerGroups:
    """Which free value each entry of one layer's matrix takes (``-1``: structurally zero).

    Attributes:
        label: group of each entry, row-major, ``-1`` where the entry is zero.
        weight: the sum of the metric over each group.
        held: whether the group is held at its anchor.
    """

    label: Index
    weight: Array
    held: NDArray[np.bool_]
    metric: Array

    def pull(self, entries: Array) -> Array:
        """The value of each group nearest to ``entries``: their weighted mean."""
        free = self.label >= 0
        weighted = self.metric[free] * entries.ravel()[free]
        sums = np.bincount(self.label[free], weights=weighted, minlength=len(self.weight))
        return np.asarray(sums / self.weight, dtype=np.float64)

    def push(self, values: Array, shape: tuple[int, int]) -> Array:
        """The matrix whose entries take their group's value."""
        return np.append(values, 0.0)[self.label].reshape(shape)


def layer_groups(shape: tuple[int, int], structure: Structure) -> LayerGroups:
    """Groups of entries that share one value, from a layer's :class:`Structure`."""
    count = shape[0] * shape[1]
    metric = np.ones(count) if structure.metric is None else as_array(structure.metric).ravel()
    label = np.arange(count)
    if structure.ties is not None:
        ties = structure.ties.detach().cpu().numpy().ravel()
        label = np.full(count, -1)
        label[ties >= 0] = np.unique(ties[ties >= 0], return_inverse=True)[1]
    groups = int(label.max(initial=-1)) + 1
    free = label >= 0
    sums = np.bincount(label[free], weights=metric[free], minlength=groups)
    weight = np.asarray(sums, dtype=np.float64)
    held = np.zeros(groups, dtype=bool)
    if structure.held is not None:
        mask = structure.held.detach().cpu().numpy().ravel()
        held[label[mask & free]] = True
    return LayerGroups(label, weight, held, metric)


@dataclass(frozen=True, eq=False)
class ProjectMap:
    """``vec M = s inputs + others + maps @ y`` and the coordinates y of the weights."""

    order: int
    inputs: Array
    others: Array
    maps: sp.csc_array
    groups: tuple[LayerGroups, ...]
    root: Array

    @property
    def held(self) -> NDArray[np.bool_]:
        """Which coordinates are held at the anchor's."""
        return np.concatenate([g.held for g in self.groups])

    def coordinates(self, anchor: Sequence[Tensor]) -> Array:
        """The y nearest to ``anchor``, the vector g of the objective."""
        pulled = [g.pull(as_array(w)) for g, w in zip(self.groups, anchor, strict=True)]
        return self.root * np.concatenate(pulled)

    def weights(self, y: Array, like: Weights) -> Weights:
        """The weights of coordinates ``y``, in the shapes and on the device of ``like``."""
        sizes = np.cumsum([len(g.weight) for g in self.groups])[:-1]
        parts = np.split(y / self.root, sizes)
        return tuple(
            torch.as_tensor(g.push(z, (w.shape[0], w.shape[1])), device=w.device)
            for g, z, w in zip(self.groups, parts, like, strict=True)
        )


def project_map(problem: ProjectProblem) -> ProjectMap:
    """The projection LMI of ``problem`` as one sparse affine map of ``(s, y)``."""
    anchor = problem.anchor
    structure = problem.structure or tuple(Structure() for _ in anchor)
    groups = tuple(
        layer_groups((w.shape[0], w.shape[1]), s) for w, s in zip(anchor, structure, strict=True)
    )
    root = np.sqrt(np.concatenate([g.weight for g in groups]))
    tiles = _unit_tiles(problem)
    sizes = {t.upper: len(t.col) for t in tiles} | {t.lower: len(t.row) for t in tiles}
    starts = np.cumsum([0, *(sizes[node] for node in sorted(sizes))])
    first = np.cumsum([0, *(len(g.weight) for g in groups)])
    order = int(starts[-1])
    pieces = [_tile_terms(t, groups[t.layer], starts, int(first[t.layer])) for t in tiles]
    rows, cols, which, values = (np.concatenate(part) for part in zip(*pieces, strict=True))
    scaled = values / root[which]
    both = np.concatenate([rows + order * cols, cols + order * rows])
    maps = sp.csc_array(
        (np.tile(scaled, 2), (both, np.tile(which, 2))), shape=(order * order, len(root))
    )
    is_input = np.arange(order) < sizes[0]
    inputs, others = np.diag(is_input * 1.0).ravel(), np.diag(~is_input * 1.0).ravel()
    return ProjectMap(order, inputs, others, maps, groups, root)


def _unit_tiles(problem: ProjectProblem) -> tuple[Tile, ...]:
    """The tiles of the scaled ball at ``L = 1``; one tile for a single affine map."""
    if problem.multiplier:
        n_in, n_out = problem.widths[0], problem.widths[-1]
        return ball_tiles(problem.slopes, problem.multiplier, 1.0, n_in, n_out).tiles
    rows, cols = problem.anchor[0].shape
    ones = problem.anchor[0].new_ones
    return (Tile(0, ones(rows), ones(cols), 1, 0),)


def _tile_terms(
    tile: Tile, groups: LayerGroups, starts: Index, first: int
) -> tuple[Index, Index, Index, Array]:
    """Entries (row, column, free value, factor) of one scaled copy of a weight, lower part."""
    factor = np.outer(as_array(tile.row), as_array(tile.col)).ravel()
    row, col = (part.ravel() for part in np.indices((len(tile.row), len(tile.col))))
    keep = (groups.label >= 0) & (factor != 0)
    return (
        row[keep] + starts[tile.lower],
        col[keep] + starts[tile.upper],
        groups.label[keep] + first,
        factor[keep],
    )
