"""Certified, correct, robust: every sample's three verdicts must imply each other in this order."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .attacks import AttackConfig, fooled, gradient_free, pgd
from .falsification import SoundnessError

# An attack ends on the sphere, give or take the rounding of its float32 steps: aim this far inside.
_ROUNDING = 1e-4


def robust_samples(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    certified: Tensor,
    config: AttackConfig | None = None,
) -> Tensor:
    """Attack every sample at one radius; certified samples must withstand.

    Every sample is attacked with and without gradients, the certified ones like the others.  A
    success against a certified one is confirmed in double precision before it counts.

    Args:
        model: classifier, ``(n, ...) -> (n, classes)``.
        x: inputs ``(n, ...)``.
        y: labels ``(n,)``.
        eps: radius, >= 0, in the norm of ``config``.
        certified: boolean ``(n,)``: what is claimed at that radius (within ``config.clip``).
        config: see :class:`~admm_lip.evaluation.attacks.AttackConfig`.

    Returns:
        Boolean ``(n,)``: right, and no attack found another class.

    Raises:
        SoundnessError: naming the first sample that is certified and wrong, or was broken.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 0.9]]), torch.tensor([0, 0])
        >>> robust_samples(model, x, y, 0.5, torch.tensor([True, False]))
        tensor([ True, False])
    """
    config = config or AttackConfig()
    double = copy.deepcopy(model).double().eval()
    right = ~_not_first(double, x, y)
    _refuse(certified & ~right, eps, "is not classified correctly")
    robust = right.clone()
    for attack in (pgd, gradient_free) if eps > 0.0 else ():
        found = attack(model, x, y, eps * (1.0 - _ROUNDING), config)
        broken = fooled(double, found.double(), y)
        _refuse(certified & broken, eps, f"{attack.__name__} found another class in the ball")
        robust &= ~broken
    return robust


def _not_first(double: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Boolean ``(n,)``: some other class scores at least as high; ties and NaN count."""
    with torch.no_grad():
        logits: Tensor = double(x.double())
    own = logits.gather(1, y[:, None])
    return (own > logits).sum(dim=1) != logits.shape[1] - 1


def _refuse(rows: Tensor, eps: float, reason: str) -> None:
    if bool(rows.any()):
        row = int(rows.nonzero()[0])
        raise SoundnessError(
            f"row {row}: certified at radius {eps:g}, but {reason} ({int(rows.sum())} such rows); "
            "the claim is not of this network, or there is a bug: please report it"
        )
