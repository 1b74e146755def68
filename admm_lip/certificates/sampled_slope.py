"""The largest Jacobian norm found: a lower bound that no certificate may undercut.

At almost every point the Jacobian of a chain is ``W_l D_l ... D_1 W_0`` with D_k the slopes of the
activations there, and its norm is at most the Lipschitz constant.  Points are drawn at several
scales, the best ones moved at random with a shrinking step, and the norm of the best Jacobian is
computed from the full matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..networks.chain import build_layer, build_module
from ..networks.forward import forward
from ..networks.layers import Array
from ..networks.network import Chain, Network
from ..solvers.deadline import Deadline
from .layer_scales import usual_power
from .norm_product import scaled

_POINTS = 256
_ROUNDS = 12
_POWER_STEPS = 6
_SCALES = (0.3, 1.0, 3.0, 10.0)
# Entries of a batch of activations of all layers: 64 MiB of float64.
_MAX_BATCH_ENTRIES = 2**23
# Points times entries of all weights: about a second of work.
_MAX_WORK = 2**27
# The norm is computed, not proven: this much is taken off for rounding.
_SAFETY = 1.0 - 1e-9
# Samples of a network whose layers are not matrices, at each scale.
_QUOTIENTS = 8


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
        network: for the activations.
        chain: ``network.chain()``; points are inputs of it.
        measured: its matrices in the units of the Jacobian; ``None`` is those of the chain.
        seed: of the points.
        norm: of the inputs; for ``"linf"`` the norm of J is the largest ``||J v||_2`` over the
            vectors of signs that a few steps of ``v = sign(J'J v)`` reach.
        deadline: ends the search early.

    Returns:
        the norm, 0 where the values of an activation are not known.
    """
    if not network.is_known:
        return 0.0
    # Jacobians are multiplied out of matrices near norm 1: no product leaves the range.
    seen = chain.weights if measured is None else measured
    powers = [usual_power(w) for w in seen]
    unit = [torch.from_numpy(np.ldexp(w, -e)) for w, e in zip(seen, powers, strict=True)]
    weights, biases = (list(map(torch.from_numpy, held)) for held in (chain.weights, chain.biases))
    activations = [build_layer(network, spec) for spec in chain.activations]
    slopes_at = partial(_slopes, weights, biases, activations)

    def estimate(points: Tensor, start: Tensor) -> Tensor:
        return _norms(unit, slopes_at(points), start, _STEEPEST[norm])

    points, norms = _climbed(chain, estimate, seed, deadline or Deadline(None))
    if norm != "l2":
        return scaled(_SAFETY * float(norms.max()), sum(powers))
    best = points[norms.argmax()][None]
    full = _full_norm(unit, [d[0] for d in slopes_at(best)])
    return scaled(_SAFETY * full, sum(powers))


def _climbed(
    chain: Chain, estimate: Callable[[Tensor, Tensor], Tensor], seed: int, deadline: Deadline
) -> tuple[Tensor, Tensor]:
    """Points and what is estimated there of the Jacobian, from random vectors on."""
    work = _MAX_WORK // sum(w.size for w in chain.weights)
    count = max(6, min(_POINTS, work, _MAX_BATCH_ENTRIES // sum(chain.widths)))
    count = count if chain.activations else 1
    steps = torch.tensor(_SCALES, dtype=torch.float64).repeat(count)[:count, None]
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(count, chain.widths[0], generator=generator, dtype=torch.float64)

    points = steps * normal()
    norms = estimate(points, normal())
    for k in range(_ROUNDS if chain.activations else 0):
        if not deadline.has_time(rounds=1):
            break
        keep = norms.argsort(descending=True)[: count // 6 + 1].repeat(6)[:count]
        points, norms, steps = points[keep], norms[keep], steps[keep]
        moved = points + 0.5**k * steps * normal()
        better = deadline.timed("rounds", partial(estimate, moved, normal()))
        gains = better > norms
        points = torch.where(gains[:, None], moved, points)
        norms = torch.where(gains, better, norms)
    return points, norms


def sampled_quotient(network: Network, deadline: Deadline, seed: int = 0) -> float:
    """Largest ``||f(x) - f(y)|| / ||x - y||`` found, without a matrix of any layer.

    Directions are improved by ``v <- J'J v``, J the Jacobian that torch differentiates, where the
    network is a path; else they are random.  0 where the values of an activation are not known.
    """
    if not network.is_known:
        return 0.0
    shape, generator = network.input_shape or (), torch.Generator().manual_seed(seed)
    module = build_module(network).double().eval() if network.is_path else None
    best = 0.0
    for scale in _SCALES:
        if best and not deadline.has_time():
            break
        x = scale * torch.randn(_QUOTIENTS, *shape, generator=generator, dtype=torch.float64)
        v = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        if module is not None:
            v = _steepest_directions(module, x, v)
        step = 1e-3 * scale * v / v.flatten(1).norm(dim=1).view(-1, *[1] * len(shape))
        ends = [torch.from_numpy(forward(network, p.numpy())).flatten(1) for p in (x, x + step)]
        rises = (ends[1] - ends[0]).norm(dim=1) / step.flatten(1).norm(dim=1)
        best = max(best, float(torch.nan_to_num(rises, nan=0.0, posinf=0.0).max()))
    # Rounding of the two values, in units of the step.
    return best * (1.0 - 1e-6)


def _steepest_directions(module: torch.nn.Module, x: Tensor, v: Tensor) -> Tensor:
    """Some steps of power iteration on ``J'J``, for each sample."""
    for _ in range(_POWER_STEPS):
        point = x.clone().requires_grad_(True)
        with torch.enable_grad():
            u = torch.zeros_like(module(point)).requires_grad_(True)
            (back,) = torch.autograd.grad(module(point), point, u, create_graph=True)
            (along,) = torch.autograd.grad(back, u, v)
            (v,) = torch.autograd.grad(module(point), point, along.detach())
        v = v / v.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, *[1] * (x.ndim - 1))
    return v


def _slopes(
    weights: list[Tensor],
    biases: list[Tensor],
    activations: Sequence[Callable[[Tensor], Tensor]],
    points: Tensor,
) -> list[Tensor]:
    """Per hidden layer, the derivative of each neuron's activation: shape (points, neurons)."""
    found, x = [], points
    for w, b, phi in zip(weights, biases, activations, strict=False):
        with torch.enable_grad():
            z = (x @ w.T + b).requires_grad_()
            y = phi(z)
            found.append(torch.autograd.grad(y.sum(), z)[0])
        x = y.detach()
    return found


def _unit(u: Tensor) -> Tensor:
    length: Tensor = u.norm(dim=1, keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)
    return u / length


def _signs(u: Tensor) -> Tensor:
    return torch.where(u < 0, -1.0, 1.0).to(u.dtype)


# Per input norm, the vectors v with ||v|| = 1 that maximise u'v.
_STEEPEST: Mapping[str, Callable[[Tensor], Tensor]] = {"l2": _unit, "linf": _signs}


def _norms(
    weights: list[Tensor],
    slopes: list[Tensor],
    start: Tensor,
    steepest: Callable[[Tensor], Tensor],
) -> Tensor:
    """Per point, a lower estimate of the Jacobian's norm: a few steps of power iteration on J'J."""
    v = steepest(start)
    norms = start.new_zeros(len(start))
    for _ in range(_POWER_STEPS):
        u = v
        for w, d in zip(weights, slopes, strict=False):
            u = (u @ w.T) * d
        u = u @ weights[-1].T
        norms = u.norm(dim=1)
        for w, d in zip(reversed(weights[1:]), reversed(slopes), strict=True):
            u = (u @ w) * d
        v = steepest(u @ weights[0])
    return torch.nan_to_num(norms, nan=0.0, posinf=0.0)  # where the values overflow


def _full_norm(weights: list[Tensor], slopes: list[Tensor]) -> float:
    """Norm of the Jacobian at one point, multiplied out from the output on."""
    jacobian = weights[-1]
    for w, d in zip(reversed(weights[:-1]), reversed(slopes), strict=True):
        jacobian = (jacobian * d) @ w
    if not bool(torch.isfinite(jacobian).all()):
        return 0.0
    return float(torch.linalg.matrix_norm(jacobian, 2))
