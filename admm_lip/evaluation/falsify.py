"""Attacks on certified radii: an attack that succeeds inside one proves the certificate wrong.

    from admm_lip.evaluation.falsify import falsify
    found = falsify(model, radii, x, y, certificate=certificate)
    found.smallest_ratio        # distance of the nearest attack over the certified radius, >= 1

1. Every ball of positive radius is searched, a little inside its surface, by projected gradient
   ascent with restarts, by a search that uses no gradient, and along rays.  A success is confirmed
   in double precision before it counts.
2. Beyond the radii, larger and larger balls are searched; where an attack succeeds, the straight
   way back to the input is halved down to the point where the class changes.

:func:`falsify_local` does the same to a local certificate, and holds the slopes met on its balls
against the Lipschitz bounds that it states.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..certificates.certificate import AnyCertificate
from ..certificates.verify import check_belongs
from ..data.arrays import as_numbers
from ..foreign.open import network_of
from ..local.result import LocalCertificate
from ..networks.overrides import unwrapped
from ..rounding import lengths
from .attacks import AttackConfig, Norm, fooled, frozen, gradient_free, pgd, rays
from .falsification import Falsification, SoundnessError
from .samples import attackable

# An attack ends on the sphere, give or take the rounding of its steps: aim this far inside.
_ROUNDINGS = 1e3
# A constant network certifies an infinite radius; this far is far enough to attack.
_FAR = 1e6
_ATTACKS = (pgd, gradient_free, rays)
# Multiples of the certified radius that are searched for the nearest attack.
FACTORS = (1.05, 1.3, 1.8, 3.0, 6.0, 20.0)
_HALVINGS = 30


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
    radii: Any,
    x: Any,
    y: Any,
    *,
    certificate: AnyCertificate | None = None,
    config: AttackConfig | None = None,
    factors: tuple[float, ...] = FACTORS,
    classes: Sequence[Any] | None = None,
) -> Falsification:
    """Attack what :func:`admm_lip.certified_radii` returned.

    Args:
        model: the classifier that was certified.
        radii: the certified radii, ``(n,)``.
        x: the inputs that they belong to, ``(n, ...)``, as the model takes them: a tensor or any
            array; where the model's dtype cannot hold them, they are attacked in float64.
        y: labels ``(n,)``, ``(n, 1)`` or one-hot.
        certificate: that the radii were read from: its norm and its ``input_scale`` say how
            distances are measured.  ``None`` is the norm of ``config``, in the units of ``x``.
        config: effort of the attacks.
        factors: multiples of the radii, rising, searched for the nearest attack; empty searches
            inside the radii alone.
        classes: the labels in the order of the outputs, where ``y`` holds words or other numbers.

    Raises:
        SoundnessError: naming the row, its radius, the attack and its distance.
        TypeError, ValueError: naming ``radii``, ``x`` or ``y``.
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
    model = unwrapped(model)
    if certificate is not None:
        check_belongs(certificate, network_of(model, certificate.input_shape))
    model, x, y = attackable(model, x, y, classes)
    radii = as_numbers("radii", radii)
    if tuple(radii.shape) != (len(x),):
        raise ValueError(f"radii: expected one per input, ({len(x)},), got {tuple(radii.shape)}")
    if certificate is not None:
        norm: Any = certificate.norm
        config = replace(config, norm=norm)
        model, x = in_units(model, x, certificate.input_scale)
    rows = (radii > 0).nonzero().flatten()
    x, y, near = x[rows], y[rows], radii[rows].double().clamp(max=_FAR).to(x.device)
    assert_sound(model, x, y, near, config)
    distance = torch.full((len(radii),), math.inf, dtype=torch.float64)
    distance[rows] = nearest_attacks(model, x, y, near, factors, config).cpu()
    ratio = (distance / radii.double().cpu())[rows.cpu()]
    hit = ratio[torch.isfinite(ratio)]
    return Falsification(
        samples=len(rows),
        attacks=len(rows) * (config.restarts + len(_ATTACKS) - 1),
        norm=config.norm,
        distance=distance,
        smallest_ratio=float(hit.min()) if len(hit) else math.inf,
        median_ratio=float(hit.median()) if len(hit) else math.inf,
    )


def falsify_local(
    model: nn.Module,
    found: LocalCertificate,
    *,
    config: AttackConfig | None = None,
    factors: tuple[float, ...] = FACTORS,
) -> Falsification:
    """Attack a local certificate: its robust balls, or without labels its Lipschitz bounds.

    Args:
        model: the network that was certified, of at least two outputs.
        found: what :func:`admm_lip.local.certify_local` or :func:`admm_lip.local.local_radii`
            returned; its norm, units and box hold for the attacks.
        config: effort of the attacks.
        factors: as in :func:`falsify`; of bounds without labels nothing is searched outside.

    Returns:
        Without labels ``smallest_ratio`` and ``median_ratio`` are those of a bound and the steepest
        slope met on its ball, at least 1 as well, and ``distance`` is infinite.

    Raises:
        SoundnessError: naming the row, and what is wrong of it.
        ValueError: for a box together with an ``input_scale``.

    Example:
        >>> import torch
        >>> from admm_lip.local import certify_local
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> found = certify_local(model, torch.tensor([[3.0, 1.0]]), radius=0.5)
        >>> round(falsify_local(model, found).smallest_ratio, 3)
        1.0
    """
    config = replace(config or AttackConfig(), norm=found.norm, clip=found.box)  # type: ignore[arg-type]
    if found.box is not None and found.input_scale is not None:
        raise ValueError("found: expected a box or an input_scale, got both; attacks know one")
    double = copy.deepcopy(model).double().eval()
    double, x = in_units(double, found.x.reshape(-1, *found.input_shape), found.input_scale)
    if found.labels is not None:
        radii = torch.where(found.robust, found.radius, 0.0)
        return falsify(double, radii, x, found.labels, config=config, factors=factors)
    slopes = steepest_slopes(double, x, found.radius, config)
    bounds = found.lip[:, 0]
    if bool((slopes > bounds * (1.0 + 1e-9)).any()):
        row = int((slopes / bounds).argmax())
        raise SoundnessError(
            f"row {row}: a Lipschitz bound of {float(bounds[row]):.6g} on a ball on which a slope "
            f"of {float(slopes[row]):.6g} was met; the certificate is not of this network, or "
            "there is a bug: please report it"
        )
    ratio = bounds / slopes
    return Falsification(
        samples=len(ratio),
        attacks=len(ratio) * config.directions,
        norm=config.norm,
        distance=torch.full_like(ratio, math.inf),
        smallest_ratio=float(ratio.min()) if len(ratio) else math.inf,
        median_ratio=float(ratio.median()) if len(ratio) else math.inf,
    )


def steepest_slopes(
    model: nn.Module, x: Tensor, radii: Tensor, config: AttackConfig | None = None
) -> Tensor:
    """The largest ``||J(z) v||_2`` met over points z of each ball and directions v of norm 1.

    Args:
        model: the network, run in evaluation mode.
        x: inputs ``(n, ...)``.
        radii: of the balls, ``(n,)``.
        config: its norm is that of balls and directions, its ``directions`` the points per ball.

    Returns:
        ``(n,)``: l2 the norm of the Jacobian at the steepest point; linf one of power steps on it,
        from below.
    """
    config = config or AttackConfig()
    generator = torch.Generator().manual_seed(config.seed)
    steepest = torch.zeros_like(radii)
    column = (-1, *([1] * (x.ndim - 1)))
    with frozen(model):
        for _ in range(config.directions):
            away = torch.randn(x.shape, generator=generator, dtype=x.dtype).sign()
            if config.norm == "l2":
                away = torch.randn(x.shape, generator=generator, dtype=x.dtype)
                away = away / lengths(away.flatten(1)).reshape(column)
            share = torch.rand(len(x), generator=generator, dtype=x.dtype)
            point = x + away * (share * radii).reshape(column)
            point = point if config.clip is None else point.clamp(*config.clip)
            steepest = torch.maximum(steepest, _GAINS[config.norm](_jacobians(model, point)))
    return steepest


def _jacobians(model: nn.Module, x: Tensor) -> Tensor:
    """``(n, outputs, inputs)``."""
    x = x.detach().requires_grad_(True)
    outputs = model(x)
    rows = [
        torch.autograd.grad(outputs[:, j].sum(), x, retain_graph=True)[0].flatten(1)
        for j in range(outputs.shape[1])
    ]
    return torch.stack(rows, dim=1)


def _corner_gain(jacobians: Tensor) -> Tensor:
    """``||J v||_2`` at a corner of the box, after power steps from the one along the rows' sum."""
    v = jacobians.sum(dim=1).sign()
    for _ in range(5):
        v = torch.einsum("npi,np->ni", jacobians, torch.einsum("npi,ni->np", jacobians, v)).sign()
    return lengths(torch.einsum("npi,ni->np", jacobians, v))


# From Jacobians to how far a displacement of norm 1 is moved.
_GAINS = {"l2": lambda j: torch.linalg.matrix_norm(j, 2), "linf": _corner_gain}


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
    for name, away, hit in _attempts(model, x, y, radii, config or AttackConfig()):
        if bool(hit.any()):
            worst = int(hit.nonzero()[0])
            raise SoundnessError(
                f"row {worst}: certified up to radius {float(radii[worst]):.6g}, but "
                f"{name} found another class at distance {float(away[worst]):.6g} "
                f"({int(hit.sum())} such rows); the certificate is not of this network, or "
                "there is a bug: please report it"
            )


def broken(
    model: nn.Module, x: Tensor, y: Tensor, radii: Tensor, config: AttackConfig | None = None
) -> Tensor:
    """Boolean ``(n,)``: where an attack succeeds inside the radius; arguments as above."""
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _, _, hit in _attempts(model, x, y, radii, config or AttackConfig()):
        found |= hit
    return found


def _attempts(
    model: nn.Module, x: Tensor, y: Tensor, radii: Tensor, config: AttackConfig
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Per attack its name, the distance of what it found, and whether that breaks the radius."""
    rows = (radii > 0).nonzero().flatten()
    away = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    hit = torch.zeros_like(away, dtype=torch.bool)
    x, y, radii = x[rows], y[rows], radii[rows].double().clamp(max=_FAR)
    inside = (radii * (1.0 - _ROUNDINGS * torch.finfo(x.dtype).eps)).to(x.dtype)
    for attack in _ATTACKS:
        found = attack(model, x, y, inside, config)
        away[rows] = distance_between(found, x, config.norm)
        hit[rows] = _fooled_in_double(model, found, y) & (away[rows] < radii)
        yield attack.__name__, away, hit


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
    return lengths(move) if norm == "l2" else move.abs().amax(dim=1)


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


def in_units(model: nn.Module, x: Tensor, scale: Any) -> tuple[nn.Module, Tensor]:
    """Model and inputs in the units of a certificate."""
    if scale is None:
        return model, x
    factor = torch.tensor(scale, dtype=torch.float64).reshape(x.shape[1:])
    return _Scaled(model, factor), x * factor.to(x)


def _fooled_in_double(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return fooled(copy.deepcopy(model).double().eval(), x.double(), y)
