"""A certificate with multipliers per channel as one with multipliers per neuron.

The matrix inequality of an image is a principal part of the torus's, so a channel's multiplier is
that of each of its pixels.  Two changes of scale lie between them.  On the torus ``|x|^2`` stands
where a certificate has ``L^2 |x|^2``, and with slopes from a to b the signal weighed there is
``(x_+ - a z) / (b - a)``; sums and differences of pairs are smaller there by sqrt 2.  NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...errors import CertificateError
from ...networks.activations import ACTIVATIONS
from ...networks.layers import Array, Shape
from ...networks.network import Network
from ...networks.sorting import SORTS
from ..certificate import AnyCertificate, Certificate
from ..document import LayerSlopes, chain_slopes
from .phases import in_phases, phases_of
from .read import torus_chain
from .steps import ZERO_PADDING, Pair

Multiplier = tuple[tuple[float, ...], ...]


def unrolled(network: Network, certificate: AnyCertificate) -> AnyCertificate:
    """The same claims, proven neuron by neuron; a certificate without channels as it is.

    Args:
        network: convolutions and activations one after the other, small enough for its matrices.
        certificate: of it, whose slopes hold 0 by themselves in what is taken per channel.

    Raises:
        CertificateError: for skips, and for slopes that the torus had to widen.
    """
    if not certificate.switch:
        return certificate
    if not network.is_path:
        raise CertificateError(
            "switch: multipliers per channel beside skips are not known per neuron; certify with "
            "structure='exact'"
        )
    own = chain_slopes(network.chain())
    pixels = _pixels(network, certificate, own)
    if isinstance(certificate, Certificate):
        per_channel = certificate.multiplier[: pixels.count]
        rest = certificate.multiplier[pixels.count :]
        multiplier = (*pixels.spread(per_channel, certificate.lip), *rest)
        return replace(
            certificate, multiplier=multiplier, slopes=own, switch=0, every_size=0, phases=1
        )
    bounds = tuple(
        replace(b, multiplier=(*pixels.spread(certificate.shared, b.lip), *b.multiplier))
        for b in certificate.bounds
    )
    return replace(certificate, bounds=bounds, slopes=own, shared=(), phases=1)


@dataclass(frozen=True, eq=False)
class _Pixels:
    """Where the multipliers per channel go.

    Attributes:
        count: how many layers have them.
        layers: those that have neurons in the image: number, phases, rows and columns, and what
            multipliers are multiplied by.
    """

    count: int
    layers: list[tuple[int, Pair, Shape, float]]

    def spread(self, channels: Sequence[Sequence[float]], lip: float) -> Multiplier:
        """Multipliers of neurons, for a bound."""
        if len(channels) != self.count:
            raise CertificateError(
                f"multiplier: expected {self.count} layers per channel, got {len(channels)}"
            )
        return tuple(
            tuple((lip**2 * share * _of_pixels(channels[k], phases, sides)).tolist())
            for k, phases, sides, share in self.layers
        )


def _pixels(network: Network, certificate: AnyCertificate, own: Sequence[LayerSlopes]) -> _Pixels:
    """Where they go in a network of such slopes."""
    switch, stated = certificate.switch, certificate.slopes[: certificate.switch]
    # What passes unchanged within the image needs no multiplier there.
    kept = [k for k, layer in enumerate(stated) if layer.activation != ZERO_PADDING]
    if certificate.slopes[switch:] != own[len(kept) :]:
        raise CertificateError(
            f"slopes: expected {own[len(kept) :]!r:.200} behind the first {switch}, got "
            f"{certificate.slopes[switch:]!r:.200}"
        )
    front, phases = certificate.norm == "linf", _phases(network, certificate)
    shares = _shares(network, own[: len(kept)], [stated[k] for k in kept])
    # By their numbers, from 1: 0 is the input.
    layers = [(k + 1, *each) for k, each in zip(kept, shares, strict=True)]
    if front:  # that of the input, of slopes -1 and 1
        layers.insert(0, (0, certificate.input_shape[1:], 0.25))
    return _Pixels(
        switch + front,
        [(k - 1 + front, phases[k], sides, share) for k, sides, share in layers],
    )


def _phases(network: Network, certificate: AnyCertificate) -> list[Pair]:
    """Those of the input, and of each activation on the torus."""
    if certificate.phases == 1:
        return [(1, 1)] * (certificate.switch + 1)
    chain = torus_chain(network, certificate.switch)
    return [in_phases(chain, certificate.phases).phases, *phases_of(chain, certificate.phases)]


def _of_pixels(t: Sequence[float], phases: Pair, sides: Shape) -> Array:
    """Multipliers per channel and phase, one by one for the pixels of an image."""
    if len(t) % math.prod(phases):
        raise CertificateError(
            f"multiplier: expected a multiple of {math.prod(phases)}, the phases, got {len(t)}"
        )
    places = [np.arange(side) % apart for side, apart in zip(sides, phases, strict=True)]
    found: Array = np.array(t).reshape(-1, *phases)[:, places[0][:, None], places[1]].ravel()
    return found


def _shares(
    network: Network, own: Sequence[LayerSlopes], stated: Sequence[LayerSlopes]
) -> Iterator[tuple[Shape, float]]:
    """Of each activation on the torus its rows and columns, and what multipliers are divided by."""
    shapes = network.shapes()
    layers = [s for s in network.layers if s.kind in ACTIVATIONS or s.kind in SORTS]
    for spec, true, wide in zip(layers, own, stated, strict=False):
        if (spec.label, true.alpha, true.beta) != (wide.activation, wide.alpha, wide.beta):
            raise CertificateError(
                f"slopes: expected those of {spec.name} ({spec.kind}), {true!r}, got {wide!r}; "
                "where they were widened to hold 0, multipliers are not known per neuron, so "
                "certify with structure='exact'"
            )
        turned = 2.0 if spec.kind in SORTS else 1.0
        yield shapes[spec.name][1:], 1.0 / (turned * (wide.beta - wide.alpha) ** 2)
