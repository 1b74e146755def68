"""Local certificates: on the ball around each input, a proven Lipschitz bound and margin.

from admm_lip.local import LocalConfig, certify_local
found = certify_local(model, x, radius=0.5, y=labels)
found.robust        # which inputs provably keep their class on their ball
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..certificates.certificate import AnyCertificate
from ..certificates.claim_matrices import scales_of, units_given
from ..certificates.document import MODEL_UNITS, RAW_UNITS
from ..certificates.radii import labels_of, points_of
from ..certificates.verify import check_belongs
from ..data.arrays import as_numbers
from ..errors import CertificateError
from ..foreign.open import network_of
from ..networks.network import Network
from .bounds import Bounds, preactivation_bounds
from .config import BY_NAME
from .config import LocalConfig as LocalConfig
from .curves import Range
from .known import Known, known_of
from .levels import GLOBAL, LEVELS, NONE, Found, Wanted, local_lips, nothing
from .linear import center_values, margin_bounds
from .region import Box, Region
from .result import LocalCertificate
from .tensors import Net, chunks, net_of

# Samples bounded together; a batch also has at most this many entries in its largest tensor.
_SAMPLES = 256
_ENTRIES = 2**22
# A target that every bound exceeds by far.
_UNASKED = 1e-300


@dataclass(frozen=True, eq=False)
class Task:
    """A network and samples, checked; everything is float64 on the CPU.

    Attributes:
        functionals: ``(batch, m, p, n_out)``.
        items: which of them are asked for, ``(batch, m)``.
        known: bounds and multipliers for all inputs, or ``None``.
        input_scale: of every feature, or ``None``.
    """

    network: Network
    net: Net
    points: Tensor
    labels: Tensor | None
    functionals: Tensor
    items: Tensor
    known: Known | None
    config: LocalConfig
    input_scale: tuple[float, ...] | None

    def part(self, rows: Tensor) -> Task:
        """The task of some of the samples."""
        return replace(
            self,
            points=self.points[rows],
            labels=None if self.labels is None else self.labels[rows],
            functionals=self.functionals[rows],
            items=self.items[rows],
        )

    def batches(self) -> list[Tensor]:
        """Rows to be handled together."""
        widths = [len(a.bias) for a in self.net.maps]
        entries = max(widths) * max(*widths, self.points.shape[1] if self.config.box else 1)
        return chunks(torch.arange(len(self.points)), min(_SAMPLES, _ENTRIES // entries))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was proven of a batch at its radii.

    Attributes:
        found: Lipschitz bounds.
        margin: lower bounds of the functionals on the balls, by lines, ``(batch, m)``.
        center: lower bounds at the samples themselves.
    """

    found: Found
    margin: Tensor
    center: Tensor


def certify_local(
    model: nn.Module | Network,
    x: Any,
    radius: Any,
    y: Any = None,
    *,
    certificate: AnyCertificate | None = None,
    config: LocalConfig | None = None,
    input_shape: tuple[int, ...] | None = None,
    classes: Sequence[Any] | None = None,
) -> LocalCertificate:
    """Prove what a network does on the ball around each input (of l2, unless ``config`` says).

    Without labels: a Lipschitz constant of the whole output between any two points of the ball.
    With labels: for every other class j a constant of ``f_y - f_j`` between the input and any point
    of its ball (fewer slopes are possible then, so it is smaller), and a lower bound of the margin
    from linear bounds; the class is proven where either keeps the margin positive.

    Args:
        model: a chain of supported layers, or a :class:`~admm_lip.networks.network.Network`.
        x: inputs ``(batch, *input_shape)``, a tensor or any array, taken at their exact values.
        radius: of the balls, in the units of ``x`` (raw ones with ``config.input_scale``): one
            number, or one per input.
        y: labels, ``(batch,)``, ``(batch, 1)`` or one-hot, or ``None``.
        certificate: of this model, in the norm and units of ``config``: no bound will be above
            the certificate's, and its multipliers serve the level ``"implied"``.
        config: effort and input box.
        input_shape: where it is not that of ``x`` (a flattened batch in front of convolutions).
        classes: the labels in the order of the outputs, where ``y`` holds words or other numbers.

    Returns:
        A :class:`LocalCertificate`, every number of it proven through rounding.

    Raises:
        ValueError: naming ``x``, ``y`` or ``radius``.
        CertificateError: for a certificate of another network, norm or unit.

    Example:
        >>> import torch
        >>> from admm_lip.local import certify_local
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(),
        ...                             torch.nn.Linear(2, 1))
        >>> for p, v in zip(model.parameters(), ([[1.], [1.]], [0., -1.], [[1., -1.]], [0.])):
        ...     p.data = torch.tensor(v)      # relu(x) - relu(x - 1): constant from 1 on
        >>> found = certify_local(model, torch.tensor([[0.5], [3.0]]), radius=0.25)
        >>> [round(v, 6) for v in found.lip[:, 0].tolist()]
        [1.0, 0.0]
    """
    task = task_of(model, x, y, certificate, config, input_shape, classes)
    radii = radii_of(radius, len(task.points))
    begun = time.monotonic()
    outcomes = []
    for done, rows in enumerate(task.batches()):
        share = _deadline(task.config, begun, (done + 1) * len(rows))
        outcomes.append(prove(task.part(rows), radii[rows], deadline=share))
    return assembled(task, radii, outcomes)


def assembled(task: Task, radii: Tensor, outcomes: list[Outcome]) -> LocalCertificate:
    """One certificate of all batches."""
    empty = torch.zeros(0, task.items.shape[1], dtype=torch.float64)
    hidden = sum(len(a.bias) for a in task.net.maps[:-1])
    found, box = [o.found for o in outcomes], task.config.box
    return LocalCertificate(
        digest=task.network.digest(),
        input_shape=task.network.input_shape or (),
        box=None if box is None else (float(box[0]), float(box[1])),
        x=task.points,
        radius=radii,
        labels=None if task.labels is None else task.labels.to(torch.int64),
        lip=torch.cat([f.lip for f in found] or [empty]),
        level=torch.cat([f.level for f in found] or [empty.to(torch.int8)]),
        roots=torch.cat([f.roots for f in found] or [empty[:, :, None].expand(-1, -1, hidden)]),
        margin=torch.cat([o.margin for o in outcomes] or [empty]),
        center=torch.cat([o.center for o in outcomes] or [empty]),
        norm=task.config.norm,
        input_scale=task.input_scale,
    )


def prove(
    task: Task,
    radii: Tensor,
    *,
    decide: bool = False,
    lines_only: bool = False,
    deadline: float = math.inf,
) -> Outcome:
    """Bounds of a batch at the given radii.

    Args:
        task: the batch.
        radii: ``(batch,)``.
        decide: only what the class needs: nothing is bounded where lines already prove it.
        lines_only: no Lipschitz bounds but those known for all inputs.
        deadline: see :class:`Wanted`.
    """
    net, (region, everywhere) = task.net, ball_region(task, radii)
    bounds = preactivation_bounds(net, region)
    centred = task.labels is not None
    slopes = [layer.anchored if centred else layer.slopes for layer in bounds.layers]
    flat = task.functionals[:, :, 0] if centred else task.functionals[:, 0]
    center, margin = _claims(net, bounds, flat)
    if centred:
        margin = torch.where(everywhere, -math.inf, margin)
        asked = (margin <= 0.0) & (center > 0.0) & (region.radius > 0.0)[:, None]
        goal = center / region.radius[:, None] * (1.0 - 1e-8)
        # What lines decide, or nothing can, gets a bound but no Newton steps.
        target = torch.where(asked, goal, _UNASKED)
    else:
        center = margin = torch.zeros_like(task.items, dtype=torch.float64)
        asked, target = task.items, torch.zeros_like(center)
    if lines_only:
        found = nothing(net, task.items)
    else:
        wanted = _wanted(task, task.items & asked if decide else task.items, target, deadline)
        found = local_lips(net, slopes, replace(wanted, decide=decide and centred))
    found = _on_balls(found, everywhere)
    if task.known is not None:
        found = _capped(found, task.known.lips(task.labels, len(radii)), task.items)
    return Outcome(_finite(found, slopes), margin, center)


def ball_region(task: Task, radii: Tensor) -> tuple[Region, Tensor]:
    """The balls, and which of them are the whole space, ``(batch, 1)``.

    Those are bounded at their samples alone: nothing but a bound for all inputs holds there.
    """
    everywhere = torch.isposinf(radii)
    region = Region(task.points, torch.where(everywhere, 0.0, radii), task.config.box)
    return region, everywhere[:, None]


def _on_balls(found: Found, everywhere: Tensor) -> Found:
    """Bounds of balls, none where the ball is the whole space."""
    return Found(
        torch.where(everywhere, math.inf, found.lip),
        torch.where(everywhere, NONE, found.level).to(torch.int8),
        torch.where(everywhere[:, :, None], 0.0, found.roots),
    )


def _claims(net: Net, bounds: Bounds, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Lower bounds at the samples and on their balls, low enough for another order of summation."""
    center = center_values(net, bounds, rows, doubt=2.0)
    spare = (center_values(net, bounds, rows) - center) + 1e-9 * center.abs()
    margin = margin_bounds(net, bounds, rows)
    margin = margin - spare - 1e-9 * margin.abs()
    known = torch.isfinite(margin) & torch.isfinite(center)
    return torch.where(known, center, -math.inf), torch.where(known, margin, -math.inf)


def _wanted(task: Task, items: Tensor, target: Tensor, deadline: float) -> Wanted:
    level = BY_NAME[task.config.level]
    known = None if task.known is None else task.known.multipliers(task.labels, len(items))
    return Wanted(task.functionals, items, target, level, deadline, known)


def _capped(found: Found, lips: Tensor, items: Tensor) -> Found:
    """No bound above the one for all inputs."""
    use = items & (lips < found.lip)
    return Found(
        torch.where(use, lips, found.lip),
        torch.where(use, GLOBAL, found.level).to(torch.int8),
        torch.where(use[:, :, None], 0.0, found.roots),
    )


def _finite(found: Found, slopes: list[Range]) -> Found:
    """Samples whose bounds overflowed prove nothing."""
    bad = torch.isnan(found.lip)
    for s in slopes:
        bad |= ~(torch.isfinite(s.low) & torch.isfinite(s.high)).all(dim=1, keepdim=True)
    level = torch.where(bad, NONE, found.level).to(torch.int8)
    return Found(torch.where(bad, math.inf, found.lip), level, found.roots)


def _deadline(config: LocalConfig, begun: float, samples: int) -> float:
    return math.inf if config.seconds is None else begun + config.seconds * samples


def task_of(
    model: nn.Module | Network,
    x: Any,
    y: Any,
    certificate: AnyCertificate | None,
    config: LocalConfig | None,
    input_shape: tuple[int, ...] | None,
    classes: Sequence[Any] | None = None,
) -> Task:
    """Read and check everything but the radius."""
    x = as_numbers("x", x)
    shape = certificate.input_shape if certificate is not None else input_shape
    if shape is None and x.ndim > 2:
        shape = tuple(x.shape[1:])
    network = network_of(model, shape)
    config = config or LocalConfig()
    units, chain = units_given(None, config.input_scale), network.chain()
    scales, _ = scales_of(units, chain.widths[0], chain.widths[-1])
    scale = None if units is None else tuple(scales.tolist())
    if certificate is not None:
        check_measure(certificate, network, config.norm, scale)
    net = net_of(chain, config.norm, scale)
    points = points_of(x, network.input_shape or ()).contiguous()
    check_points(points, config.box)
    outputs = len(net.maps[-1].bias)
    labels = None if y is None else labels_of(y, len(points), outputs, classes)
    functionals, items = functionals_for(labels, len(points), outputs)
    known = None if certificate is None else known_of(certificate, outputs)
    return Task(network, net, points, labels, functionals, items, known, config, scale)


def check_measure(
    certificate: AnyCertificate, network: Network, norm: str, scale: tuple[float, ...] | None
) -> None:
    """Raise :class:`CertificateError` unless the certificate measures distances in the same way."""
    check_belongs(certificate, network)
    mine, theirs = (RAW_UNITS if s is not None else MODEL_UNITS for s in (scale, certificate.units))
    if certificate.norm != norm or certificate.input_scale != scale:
        raise CertificateError(
            f"norm / units: expected a certificate of {norm} in units of the {mine}, as the local "
            f"bounds' config has it, got {certificate.norm} in those of the {theirs}; give "
            "LocalConfig the certificate's norm and input_scale"
        )
    if certificate.units is not None and certificate.units.scales_outputs:
        raise CertificateError(
            "units: local bounds measure outputs as the model gives them; expected a certificate "
            "with output_scale 1"
        )


def functionals_for(labels: Tensor | None, count: int, outputs: int) -> tuple[Tensor, Tensor]:
    """The functionals of each sample, ``(batch, m, p, n_out)``, and which are asked for.

    Without labels: all outputs together.  With labels: ``f_y - f_j`` for every j, of which y itself
    is not asked for; of one output: plus or minus that.
    """
    eye = torch.eye(outputs, dtype=torch.float64)
    if labels is None:
        return eye.expand(count, 1, -1, -1), torch.ones(count, 1, dtype=torch.bool)
    if outputs == 1:
        signs = labels.to(torch.float64)[:, None, None, None]
        return signs, torch.ones(count, 1, dtype=torch.bool)
    rows = eye[labels][:, None] - eye
    return rows[:, :, None], torch.arange(outputs) != labels[:, None]


def check_points(points: Tensor, box: Box | None) -> None:
    """Raise :class:`ValueError` for inputs that are not finite or outside the box."""
    finite = torch.isfinite(points).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise ValueError(f"x: expected finite inputs, got a NaN or infinity in row {row}")
    if box is not None and len(points):
        low, high = float(points.min()), float(points.max())
        if low < box[0] or high > box[1]:
            raise ValueError(
                f"x: expected inputs inside the box [{box[0]:g}, {box[1]:g}], got values from "
                f"{low:g} to {high:g}"
            )


def radii_of(radius: Any, count: int) -> Tensor:
    """One radius per sample, checked."""
    radii = torch.as_tensor(radius, dtype=torch.float64).detach().cpu()
    if radii.ndim > 1 or (radii.ndim == 1 and len(radii) != count):
        raise ValueError(
            f"radius: expected one number or one per input, ({count},), got {tuple(radii.shape)}"
        )
    radii = radii.expand(count).clone()
    for value in radii.tolist():
        if not (math.isfinite(value) and value >= 0.0):
            raise ValueError(f"radius: expected finite numbers >= 0, got {value!r}")
    return radii


__all__ = ["LEVELS", "LocalConfig", "certify_local"]
