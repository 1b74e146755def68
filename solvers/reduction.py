"""An equivalent certify problem that is small and well scaled, and the way back.

``L`` and the multiplier of the original follow exactly from those of the reduced problem:

* ``W_0`` enters the LMI through ``W_0 W_0'`` and ``W_l`` through ``W_l' W_l``: a QR factorisation
  replaces a wide ``W_0`` or a tall ``W_l`` by a triangular factor.
* A neuron whose output cannot change (its row is zero, or its slope is known to be 0) is dropped
  with ``t_i`` large; one that nobody listens to (a zero column) with ``t_i`` small.  What becomes
  idle by that is dropped as well.
* A chain that is smaller read from its outputs is transposed (``native/lmi/transpose.py``).
* ``W_k = c_k V_k`` gives ``L = prod c_k`` times that of the ``V_k``, and ``T_k`` gains
  ``prod_{j >= k} c_j^2``.  The ``c_k`` make all norms equal and the bound of the closed form 1, so
  that multipliers are of order 1 at any depth.  Products of the ``c_k`` live as logarithms only.
  Before that every neuron's scale is balanced between its row and its column.

For the dropped neurons the lift needs values that keep the LMI feasible.  Let ``t0`` be a closed
form feasible for the whole network: ``t0`` times a large number on the constant neurons and times
a small one on the idle neurons does, because the LMI couples neither to the rest by more than the
scale they have themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .native.lmi.closed_forms import norms_sq, theta_start
from .native.lmi.transpose import inverted, invertible, order, transposed
from .phases import phase
from .problem import CertifyProblem, Multiplier, Slopes, Weights
from .proving import proving

# How far the multipliers of dropped neurons stand from their closed form.  1e-12 costs about 1e-12
# of the bound; in a constant network nothing holds the idle ones but underflow.
_FAR = 1e12
_FAR_IN_CONSTANT = 1e100
# Multipliers outside this range cannot be stored; a network that needs them proves nothing.
_LOG_RANGE = 680.0
_BALANCE_SWEEPS = 3
# The inverse of a multiplier is taken at a bound this much above the one it proves.
INSIDE = 1e-10
# Entries of a multiplier below this share of its layer's largest are raised before an inversion.
_SMALLEST = 1e-14


@dataclass(frozen=True, eq=False)
class ReducedCertify:
    """A certify problem with the map between its multipliers and the original ones.

    Attributes:
        problem: all layers of equal spectral norm, the optimal bound near 1.  A network that is
            constant reduces to the affine map 0.
        log_scale: the original bound is ``exp(log_scale)`` times the reduced one.
        kept: per original hidden layer, the mask of the neurons that ``problem`` still has.
        dropped: per original hidden layer, logarithms of original multipliers that suit the
            neurons it has not (those of the others are not read).
        gains: per original hidden layer, ``log(t_original / t_reduced)`` of the kept neurons.
        upright: the reduced problem before it was transposed, ``None`` where it was not.
    """

    problem: CertifyProblem
    log_scale: float
    kept: tuple[Tensor, ...] = ()
    dropped: tuple[Tensor, ...] = ()
    gains: tuple[Tensor, ...] = ()
    upright: CertifyProblem | None = None

    def lift(self, multiplier: Multiplier) -> Multiplier:
        """The multiplier of the original problem that proves ``exp(log_scale)`` times the bound."""
        if self.upright is not None:
            multiplier = _turned(self.problem, multiplier)
        inner = iter(multiplier)
        lifted = []
        for kept, dropped, gain in zip(self.kept, self.dropped, self.gains, strict=True):
            log = dropped.clone()
            if bool(kept.any()):
                log[kept] = next(inner).log() + gain
            lifted.append(log.clamp(-_LOG_RANGE, _LOG_RANGE).exp())
        return tuple(lifted)

    def restrict(self, multiplier: Multiplier) -> Multiplier:
        """The part of an original multiplier that concerns ``problem``, in its scale."""
        rows = zip(self.kept, multiplier, self.gains, strict=True)
        inner = tuple(
            (t[kept].log() - gain).clamp(-_LOG_RANGE, _LOG_RANGE).exp()
            for kept, t, gain in rows
            if bool(kept.any())
        )
        if self.upright is None:
            return inner
        return _turned(self.upright, inner)


@phase("set-up")
def reduce_certify(problem: CertifyProblem) -> ReducedCertify:
    """Reduce and scale a certify problem; see the module's docstring.

    Example:
        >>> import torch
        >>> from admm_lip.solvers.problem import CertifyProblem, unit_slopes
        >>> w = (3e5 * torch.eye(4, 9).double(), 1e-7 * torch.ones(20, 4).double())
        >>> reduced = reduce_certify(CertifyProblem(w, unit_slopes(w)))
        >>> reduced.problem.widths
        (4, 4, 4)
    """
    weights, tops = unit_norms(compressed(problem.weights))
    logs = list(map(float, tops))
    if not problem.slopes:
        return ReducedCertify(CertifyProblem(weights, ()), logs[0])
    whole = CertifyProblem(weights, problem.slopes)
    constant = _constant(whole)
    idle = _idle(whole, constant)
    kept = tuple(~(c | i) for c, i in zip(constant, idle, strict=True))
    if not bool(kept[0].any()):
        zero = CertifyProblem((torch.zeros(1, 1).to(weights[0]),), ())
        dropped = _dropped(whole, constant, 2.0, _FAR_IN_CONSTANT, logs)
        return ReducedCertify(zero, 0.0, kept, dropped, tuple(t[:0] for t in dropped))
    dropped = tuple(torch.zeros_like(s.alpha) for s in problem.slopes)
    if not all(bool(k.all()) for k in kept):
        dropped = _dropped(whole, constant, _FAR, _FAR, logs)
        weights, slopes = _pruned(whole, kept)
        whole = CertifyProblem(compressed(weights), slopes)
    weights, balance = balanced(whole.weights)
    weights, more = unit_norms(weights)
    logs = [a + float(b) for a, b in zip(logs, more, strict=True)]
    whole = CertifyProblem(weights, whole.slopes)
    start = theta_start(whole, 1.2)
    log_lip = 0.5 * math.log(start.lip_sq) if start is not None and start.lip_sq > 0 else 0.0
    share = log_lip / len(weights)
    reduced = CertifyProblem(tuple(math.exp(-share) * w for w in weights), whole.slopes)
    logs = [c + share for c in logs]
    gains = tuple(2.0 * b + g for b, g in zip(balance, _multiplier_logs(logs), strict=True))
    upright = None
    back = transposed(reduced)
    if order(back) < order(reduced) and invertible(reduced):
        upright = reduced
        reduced = CertifyProblem(compressed(back.weights), back.slopes)
    return ReducedCertify(reduced, math.fsum(logs), kept, dropped, gains, upright)


def _turned(problem: CertifyProblem, multiplier: Multiplier) -> Multiplier:
    """The multiplier of the transposed problem; one that proves nothing is inflated until it does.

    Approximate solvers end a little outside, or with zeros; an inverse may not be taken there.
    Where no inflation helps the result is NaN, which proves nothing either.
    """
    tops = [_SMALLEST * float(t.max()) for t in multiplier]
    positive = tuple(
        t.clamp(min=max(top, torch.finfo(t.dtype).tiny))
        for t, top in zip(multiplier, tops, strict=True)
    )
    inside, lip = proving(problem, positive)
    lip_sq = (1.0 + INSIDE) * lip**2 if 0.0 < lip < float("inf") else float("nan")
    return inverted(problem, inside, lip_sq)


def _multiplier_logs(logs: Sequence[float]) -> list[float]:
    """``2 sum_{j >= k} log c_j`` for ``k = 1 .. l``."""
    return [2.0 * math.fsum(logs[k:]) for k in range(1, len(logs))]


def compressed(weights: Weights) -> Weights:
    """Triangular factors in place of a wide first and a tall last layer."""
    first, *rest = weights
    if rest and first.shape[-1] > first.shape[-2]:
        first = torch.linalg.qr(_safe(first).mT, mode="r")[1].mT * _top(first)
    if rest and rest[-1].shape[-2] > rest[-1].shape[-1]:
        rest[-1] = torch.linalg.qr(_safe(rest[-1]), mode="r")[1] * _top(rest[-1])
    return (first.contiguous(), *rest)


def _top(w: Tensor) -> Tensor:
    """Largest entry in size, 1 for a zero matrix."""
    top = w.abs().amax((-2, -1), keepdim=True)
    return torch.where(top > 0, top, torch.ones_like(top))


def _safe(w: Tensor) -> Tensor:
    """w with entries of at most 1, so that no square overflows."""
    return w / _top(w)


def unit_norms(weights: Weights) -> tuple[Weights, list[Tensor]]:
    """Layers of spectral norm 1 and the logarithms of the norms; zero layers stay as they are."""
    scaled, logs = [], []
    for w in weights:
        top, safe = _top(w), _safe(w)
        norm = norms_sq(safe).sqrt()
        norm = torch.where(norm > 0.0, norm, 1.0)
        scaled.append(safe / norm[..., None, None])
        logs.append(top[..., 0, 0].log() + norm.log())
    return tuple(scaled), logs


def _constant(problem: CertifyProblem) -> list[Tensor]:
    """Per hidden layer, which neurons cannot change: forward from the inputs."""
    masks: list[Tensor] = []
    for k, s in enumerate(problem.slopes):
        w = problem.weights[k]
        heard = w if k == 0 else w[:, ~masks[-1]]
        masks.append((s.alpha == 0) & (s.beta == 0) | ~(heard != 0).any(dim=1))
    return masks


def _idle(problem: CertifyProblem, constant: Sequence[Tensor]) -> list[Tensor]:
    """Per hidden layer, which neurons reach no output: backward from the outputs."""
    masks: list[Tensor] = []
    listening = problem.weights[-1]
    for k in range(len(constant) - 1, -1, -1):
        masks.append(~(listening != 0).any(dim=0))
        listening = problem.weights[k][~(masks[-1] | constant[k])]
    return masks[::-1]


def _pruned(problem: CertifyProblem, kept: Sequence[Tensor]) -> tuple[Weights, tuple[Slopes, ...]]:
    """The network without the dropped neurons."""
    weights = list(problem.weights)
    for k, mask in enumerate(kept):
        weights[k] = weights[k][mask]
        weights[k + 1] = weights[k + 1][:, mask]
    slopes = (Slopes(s.alpha[m], s.beta[m]) for s, m in zip(problem.slopes, kept, strict=True))
    return tuple(weights), tuple(slopes)


def balanced(weights: Weights) -> tuple[Weights, list[Tensor]]:
    """Neurons rescaled so that what comes in weighs as much as what goes out.

    Row i of ``W_{k-1}`` times c and column i of ``W_k`` over c leave the LMI's bound as it is and
    turn ``t_i`` into ``t_i / c^2``.  Returns the weights and ``log c`` per hidden layer.
    """
    scaled = list(weights)
    logs = [torch.zeros_like(w[..., 0]) for w in weights[:-1]]
    for _ in range(_BALANCE_SWEEPS):
        for k in range(1, len(scaled)):
            into = torch.linalg.vector_norm(scaled[k - 1], dim=-1)
            out = torch.linalg.vector_norm(scaled[k], dim=-2)
            c = (out / into).clamp(1e-30, 1e30).sqrt()
            scaled[k - 1] = c[..., None] * scaled[k - 1]
            scaled[k] = scaled[k] / c[..., None, :]
            logs[k - 1] = logs[k - 1] + c.log()
    return tuple(scaled), logs


def _dropped(
    problem: CertifyProblem,
    constant: Sequence[Tensor],
    up: float,
    down: float,
    logs: Sequence[float],
) -> Multiplier:
    """Logarithms of a closed form times ``up`` on constant neurons and over ``down`` elsewhere."""
    start = theta_start(problem, 1.0, balanced=False)
    base = [torch.ones_like(s.alpha) for s in problem.slopes]
    base = base if start is None else list(start.multiplier)
    factors = (torch.where(m, math.log(up), -math.log(down)) for m in constant)
    parts = zip(base, factors, _multiplier_logs(logs), strict=True)
    return tuple(t.log() + factor + gain for t, factor, gain in parts)
