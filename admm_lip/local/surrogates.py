"""Losses of logits that were moved by what a bound on the features allows.

With ``v_j = w_j - w_y`` the difference of two rows of the last layer and r the distance that its
input moves on the ball, class j gains on class y at most

    bcp     max v_j d   over  ||d|| <= r,  low <= d <= high  (box-constrained; S. Lee et al., 2020)
    gloro   r ||v_j||   over the units that can move         (K. Leino et al., 2021)
    lmt     sqrt(2) r ||W||                                  (Y. Tsuzuku et al., 2018)

and ``quadratic`` what the pass of ``quadratic_shift.py`` finds on the ball of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as functional
from torch import Tensor

_TINY = 1e-30
_ROUNDS = 64


class _Support(torch.autograd.Function):
    """The support function, whose gradient in v is the maximiser."""

    @staticmethod
    def forward(ctx, v, radius, up, down):  # type: ignore[no-untyped-def]
        size = v.abs()
        step, share = stretched(size, torch.where(v > 0.0, up, down), radius)
        ctx.save_for_backward(v, step, size - share, share)
        return (size * step).sum(-1)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        v, step, excess, share = ctx.saved_tensors
        grad = grads[0][..., None]
        rising = v > 0.0
        up, down = torch.where(rising, excess, 0.0), torch.where(rising, 0.0, excess)
        return (
            grad * step * v.sign(),
            (grads[0] * share.norm(dim=-1)).sum(-1),
            (grad * up).sum(-2, keepdim=True),
            (grad * down).sum(-2, keepdim=True),
        )


def support(v: Tensor, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``max v d`` over ``||d|| <= radius`` and ``low <= d <= high``, differentiable in everything.

    The maximiser is ``d_i = clip(t v_i, low_i, high_i)`` with the t at which it has length
    ``radius`` (infinite where the whole box is shorter).  Its derivatives are: in v the maximiser,
    in the radius the multiplier of the ball, in the ends those of the box.

    Args:
        v: ``(batch, m, n)``.
        radius: ``(batch,)``, at least 0.
        low: ``(batch, n)``, at most 0.
        high: ``(batch, n)``, at least 0.

    Returns:
        ``(batch, m)``.

    Example:
        >>> v, one = torch.tensor([[[3.0, 4.0]]]), torch.ones(1)
        >>> support(v, one, torch.full((1, 2), -9.0), torch.full((1, 2), 9.0)).tolist()
        [[5.0]]
        >>> support(v, one, torch.full((1, 2), -9.0), torch.tensor([[0.0, 0.5]])).tolist()
        [[2.0]]
    """
    ends = high.clamp(min=0.0)[:, None], (-low).clamp(min=0.0)[:, None]
    value: Tensor = _Support.apply(v, radius, *ends)  # type: ignore[no-untyped-call]
    return value


def stretched(size: Tensor, room: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The longest step along a direction in ball and box, and the ball's share of the direction.

    Args:
        size: ``|v|``, ``(batch, m, n)``.
        room: how far the box lets each entry go, at least 0.
        radius: ``(batch,)``.

    Returns:
        ``d = min(t |v|, room)`` of length at most ``radius``, and ``a = min(|v|, room / t)``:
        ``|v| d = radius ||a|| + (|v| - a) room`` is the maximum, and for any a between 0 and
        ``|v|`` the right-hand side is an upper bound.
    """
    scale = _stretch(size, room, radius)
    whole = torch.isinf(scale)
    step = torch.where(whole, room, torch.minimum(scale * size, room))
    step = torch.where(size > 0.0, step, 0.0)
    return step, torch.minimum(size, room / scale.clamp_min(_TINY))


def _stretch(size: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """The t at which ``min(t size, room)`` has length ``radius``; ``(batch, m, 1)``.

    From below: t = what the clipped entries leave of the radius, over the length of the others.
    Every round clips more entries and t only grows; where no further one is clipped it is exact.
    """
    limit = radius[:, None, None]
    scale = limit / size.norm(dim=-1, keepdim=True).clamp_min(_TINY)
    clipped = torch.zeros_like(size, dtype=torch.bool)
    for _ in range(_ROUNDS):
        now = scale * size >= room
        if bool((now == clipped).all()):
            break
        clipped = now
        used = torch.where(clipped, room, 0.0).square().sum(-1, keepdim=True)
        free = torch.where(clipped, 0.0, size).norm(dim=-1, keepdim=True)
        left = (limit.square() - used).clamp(min=0.0).sqrt()
        scale = torch.where(free > 0.0, left / free.clamp_min(_TINY), torch.inf)
    found: Tensor = scale
    return found


def pair_rows(weight: Tensor, labels: Tensor) -> Tensor:
    """``w_j - w_y`` for every sample and class j, ``(batch, classes, n)``."""
    return weight - weight[labels][:, None]


def pair_norms(rows: Tensor, columns: Tensor | None) -> Tensor:
    """``||v_j||`` over the units that can move, differentiable at 0; ``(batch, classes)``."""
    squares = rows.square()
    if columns is not None:
        squares = squares * columns[:, None]
    total = squares.sum(dim=-1)
    some = total > 0.0
    return torch.where(some, torch.where(some, total, 1.0).sqrt(), 0.0)


def worst_logits(logits: Tensor, labels: Tensor, shift: Tensor, kappa: float) -> Tensor:
    """``kappa CE(z) + (1 - kappa) CE(z + shift)``, the own class not shifted."""
    moved = logits + _others(labels, shift)
    loss = (1.0 - kappa) * functional.cross_entropy(moved, labels)
    return loss + kappa * functional.cross_entropy(logits, labels) if kappa > 0.0 else loss


def extra_logit(logits: Tensor, labels: Tensor, shift: Tensor, kappa: float) -> Tensor:
    """Cross-entropy with one more class, "not certified": ``max_{j != y} (z_j + shift_j)``."""
    rivals = (logits + shift).scatter(1, labels[:, None], -torch.inf)
    return functional.cross_entropy(
        torch.cat([logits, rivals.amax(dim=1, keepdim=True)], dim=1), labels
    )


def _others(labels: Tensor, shift: Tensor) -> Tensor:
    own = functional.one_hot(labels, shift.shape[1]).bool()
    return torch.where(own, 0.0, shift)


# (logits, labels, shifts, kappa) -> loss.  kappa is the weight left on the plain cross-entropy.
Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
LOSSES: Mapping[str, Loss] = {
    "bcp": worst_logits,
    "gloro": extra_logit,
    "lmt": worst_logits,
    "quadratic": worst_logits,
}
