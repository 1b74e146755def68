"""Steep points of many linear functionals of the outputs at once: lower bounds on their constants.

At almost every point ``|c'f(x) - c'f(y)| <= L ||x - y||`` needs ``||J(x)'c||_* <= L`` with the dual
norm: l2 for l2, l1 for linf.  A cloud of points is shared by all functionals; each keeps its best
ones and moves them at random with a shrinking step.  One gradient per point and functional is a
pass forth and back with a vector, never a Jacobian.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ..networks.layers import Array
from ..networks.network import Chain, Network
from ..solvers.deadline import Deadline
from .jacobian_field import JacobianField
from .norm_product import scaled

_SCALES = (0.3, 1.0, 3.0, 10.0)
_CLOUD = 128
_KEPT = 4
_ROUNDS = 10
# Points at a time: 2^22 entries of a layer's activations are 32 MiB.
_BATCH_ENTRIES = 2**22
# Points times entries of all weights, for one round: about a second of work.
_MAX_WORK = 2**30
# The norm is computed, not proven: this much is taken off for rounding.
_SAFETY = 1.0 - 1e-9

_DUAL: Mapping[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda g: torch.linalg.vector_norm(g, dim=1),
    "linf": lambda g: g.abs().sum(dim=1),
}


def sampled_functionals(
    network: Network,
    chain: Chain,
    measured: Sequence[Array],
    directions: Array,
    norm: str = "l2",
    deadline: Deadline | None = None,
    seed: int = 0,
) -> list[float]:
    """Per functional, the largest gradient norm at the points tried.

    Args:
        network: for the activations.
        chain: ``network.chain()``; points are inputs of it.
        measured: its matrices in the units of the gradients.
        directions: shape ``(functionals, outputs)``.
        norm: of the inputs.
        deadline: ends the search early.
        seed: of the points.

    Returns:
        the norms, 0 where the values of an activation are not known.
    """
    if not network.is_known:
        return [0.0] * len(directions)
    deadline = deadline or Deadline(None)
    field, dual = JacobianField.of(network, chain, measured, norm), _DUAL[norm]
    rows = torch.from_numpy(directions)
    count, size = len(rows), field.points
    cloud = max(_KEPT, min(_CLOUD, _MAX_WORK // (field.entries * count)))
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scales = torch.tensor(_SCALES, dtype=torch.float64).repeat(cloud)[:cloud, None]
    points = scales * normal(cloud, size)
    values = torch.stack([_values(field, dual, points, c.expand(cloud, -1)) for c in rows])
    keep = values.topk(_KEPT, dim=1).indices
    best, steps = points[keep], scales[keep]
    values = values.gather(1, keep)
    each = rows.repeat_interleave(_KEPT, dim=0)
    for k in range(_ROUNDS if chain.activations else 0):
        if not deadline.has_time(rounds=1):
            break
        moved = best + 0.5**k * steps * normal(count, _KEPT, size)
        search = partial(_values, field, dual, moved.flatten(0, 1), each)
        found = deadline.timed("rounds", search).view(count, _KEPT)
        gains = found > values
        best = torch.where(gains[..., None], moved, best)
        values = torch.where(gains, found, values)
    return [scaled(_SAFETY * v, field.power) for v in values.amax(dim=1).tolist()]


def _values(
    field: JacobianField, dual: Callable[[Tensor], Tensor], points: Tensor, directions: Tensor
) -> Tensor:
    """``||J(x)'c||_*`` for each row of both, over ``2^power``."""
    rows, parts = max(1, _BATCH_ENTRIES // field.width), []
    for k in range(0, len(points), rows):
        part = slice(k, k + rows)
        parts.append(dual(field.back(directions[part], field.slopes(points[part]))))
    return torch.nan_to_num(torch.cat(parts), nan=0.0, posinf=0.0)  # where values overflow
