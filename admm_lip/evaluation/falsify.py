"""Attacks on certified radii: an attack that succeeds inside one proves the certificate wrong.

    from admm_lip.evaluation.falsify import falsify
    found = falsify(model, radii, x, y, certificate=certificate)
    found.smallest_ratio        # distance of the nearest attack over the certified radius, >= 1

1. Every ball of positive radius is searched, a little inside its surface, by projected gradient
   ascent with restarts and by a search that uses no gradient.  A success is confirmed in double
   precision before it counts.
2. Beyond the radii, larger and larger balls are searched; where an attack succeeds, the straight
   way back to the input is halved down to the point where the class changes.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..certificates.certificate import AnyCertificate
from ..certificates.verify import check_belongs
from ..networks.overrides import unwrapped
from ..networks.storage import network_of
from .attacks import AttackConfig, Norm, fooled, gradient_free, pgd

# An attack ends on the sphere, give or take the rounding of its float32 steps: aim this far inside.
_ROUNDING = 1e-4
# A constant network certifies an infinite radius; this far is far enough to attack.
_FAR = 1e6
_ATTACKS = (pgd, gradient_free)
# Multiples of the certified radius that are searched for the nearest attack.
FACTORS = (1.05, 1.3, 1.8, 3.0, 6.0, 20.0)
_HALVINGS = 30


class SoundnessError(AssertionError):
    """An attack succeeded strictly inside a certified radius: the certificate is wrong."""


@dataclass(frozen=True, eq=False)
class Falsification:
    """What attacks on certified radii found; had one succeeded, there would be none of these.

    Attributes:
        samples: rows with a positive radius: those attacked.
        attacks: searches of one row's ball by one attack, restarts counted, inside the radii.
        norm: of distances and radii.
        distance: of the nearest attack found on each row of x, ``(n,)``, in the units of the
            radii; ``inf`` where none was found or none was tried.
        smallest_ratio: least ``distance / radius``; ``inf`` where no attack succeeded.
        median_ratio: the median over the rows on which one did.
    """

    samples: int
    attacks: int
    norm: str
    distance: Tensor
    smallest_ratio: float
    median_ratio: float


class _Scaled(nn.Module):
    """The model as a function of raw inputs, up to a constant shift of them."""

    def __init__(self, model: nn.Module, scale: Tensor) -> None:
        super().__init__()
        self.model = model
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x / self.scale.to(x))
        return found


def falsify(
    model: nn.Module,
    radii: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    certificate: AnyCertificate | None = None,
    config: AttackConfig | None = None,
    factors: tuple[float, ...] = FACTORS,
) -> Falsification:
    """Attack what :func:`admm_lip.certified_radii` returned.

    Args:
        model: the classifier that was certified.
        radii: the certified radii, ``(n,)``.
        x: the inputs that they belong to, ``(n, ...)``, as the model takes them.
        y: integer labels ``(n,)``.
        certificate: that the radii were read from: its norm and its ``input_scale`` say how
            distances are measured.  ``None`` is the norm of ``config``, in the units of ``x``.
        config: effort of the attacks.
        factors: multiples of the radii, rising, searched for the nearest attack; empty searches
            inside the radii alone.

    Raises:
        SoundnessError: naming the row, its radius, the attack and its distance.
        ValueError: naming ``radii``.
        CertificateError: for the certificate of another network.
        UnsupportedModule: where torch runs something else than what is read of the model.

    Example:
        >>> import torch
        >>> from admm_lip import certified_radii, certify
        >>> from admm_lip.evaluation.falsify import falsify
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> x, y = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
        >>> proof = certify(model)
        >>> radii = certified_radii(model, x, y, certificate=proof)
        >>> round(falsify(model, radii, x, y, certificate=proof).smallest_ratio, 3)
        1.0
    """
    config = config or AttackConfig()
    if tuple(radii.shape) != (len(x),):
        raise ValueError(f"radii: expected one per input, ({len(x)},), got {tuple(radii.shape)}")
    if certificate is not None:
        model = unwrapped(model)
        check_belongs(certificate, network_of(model, certificate.input_shape))
        norm: Any = certificate.norm
        config = replace(config, norm=norm)
        model, x = _in_units(model, x, certificate.input_scale)
    rows = (radii > 0).nonzero().flatten()
    x, y, near = x[rows], y[rows], radii[rows].double().clamp(max=_FAR).to(x.device)
    assert_sound(model, x, y, near, config)
    distance = torch.full((len(radii),), math.inf, dtype=torch.float64)
    distance[rows] = nearest_attacks(model, x, y, near, factors, config).cpu()
    ratio = (distance / radii.double().cpu())[rows.cpu()]
    hit = ratio[torch.isfinite(ratio)]
    return Falsification(
        samples=len(rows),
        attacks=len(rows) * (config.restarts + 1),
        norm=config.norm,
        distance=distance,
        smallest_ratio=float(hit.min()) if len(hit) else math.inf,
        median_ratio=float(hit.median()) if len(hit) else math.inf,
    )


def assert_sound(
    model: nn.Module, x: Tensor, y: Tensor, radii: Tensor, config: AttackConfig | None = None
) -> None:
    """Attack every row inside its certified radius, with and without gradients.

    A success is confirmed in double precision before it counts: the prediction strictly wrong, the
    distance strictly below the radius.

    Args:
        model: classifier.
        x: inputs ``(n, ...)``.
        y: labels ``(n,)``.
        radii: certified radii ``(n,)``; rows with radius 0 are not attacked.
        config: see :class:`~admm_lip.evaluation.attacks.AttackConfig`; its norm is that of the
            radii.

    Raises:
        SoundnessError: naming the row, its certified radius and the distance of the attack.
    """
    config = config or AttackConfig()
    rows = (radii > 0).nonzero().flatten()
    x, y, radii = x[rows], y[rows], radii[rows].double().clamp(max=_FAR)
    for attack in _ATTACKS:
        found = attack(model, x, y, (radii * (1.0 - _ROUNDING)).to(x.dtype), config)
        away = distance_between(found, x, config.norm)
        broken = _fooled_in_double(model, found, y) & (away < radii)
        if bool(broken.any()):
            worst = int(broken.nonzero()[0])
            raise SoundnessError(
                f"row {int(rows[worst])}: certified up to radius {float(radii[worst]):.6g}, but "
                f"{attack.__name__} found another class at distance {float(away[worst]):.6g} "
                f"({int(broken.sum())} such rows); the certificate is not of this network, or "
                "there is a bug: please report it"
            )


def nearest_attacks(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    radii: Tensor,
    factors: tuple[float, ...],
    config: AttackConfig,
) -> Tensor:
    """Distance of the nearest attack found on each row, ``(n,)``; ``inf`` where there is none."""
    distance = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    double = copy.deepcopy(model).double().eval()
    for factor in factors:
        rows = torch.isinf(distance).nonzero().flatten()
        if not len(rows):
            break
        tried = (radii[rows] * factor).clamp(max=_FAR).to(x.dtype)
        found = pgd(model, x[rows], y[rows], tried, config)
        hit = fooled(double, found.double(), y[rows])
        some = rows[hit]
        ends = _walked_back(double, x[some].double(), found[hit].double(), y[some])
        distance[some] = distance_between(ends, x[some], config.norm)
    return distance


def distance_between(found: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """Distance of each row, float64 ``(n,)``."""
    move = (found.double() - x.double()).flatten(1)
    return move.norm(dim=1) if norm == "l2" else move.abs().amax(dim=1)


def _walked_back(model: nn.Module, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
    """The point on the way from ``x`` to ``found`` at which the class is first seen to change."""
    low = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    high = torch.ones_like(low)
    column = (-1, *([1] * (x.ndim - 1)))
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        wrong = fooled(model, x + middle.reshape(column) * (found - x), y)
        high, low = torch.where(wrong, middle, high), torch.where(wrong, low, middle)
    return x + high.reshape(column) * (found - x)


def _in_units(model: nn.Module, x: Tensor, scale: Any) -> tuple[nn.Module, Tensor]:
    """Model and inputs in the units of a certificate."""
    if scale is None:
        return model, x
    factor = torch.tensor(scale, dtype=torch.float64).reshape(x.shape[1:])
    return _Scaled(model, factor), x * factor.to(x)


def _fooled_in_double(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return fooled(copy.deepcopy(model).double().eval(), x.double(), y)
