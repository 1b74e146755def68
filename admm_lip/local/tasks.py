"""A network and samples to be bounded on balls: read once, checked, batched."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..certificates.certificate import AnyCertificate
from ..certificates.document import MODEL_UNITS, RAW_UNITS
from ..certificates.verify import check_belongs
from ..errors import CertificateError
from ..networks.network import Network
from ..parallel import workers_of
from .config import BY_NAME, LocalConfig
from .curved_layers import CurvedNet, curved_layers
from .global_bounds import GlobalBounds
from .input_region import chunks, unit_ball
from .layers import is_monotone, stored_layers
from .norm_margins import NormMargins

# Samples bounded together; a batch also has at most this many entries in its largest tensor.
_SAMPLES = 256
_ENTRIES = 2**22


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network for all samples: its layers in the form that each way takes, made when asked for.

    Attributes:
        network: the network.
        config: norm, box and level.
        input_scale: of every feature, or ``None``.
    """

    network: Network
    config: LocalConfig
    input_scale: tuple[float, ...] | None

    @cached_property
    def curved(self) -> CurvedNet:
        """For the way by lines."""
        layers, given = curved_layers(self.network), self.input_scale
        scale = None if given is None else torch.tensor(given, dtype=torch.float64)
        return CurvedNet(layers, unit_ball(layers[0], self.config.norm, scale))

    @cached_property
    def norms(self) -> NormMargins:
        """For the way by norms."""
        read = stored_layers if is_monotone(self.network) else curved_layers
        return NormMargins(read(self.network), self.config.box)

    @property
    def widths(self) -> list[int]:
        """Greatest number of entries between two layers, of each layer."""
        net = self.curved.layers if self.config.by_lines else self.norms.layers
        return [layer.operator.size_out for layer in net]


@dataclass(frozen=True, eq=False)
class Task:
    """A network and samples, checked; everything is float64 on the CPU.

    Attributes:
        prepared: the network.
        functionals: ``(batch, m, p, n_out)``.
        items: which of them are asked for, ``(batch, m)``.
        known: bounds and multipliers for all inputs, or ``None``.
    """

    prepared: Prepared
    points: Tensor
    labels: Tensor | None
    functionals: Tensor
    items: Tensor
    known: GlobalBounds | None

    @property
    def config(self) -> LocalConfig:
        """Norm, box and level."""
        return self.prepared.config

    def part(self, rows: Tensor) -> Task:
        """The task of some of the samples."""
        return replace(
            self,
            points=self.points[rows],
            labels=None if self.labels is None else self.labels[rows],
            functionals=self.functionals[rows],
            items=self.items[rows],
        )

    def deadline(self) -> float:
        """When these samples are to be done, from now; infinite where nobody says."""
        seconds = self.config.seconds
        return math.inf if seconds is None else time.monotonic() + seconds * len(self.points)

    def batches(self, n_jobs: int | None = None) -> list[Tensor]:
        """Rows to be handled together: few enough that every worker has some."""
        workers = workers_of(n_jobs)
        most = math.ceil(len(self.points) / workers) if workers else len(self.points)
        return [some for rows in self._fitting() for some in chunks(rows, max(1, most))]

    def _fitting(self) -> list[Tensor]:
        """As many rows as memory allows."""
        if not self.config.by_lines:
            most = max(*self.prepared.widths, self.points.shape[1])
            return chunks(torch.arange(len(self.points)), min(_SAMPLES, 4 * _ENTRIES // most))
        widths = self.prepared.widths
        if BY_NAME[self.config.level] <= BY_NAME["norms"]:  # rows alone, some at a time
            most = max(*widths, self.points.shape[1])
            return chunks(torch.arange(len(self.points)), min(_SAMPLES, _ENTRIES // (64 * most)))
        entries = max(widths) * max(*widths, self.points.shape[1] if self.config.box else 1)
        return chunks(torch.arange(len(self.points)), min(_SAMPLES, _ENTRIES // entries))


def size_out(network: Network) -> int:
    """Number of outputs."""
    return math.prod(network.shapes()[network.output])


def prepared_of(network: Network, config: LocalConfig, scale: tuple[float, ...] | None) -> Prepared:
    """The network for the way that the level says.

    Raises:
        CertificateError: where that way cannot measure distances so.
    """
    if not config.by_lines and (config.norm != "l2" or scale is not None):
        raise CertificateError(
            f"level: {config.level} measures l2 in the units of the model's input; expected level "
            f"norms or a dearer one for norm {config.norm!r} or an input_scale"
        )
    return Prepared(network, config, scale)


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
