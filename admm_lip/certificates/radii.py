"""Certified radii: how far an input may move before its class can change.

If ``(e_y - e_j)' f`` has Lipschitz constant ``L_yj`` then the radius is the least
``(f_y - f_j) / L_yj`` over the other classes.  Pairwise certificates state these constants; a
global bound L gives ``sqrt(2) L`` for all of them, and bounds of single outputs give ``L_y + L_j``.

The logits are those of the real-valued function of the stored weights; they are enclosed, not
estimated: evaluated in float64 with a running bound on every rounding (``running_error.py``), and
the margin is taken at its lower end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.arrays import as_numbers, as_numbers_or_words, to_float64
from ..data.labels import binary_numbers, class_numbers, is_one_hot
from ..errors import CertificateError
from ..float64 import TINY, U
from ..networks.layers import Array, Shape
from ..networks.network import Network
from ..networks.running_error import enclosed
from ..shown import Fact, Row, Shown, number, share, word
from ..solvers.devices import float64_home
from ..units import Units
from .certificate import AnyCertificate
from .verify import certified_network

if TYPE_CHECKING:
    from ..plots import Sheet

# Covers the rounding of the error bounds themselves.
_SLACK = 1.001
_SMALLEST = 2.0**-1020


@dataclass(frozen=True, eq=False, repr=False)
class CertifiedRadii(Shown):
    """What :func:`admm_lip.certified_radii` found, to look at.

    Args:
        radius: one per row, float64.
        certificate: that they were read from, for their norm and unit.

    Example:
        >>> import torch
        >>> from admm_lip import CertifiedRadii, certified_radii, certify
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
        >>> model[0].weight.data = torch.eye(2)
        >>> x, y = torch.tensor([[3.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0])
        >>> made = certify(model)
        >>> CertifiedRadii(certified_radii(model, x, y, certificate=made), made)
        <certified radii: rows 2, certified 50.0%, median_radius 0 l2, largest 1.41421 l2>
    """

    radius: Tensor
    certificate: AnyCertificate

    brief = ("rows", "certified", "median_radius", "largest")

    def title(self) -> str:
        """What they are."""
        return "certified radii"

    def facts(self) -> tuple[Fact, ...]:
        """How many rows are certified at all, and how far."""
        rows = self.radius.detach().cpu().double()
        said = f" {self._measure()}"
        if not len(rows):
            return (word("rows", "rows", 0),)
        return (
            word("rows", "rows", len(rows)),
            share("certified", "certified at some radius", float((rows > 0).double().mean())),
            number("median_radius", "median certified radius", float(rows.median()), said),
            number("mean_radius", "mean certified radius", float(rows.mean()), said),
            number("largest", "largest certified radius", float(rows.max()), said),
        )

    def table(self) -> list[Row]:
        """One row per row."""
        return [{"certified_radius": radius} for radius in self.radius.tolist()]

    def plot(self) -> Sheet:
        """The share of rows beyond each radius."""
        from ..result_plots import plot_shares

        return plot_shares(self.radius.tolist(), f"certified radius, {self._measure()}")

    def _measure(self) -> str:
        """The norm, in whose units."""
        return f"{'raw ' if self.certificate.units is not None else ''}{self.certificate.norm}"


def radii_of(
    model: nn.Module | Network,
    x: Any,
    y: Any,
    certificate: AnyCertificate,
    *,
    units: Units | None = None,
    classes: Sequence[Any] | None = None,
) -> Tensor:
    """What :func:`admm_lip.certified_radii` does with a certificate; arguments are as there."""
    network = certified_network(certificate, model)
    outputs = math.prod(network.shapes()[network.output])
    slopes = _slopes_of(certificate, outputs)
    points = points_of(x, network.input_shape or ())
    labels = labels_of(y, len(points), outputs, classes)
    points, off = _as_the_model_takes(points, units, certificate.units)
    logits, error = (torch.from_numpy(part).flatten(1) for part in enclosed(network, points, off))
    return _radii(logits, error, labels, slopes).to(float64_home(x))


def _slopes_of(certificate: AnyCertificate, outputs: int) -> Tensor:
    """Bounds of ``(e_i - e_j)' f`` for all i, j."""
    steepness = _STEEPNESS.get(certificate.kind)
    if steepness is None:
        raise CertificateError(
            f"kind: expected one of {', '.join(_STEEPNESS)}, got {certificate.kind}; certify the "
            "model anew"
        )
    return torch.from_numpy(steepness(certificate, outputs) / _output_scale(certificate, outputs))


def _output_scale(certificate: AnyCertificate, outputs: int) -> float:
    """What the certificate's outputs are in those of the model, a little less for rounding."""
    units = certificate.units
    if units is None:
        return 1.0
    scale, shift = units.output_scales(outputs), np.unique(units.output_shift)
    if len(set(scale)) > 1 or len(shift) > 1 or (outputs == 1 and shift[0] != 0.0):
        raise CertificateError(
            "units: a radius needs one output_scale and one output_shift for all scores (for a "
            f"single one no shift), got {units.output_scale!r:.80} and {units.output_shift!r:.80}"
        )
    return scale[0] * (1.0 - 4.0 * U)


def _as_the_model_takes(
    points: Tensor, units: Units | None, certified: Units | None
) -> tuple[Tensor, Tensor]:
    """Points in the model's units, and a bound on the rounding of each entry."""
    if units is None:
        return points, torch.zeros_like(points)
    scales = units.input_scales(points.shape[1])
    if certified is not None and certified.input_scales(points.shape[1]) != scales:
        raise CertificateError("units: expected the input_scale of the certificate, got another")
    moved = torch.from_numpy(units.to_model(points))
    return moved, 3.0 * U * moved.abs() + TINY


def _global_steepness(certificate: Any, outputs: int) -> Array:
    """A bound of ``(e_i - e_j)' f`` for all i, j; of f itself where it is one output."""
    factor = math.sqrt(2.0) * (1.0 + 2.0 * U) if outputs > 1 else 1.0
    return np.full((outputs, outputs), certificate.lip * factor)


def _pairwise_steepness(certificate: Any, outputs: int) -> Array:
    slopes: Array = certificate.pair_lips()
    return slopes


def _per_output_steepness(certificate: Any, outputs: int) -> Array:
    lips: Array = certificate.lips
    return lips[:, None] + lips if outputs > 1 else lips[:, None]


# Per kind of certificate, its bounds for the difference of two outputs.
_STEEPNESS: Mapping[str, Callable[[Any, int], Array]] = {
    "global": _global_steepness,
    "monotone": _global_steepness,
    "pairwise": _pairwise_steepness,
    "per_output": _per_output_steepness,
}


def _radii(logits: Tensor, error: Tensor, labels: Tensor, slopes: Tensor) -> Tensor:
    """Lower end of ``min_j (f_y - f_j) / L_yj`` (one output: of ``+-f / L``), at least 0."""
    if logits.shape[1] == 1:
        lower, steepest = (labels * logits[:, 0] - error[:, 0])[:, None], slopes
    else:
        own = labels[:, None]
        gap = logits.gather(1, own) - logits
        lower = gap - _SLACK * (error.gather(1, own) + error) - 2.0 * U * gap.abs()
        others = torch.ones_like(lower, dtype=torch.bool).scatter(1, own, False)
        width = lower.shape[1] - 1
        steepest = slopes[labels][others].view(-1, width)
        lower = torch.where(torch.isfinite(lower).all(dim=1, keepdim=True), lower, 0.0)
        lower = lower[others].view(-1, width)
    # A margin over a slope of 0 is infinite.
    radius = (lower / steepest * (1.0 - 8.0 * U)).amin(dim=1)
    # A subnormal quotient is rounded by more than a factor.
    radius = torch.where(radius < _SMALLEST, 0.0, radius)
    return torch.where((lower > 0.0).all(dim=1), radius, torch.zeros_like(radius))


def points_of(x: Any, shape: Shape) -> Tensor:
    """The inputs as float64 rows, exactly."""
    rows = as_numbers("x", x)
    if rows.ndim == 1 and math.prod(shape) == 1:
        rows = rows[:, None]
    if rows.ndim < 2 or math.prod(rows.shape[1:]) != math.prod(shape):
        hint = "add the axis of the batch, x[None]" if tuple(rows.shape) == shape else "reshape it"
        raise ValueError(
            f"x: expected real numbers of shape (batch, {_sizes(shape)}), as the certificate's "
            f"input_shape, got {tuple(rows.shape)}; {hint}"
        )
    return to_float64("x", rows.cpu()).flatten(1)  # there first: a device may have no float64


def labels_of(y: Any, count: int, outputs: int, classes: Sequence[Any] | None = None) -> Tensor:
    """Class indices; for one output the sign of the class."""
    read = as_numbers_or_words("y", y)
    if isinstance(read, Tensor) and read.is_floating_point() and not is_one_hot(read, outputs):
        raise ValueError(
            f"y: expected integer class labels, got {read.dtype}; if they are labels, convert them "
            "by .astype(int) or .long(); a regression has no radius: within distance r its output "
            "moves by at most certificate.lip * r"
        )
    if outputs == 1 and classes is None:
        labels = binary_numbers("y", read)
    else:
        labels = class_numbers("y", read, max(outputs, 2), classes)
    if tuple(labels.shape) != (count,):
        raise ValueError(
            f"y: expected shape ({count},), one label per input, got {tuple(labels.shape)}"
        )
    labels = labels.cpu()
    return 2.0 * labels.to(torch.float64) - 1.0 if outputs == 1 else labels


def _sizes(shape: Shape) -> str:
    return ", ".join(map(str, shape))
