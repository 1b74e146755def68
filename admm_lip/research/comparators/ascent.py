"""The inner maximisation of adversarial training: projected gradient ascent in a ball.

``attacks.py`` judges a finished classifier; this is the cheap step inside training, on any value
per sample, with the model as it stands (train mode, parameters learning).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

Value = Callable[[Tensor], Tensor]
_TINY = 1e-30


def _lengths(move: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(move.flatten(1), dim=1)
    return lengths.reshape(-1, *([1] * (move.ndim - 1)))


def _inside_l2(move: Tensor, eps: float) -> Tensor:
    return move * (eps / _lengths(move).clamp_min(_TINY)).clamp_max(1.0)


def _uphill_l2(gradient: Tensor) -> Tensor:
    return gradient / _lengths(gradient).clamp_min(_TINY)


def _random_l2(like: Tensor) -> Tensor:
    """Uniform in the unit ball: a random direction, and a radius to the power 1 / dimension."""
    radius = torch.rand(len(like), *([1] * (like.ndim - 1)), dtype=like.dtype, device=like.device)
    return _uphill_l2(torch.randn_like(like)) * radius ** (1.0 / like[0].numel())


# norm -> (projection of a move, direction of steepest ascent, random point of the unit ball)
BALLS: dict[str, tuple[Callable[[Tensor, float], Tensor], Value, Value]] = {
    "l2": (_inside_l2, _uphill_l2, _random_l2),
    "linf": (
        lambda move, eps: move.clamp(-eps, eps),
        torch.sign,
        lambda like: 2.0 * torch.rand_like(like) - 1.0,
    ),
}


def check_norm(norm: str) -> None:
    """Raise ``ValueError`` for a norm that is not in ``BALLS``."""
    if norm not in BALLS:
        raise ValueError(f"norm: expected one of {', '.join(BALLS)}, got {norm!r}")


@dataclass(frozen=True)
class Ascent:
    """How the inner maximisation runs.

    Args:
        norm: ``"l2"`` or ``"linf"``.
        eps: radius of the ball.
        steps: gradient steps.
        step_size: length of one step.
        clip: box of admissible inputs, or ``None``.
    """

    norm: str
    eps: float
    steps: int
    step_size: float
    clip: tuple[float, float] | None = None

    def around(self, centre: Tensor, point: Tensor) -> Tensor:
        """The point brought into the ball around ``centre``, then into the box."""
        inside = centre + BALLS[self.norm][0](point - centre, self.eps)
        return inside if self.clip is None else inside.clamp(*self.clip)

    def random_start(self, centre: Tensor) -> Tensor:
        """A uniformly random point of the ball."""
        return self.around(centre, centre + self.eps * BALLS[self.norm][2](centre))

    def climb(self, value: Value, centre: Tensor, start: Tensor) -> Tensor:
        """The best point of the path, sample by sample: never below the value at ``start``.

        Args:
            value: ``(n, ...) -> (n,)``, each entry a function of its own sample alone.
            centre: of the ball, ``(n, ...)``.
            start: a point of the ball.
        """
        point = best = start.detach()
        best_value: Tensor | None = None
        for _ in range(self.steps):
            seen, gradient = value_and_gradient(value, point)
            best, best_value = _better(best, best_value, point, seen)
            move = self.step_size * BALLS[self.norm][1](gradient)
            point = self.around(centre, point + move)
        with torch.no_grad():
            return _better(best, best_value, point, value(point))[0]


def value_and_gradient(value: Value, point: Tensor) -> tuple[Tensor, Tensor]:
    """Values ``(n,)`` and their gradients, detached; parameters get none."""
    point = point.detach().requires_grad_(True)
    with torch.enable_grad():
        values = value(point)
        (gradient,) = torch.autograd.grad(values.sum(), point)
    return values.detach(), gradient


def sample_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """What an attack raises, per sample: cross-entropy for labels, squared error else."""
    if targets.is_floating_point():
        error = outputs - targets.reshape(outputs.shape).to(outputs.dtype)
        return error.square().flatten(1).sum(dim=1)
    return functional.cross_entropy(outputs, targets, reduction="none")


def _better(
    best: Tensor, best_value: Tensor | None, point: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    if best_value is None:
        return point, value
    wins = value > best_value
    shaped = wins.reshape(-1, *([1] * (point.ndim - 1)))
    return torch.where(shaped, point, best), torch.where(wins, value, best_value)
