"""The largest Jacobian norm found: a lower bound that no certificate may undercut.

Points are drawn at several scales, the best ones moved at random with a shrinking step.  The vector
that a point's Jacobian stretches most is found by power iteration, and handed on to the points
nearby.  The norm of the best Jacobian is computed from the full matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..networks.built import build_module
from ..networks.forward import forward
from ..networks.layer_spec import LayerSpec
from ..networks.layers import Array, array_keys
from ..networks.network import Chain, Network
from ..solvers.deadline import Deadline
from ..units import Units
from .jacobian_field import JacobianField
from .norm_product import scaled

# Power steps on a whole network.
_POWER_STEPS = 6
_SCALES = (0.3, 1.0, 3.0, 10.0)
# Entries of a batch of activations of all layers: 64 MiB of float64.
_MAX_BATCH_ENTRIES = 2**23
# Points times entries of all weights: about a second of work.
_MAX_WORK = 2**27
# The norm is computed, not proven: this much is taken off for rounding.
_SAFETY = 1.0 - 1e-9
# Of a difference quotient, in units of the step.
_ROUNDED = 1.0 - 1e-6
# Samples of a network whose layers are not matrices, at each scale.
_QUOTIENTS = 8


class _Effort(NamedTuple):
    """How long the search goes on.

    Attributes:
        points: drawn; the better half of them goes on.
        rounds: of moves, each ``shrink`` times as long as the one before.
        power: steps of the power iteration at the first points.
        later: from the vector of a point nearby.
    """

    points: int
    rounds: int
    shrink: float
    power: int
    later: int


_USUAL = _Effort(256, 12, 0.5, 6, 2)
# Of a small network a batch takes its calls, not its numbers: few rounds of many points.
_SMALL, _SMALL_ENTRIES = _Effort(512, 4, 0.3, 3, 1), 2**11
# So many points of single precision are looked at in double.
_AGAIN = 16
# Numbers that a pass of many small networks holds: what a cache does.
_TOGETHER = 2**19


class _Steep(NamedTuple):
    """Points, the vectors that their Jacobians stretch most as far as known, and by how much.

    Shapes ``(chains, points, size)`` and ``(chains, points)``.
    """

    points: Tensor
    vectors: Tensor
    norms: Tensor

    def at(self, index: Tensor) -> _Steep:
        points, vectors = (torch.take_along_dim(x, index[..., None], 1) for x in self[:2])
        return _Steep(points, vectors, torch.take_along_dim(self.norms, index, 1))

    def or_else(self, other: _Steep) -> _Steep:
        """Of each pair of points the steeper one."""
        better = other.norms > self.norms
        points = torch.where(better[..., None], other.points, self.points)
        vectors = torch.where(better[..., None], other.vectors, self.vectors)
        return _Steep(points, vectors, torch.where(better, other.norms, self.norms))


class Sampled(NamedTuple):
    """A network to be looked at.

    Attributes:
        network: for the activations.
        chain: ``network.chain()``; points are inputs of it.
        measured: its matrices in the units of the Jacobian; ``None`` is those of the chain.
    """

    network: Network
    chain: Chain
    measured: Sequence[Array] | None = None

    def alike(self) -> str:
        """What networks have in common whose points are moved side by side; ``""`` for none."""
        specs = [s for s in self.chain.activations if isinstance(s, LayerSpec)]
        if len(specs) < len(self.chain.activations) or any(array_keys(s.kind) for s in specs):
            return ""
        shapes = [w.shape for w in (*self.chain.weights, *(self.measured or ()))]
        return repr((shapes, [(s.kind, s.options) for s in specs]))


def sampled_slope(
    network: Network,
    chain: Chain,
    measured: Sequence[Array] | None = None,
    seed: int = 0,
    norm: str = "l2",
    deadline: Deadline | None = None,
) -> float:
    """Largest norm of the Jacobian at the points tried (true of the real function up to rounding).

    Args:
        network, chain, measured: as in :class:`Sampled`.
        seed: of the points.
        norm: of the inputs; for ``"linf"`` the norm of J is the largest ``||J v||_2`` over the
            vectors of signs that a few steps of ``v = sign(J'J v)`` reach.
        deadline: ends the search early.

    Returns:
        the norm, 0 where the values of an activation are not known.
    """
    return sampled_slopes([Sampled(network, chain, measured)], seed, norm, deadline)[0]


def sampled_slopes(
    sampled: Sequence[Sampled],
    seed: int = 0,
    norm: str = "l2",
    deadline: Deadline | None = None,
) -> list[float]:
    """:func:`sampled_slope` of each, those that are alike side by side."""
    found, groups = [0.0] * len(sampled), dict[str, list[int]]()
    for k, one in enumerate(sampled):
        if one.network.is_known:
            groups.setdefault(one.alike() or str(k), []).append(k)
    for places in groups.values():
        fields = [JacobianField.of(*sampled[k], norm) for k in places]
        together = max(1, _TOGETHER // (_SMALL.points * fields[0].width))
        for k in range(0, len(places), together):
            part = fields[k : k + together]
            norms = _steepest_norms(part, seed, norm, deadline or Deadline(None))
            for place, field, value in zip(places[k:], part, norms, strict=False):
                found[place] = scaled(_SAFETY * value, field.power)
    return found


def _steepest_norms(
    fields: Sequence[JacobianField], seed: int, norm: str, deadline: Deadline
) -> list[float]:
    """Of each field the largest norm, over the power of two of its own."""
    field = JacobianField.stacked(fields)
    low = field.rounded()
    found = _climbed(low, _STEEPEST[norm], seed, deadline)
    if low is not field:
        found = _again(field, _STEEPEST[norm], found)
    norms = found.norms.amax(1)
    if norm == "l2":
        norms = _full_norms(field, found.at(found.norms.argmax(1, keepdim=True)).points)
    values: list[float] = norms.tolist()
    return values


def _again(field: JacobianField, steepest: Callable[[Tensor], Tensor], found: _Steep) -> _Steep:
    """The steepest points in double, where a neuron may be on the other side."""
    order = found.norms.argsort(1, descending=True)[:, :_AGAIN]
    points, vectors, _ = found.at(order)
    return _stretched(field, steepest, points.double(), steepest(vectors.double()), 1)


def _climbed(
    field: JacobianField, steepest: Callable[[Tensor], Tensor], seed: int, deadline: Deadline
) -> _Steep:
    """Steep points, from random ones on."""
    work = min(_MAX_WORK // field.entries, _MAX_BATCH_ENTRIES // field.width)
    effort = _SMALL if field.entries <= _SMALL_ENTRIES else _USUAL
    count = max(6, min(effort.points, work)) if field.activations else 1
    generator, dtype = torch.Generator().manual_seed(seed), field.unit[0].dtype

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    steps = torch.tensor(_SCALES, dtype=dtype).repeat(count)[None, :count, None]
    # The same draws for every chain.
    chains = len(field.unit[0])
    start = steepest(normal(count, field.unit[0].shape[-1])).expand(chains, -1, -1)
    drawn = (steps * normal(count, field.points)).expand(chains, -1, -1)
    found = _stretched(field, steepest, drawn, start, effort.power)
    for k in range(effort.rounds if field.activations else 0):
        if not deadline.has_time(rounds=1):
            break
        keep = found.norms.argsort(1, descending=True)[:, : count // 12 + 1]
        keep = keep.repeat(1, 6)[:, : count // 2]
        found, steps = found.at(keep), torch.take_along_dim(steps, keep[..., None], 1)
        moved = found.points + effort.shrink**k * steps * normal(*found.points.shape[1:])
        search = partial(_stretched, field, steepest, moved, found.vectors, effort.later)
        found = found.or_else(deadline.timed("rounds", search))
    return found


def sampled_quotient(
    network: Network,
    deadline: Deadline,
    seed: int = 0,
    norm: str = "l2",
    units: Units | None = None,
) -> float:
    """Largest ``||f(x) - f(y)|| / ||x - y||`` found, without a matrix of any layer.

    Inputs are measured in ``norm`` and ``units``, outputs in l2.

    Directions are improved by ``v <- J'J v``, J the Jacobian that torch differentiates, where the
    network is a path; else they are random.  0 where the values of an activation are not known.
    """
    best, seen = 0.0, _Measured.of(network, norm, units)
    for module, scale, x, v in _drawn(network, deadline, seed):
        v = v if module is None else _steepest_directions(module, x, v, seen)
        rises = _rises(network, x, v, scale, seen) * seen.outputs
        best = max(best, float(rises.norm(dim=1).max()))
    return best * _ROUNDED


def sampled_quotients(
    network: Network,
    directions: Array,
    deadline: Deadline,
    seed: int = 0,
    norm: str = "l2",
    units: Units | None = None,
) -> list[float]:
    """Largest ``|c'f(x) - c'f(y)| / ||x - y||`` found, for each row c of ``directions``.

    As :func:`sampled_quotient`, along the gradients of ``c'f``; outputs are the model's.
    """
    seen = _Measured.of(network, norm, units)
    best = np.zeros(len(directions))
    for module, scale, x, v in _drawn(network, deadline, seed):
        for k, c in enumerate(torch.from_numpy(directions)):
            steep = v if module is None else seen.steepest(_gradients(module, x, c))
            rises = _rises(network, x, steep, scale, seen)
            best[k] = max(best[k], float((rises @ c).abs().max()))
    found: list[float] = (best * _ROUNDED).tolist()
    return found


def _drawn(
    network: Network, deadline: Deadline, seed: int
) -> Iterator[tuple[torch.nn.Module | None, float, Tensor, Tensor]]:
    """The module where gradients are at hand; and every scale with points and directions."""
    if not network.is_known:
        return
    shape, generator = network.input_shape or (), torch.Generator().manual_seed(seed)
    module = build_module(network).double().eval() if network.is_path else None
    for scale in _SCALES:
        if scale != _SCALES[0] and not deadline.has_time():
            return
        x = scale * torch.randn(_QUOTIENTS, *shape, generator=generator, dtype=torch.float64)
        v = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        yield module, scale, x, v


class _Measured(NamedTuple):
    """How inputs and outputs are measured.

    Attributes:
        norm: of the inputs.
        inputs: their scales, of the shape of a sample.
        outputs: theirs, ``(outputs,)``.
    """

    norm: str
    inputs: Tensor
    outputs: Tensor

    @staticmethod
    def of(network: Network, norm: str, units: Units | None) -> _Measured:
        shape, outputs = network.input_shape or (), math.prod(network.shapes()[network.output])
        scales = [np.ones(math.prod(shape)), np.ones(outputs)]
        if units is not None:
            scales[0] = np.array(units.input_scales(math.prod(shape)))
            scales[1] = np.array(units.output_scales(outputs))
        inputs, given = (torch.from_numpy(s) for s in scales)
        return _Measured(norm, inputs.view(shape), given)

    def length(self, step: Tensor) -> Tensor:
        """Of each sample's step of the model's inputs, ``(samples, 1)``."""
        raw = (step * self.inputs).flatten(1)
        return raw.norm(dim=1, keepdim=True) if self.norm == "l2" else raw.abs().amax(1, True)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of length 1 along which a gradient rises most, up to its length."""
        raw = (gradient / self.inputs).flatten(1)
        return _STEEPEST[self.norm](raw).view(gradient.shape) / self.inputs


def _rises(network: Network, x: Tensor, v: Tensor, scale: float, seen: _Measured) -> Tensor:
    """``f(x + step) - f(x)`` over the measured length of the step, along v."""
    step = 1e-3 * scale * v / _lengths(v)
    ends = [torch.from_numpy(forward(network, p.numpy())).flatten(1) for p in (x, x + step)]
    rises = (ends[1] - ends[0]) / seen.length(step)
    return torch.nan_to_num(rises, nan=0.0, posinf=0.0, neginf=0.0)


def _gradients(module: torch.nn.Module, x: Tensor, c: Tensor) -> Tensor:
    """Those of ``c'f`` at each sample."""
    point = x.clone().requires_grad_(True)
    with torch.enable_grad():
        (v,) = torch.autograd.grad((module(point).flatten(1) @ c).sum(), point)
    return v


def _lengths(v: Tensor) -> Tensor:
    """The l2 norm of each sample, to be divided by."""
    lengths: Tensor = v.flatten(1).norm(dim=1).clamp_min(1e-300)
    return lengths.view(-1, *[1] * (v.ndim - 1))


def _steepest_directions(module: torch.nn.Module, x: Tensor, v: Tensor, seen: _Measured) -> Tensor:
    """Some steps of power iteration on ``J'J``, for each sample.

    ``J'u`` is linear in u, so that its derivative by u along v is ``J v``.  Derivatives are taken
    of sums: handed a vector, torch imports for a second what nothing here needs.
    """
    point = x.clone().requires_grad_(True)
    with torch.enable_grad():
        out = module(point)
        u = torch.zeros_like(out).requires_grad_(True)
        (back,) = torch.autograd.grad((out * u).sum(), point, create_graph=True)
        for _ in range(_POWER_STEPS):
            (along,) = torch.autograd.grad((back * v).sum(), u, retain_graph=True)
            along = along * seen.outputs.view(out.shape[1:]) ** 2
            (v,) = torch.autograd.grad((out * along).sum(), point, retain_graph=True)
            v = seen.steepest(v)
    return v


def _unit(u: Tensor) -> Tensor:
    length: Tensor = u.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)
    return u / length


def _signs(u: Tensor) -> Tensor:
    return torch.where(u < 0, -1.0, 1.0).to(u.dtype)


# Per input norm, the vectors v with ||v|| = 1 that maximise u'v.
_STEEPEST: Mapping[str, Callable[[Tensor], Tensor]] = {"l2": _unit, "linf": _signs}


def _stretched(
    field: JacobianField,
    steepest: Callable[[Tensor], Tensor],
    points: Tensor,
    vectors: Tensor,
    steps: int,
) -> _Steep:
    """The points with lower estimates of the Jacobian's norm, by ``v <- steepest(J'J v)``."""
    slopes, norms = field.slopes(points), points.new_zeros(points.shape[:-1])
    for _ in range(steps):
        u = field.forth(vectors, slopes)
        norms = u.norm(dim=-1)
        vectors = steepest(field.back(u, slopes))
    # Where the values overflow, nothing is known.
    return _Steep(points, vectors.nan_to_num(), torch.nan_to_num(norms, nan=0.0, posinf=0.0))


def _full_norms(field: JacobianField, points: Tensor) -> Tensor:
    """Norms of the Jacobians at one point of each chain, multiplied out from the output on."""
    outputs = torch.eye(field.unit[-1].shape[-2], dtype=torch.float64)
    jacobians = field.back(outputs.expand(len(points), -1, -1), field.slopes(points))
    finite = torch.isfinite(jacobians).all(-1).all(-1)
    norms: Tensor = torch.linalg.matrix_norm(torch.where(finite[:, None, None], jacobians, 0.0), 2)
    return norms
