"""The check of a certificate: no solver, no torch, NumPy and SciPy only.

A certificate holds the multiplier T of a matrix inequality.  :func:`check` reads the network
again, builds the inequality from its stored weights and proves it through rounding (``proof.py``).
Nothing that the certificate says of its own making is believed.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import CertificateError, NetworkError, UnsupportedModule
from ..foreign.open import network_of
from ..networks.layers import Array, Shape
from ..networks.network import Network
from ..units import Units
from .certificate import (
    AnyCertificate,
    Certificate,
    FunctionalBound,
    FunctionalCertificate,
)
from .claim_matrices import Matrices, functional, measured, scales_of
from .document import LayerSlopes, chain_slopes
from .functional_base import FunctionalBase, behind_torus, neuron_by_neuron
from .last_layer import bounded, check_functionals, split
from .norm_product import norm_product, spectral_norm
from .proof import is_constant, is_constant_functional, unproven
from .torus.check import proven_on_torus, slopes_on_torus, torus_product
from .torus.every_size import every_size_chain
from .torus.measure import measured_on_torus
from .torus.phases import in_phases
from .torus.read import torus_chain
from .torus.steps import TorusChain

if TYPE_CHECKING:
    from torch import nn


class Claim(Protocol):
    """What every certificate says of the network it is of."""

    @property
    def digest(self) -> str:
        """SHA-256 of the network."""

    @property
    def input_shape(self) -> Shape:
        """Shape of one input."""


_log = logging.getLogger("admm_lip")

# What rounding may make of the figures beside the bound, relatively.
_ROUNDING = 1e-6


def check(certificate: AnyCertificate, model: nn.Module | Network | str | Path) -> None:
    """What :func:`admm_lip.verify` does for the kinds that hold for all inputs.

    Raises:
        CertificateError: for another network, an edited multiplier, a lowered bound, or slopes that
            the activations do not have.
    """
    network = certified_network(certificate, model)
    for name, (alpha, beta) in certificate.promised.items():
        _log.warning(
            "%s: its slopes [%s, %s] are promised, not proven; the bound holds if it has them",
            *(name, alpha, beta),
        )
    if isinstance(certificate, FunctionalCertificate):
        _check_functionals(certificate, network)
        return
    if certificate.switch:
        _check_on_torus(certificate, network)
        return
    inner, last = split(network)
    chain = inner.chain()
    _check_slopes(certificate.slopes, chain_slopes(chain))
    matrices = measured(chain, certificate.norm, certificate.units)
    matrices = bounded(matrices, last, certificate.units)
    norms = [spectral_norm(w) for w in matrices.weights[:-1]]
    constant = is_constant(chain)
    if not (constant and certificate.lip == 0.0):
        _check_proof("", certificate, matrices)
    product = norm_product(matrices, [*norms, spectral_norm(matrices.weights[-1])])
    _check_beside("", certificate, 0.0 if constant else product)


def _check_on_torus(certificate: Certificate, network: Network) -> None:
    """Prove a bound whose first multipliers are per channel."""
    if certificate.every_size:
        if certificate.norm != "l2" or certificate.units is not None:
            raise CertificateError("every_size: goes with norm 'l2' and no units")
        chain = every_size_chain(network, certificate.every_size)
    else:
        chain = _measured_chain(certificate, network, certificate.units)
    _check_slopes(certificate.slopes, slopes_on_torus(chain))
    reason = proven_on_torus(chain, _arrays(certificate.multiplier), certificate.lip)
    if reason is not None:
        raise CertificateError(f"lip: {certificate.lip!r} is not proven: {reason}")
    _check_beside("", certificate, torus_product(chain))


def _measured_chain(
    certificate: AnyCertificate, network: Network, units: Units | None
) -> TorusChain:
    """The network up to the switch on a torus, its inputs (and outputs) measured as claimed."""
    chain = in_phases(torus_chain(network, certificate.switch), certificate.phases)
    return measured_on_torus(chain, network.input_shape or (), certificate.norm, units)


def certified_network(certificate: Claim, model: nn.Module | Network | str | Path) -> Network:
    """The model as a network, once it is exactly the one that the certificate is of.

    Raises:
        CertificateError: where it is another one, or takes inputs of another shape.
        UnsupportedModule: for a model that no certificate is of.
    """
    shape = certificate.input_shape
    try:
        network = network_of(model, shape)
    except UnsupportedModule:
        raise
    except NetworkError as error:
        raise CertificateError(
            f"input_shape: the model cannot be read with inputs of {shape}: {error}"
        ) from error
    check_belongs(certificate, network)
    if network.size_in != math.prod(shape):
        raise CertificateError(
            f"input_shape: the network takes {network.size_in} numbers, got {shape}"
        )
    return network


def check_belongs(certificate: Claim, network: Network) -> None:
    """Raise :class:`CertificateError` unless the certificate was made for exactly this network."""
    digest = network.digest()
    if certificate.digest != digest:
        raise CertificateError(
            f"digest: the certificate is of another network ({certificate.digest[:12]}..., this "
            f"one is {digest[:12]}...); certify this model anew"
        )


def check_outputs(certificate: FunctionalCertificate, outputs: int) -> None:
    """Raise :class:`CertificateError` unless the directions are of so many outputs."""
    got = len(certificate.bounds[0].direction)
    if got != outputs:
        raise CertificateError(f"bounds: expected directions of {outputs} outputs, got {got}")


def _check_slopes(claimed: tuple[LayerSlopes, ...], true: tuple[LayerSlopes, ...]) -> None:
    if len(claimed) != len(true):
        raise CertificateError(f"slopes: expected {len(true)} hidden layers, got {len(claimed)}")
    for k, (c, t) in enumerate(zip(claimed, true, strict=True)):
        if c != t:
            raise CertificateError(
                f"slopes[{k}]: expected {t.activation} with [{t.alpha}, {t.beta}], "
                f"got {c.activation} with [{c.alpha}, {c.beta}]"
            )


def _check_proof(name: str, bound: Certificate | FunctionalBound, matrices: Matrices) -> None:
    if len(bound.multiplier) != len(matrices.slopes):
        raise CertificateError(
            f"{name}multiplier: expected {len(matrices.slopes)} layers of it (one per hidden "
            f"layer, for norm 'linf' one for the inputs), got {len(bound.multiplier)}"
        )
    reason = unproven(matrices, _arrays(bound.multiplier), bound.lip)
    if reason is not None:
        raise CertificateError(f"{name}lip: {bound.lip!r} is not proven: {reason}")


def _check_beside(name: str, bound: Certificate | FunctionalBound, product: float) -> None:
    """The figures beside a proven bound: computed again, or at least in their order."""
    if not math.isclose(bound.norm_product, product, rel_tol=_ROUNDING):
        raise CertificateError(
            f"{name}norm_product: expected {product!r}, got {bound.norm_product!r}"
        )
    for less, more in (("sampled_lower", "lower_lip"), ("lower_lip", "lip")):
        low, high = getattr(bound, less), getattr(bound, more)
        if low > high * (1.0 + _ROUNDING):
            raise CertificateError(f"{name}{less}: expected at most {more}, {high!r}, got {low!r}")


def _check_functionals(certificate: FunctionalCertificate, network: Network) -> None:
    """Prove each bound, its outputs in their own units."""
    inner, last = split(network)
    base = _base(certificate, inner)
    _check_slopes(certificate.slopes, base.slopes)
    outputs = base.plain.widths[-1]
    check_outputs(certificate, outputs)
    scales = scales_of(certificate.units, inner.size_in, outputs)[1]
    check_functionals(last, [bound.direction for bound in certificate.bounds], scales)
    norms = base.norms()
    for k, bound in enumerate(certificate.bounds):
        name, row = f"bounds[{k}].", np.array(bound.direction)
        constant = is_constant_functional(base.chain, row, scales)
        if not (constant and bound.lip == 0.0):
            _check_proof(name, bound, functional(base.seen, row, scales))
        product = base.product(functional(base.plain, row, scales), norms)
        _check_beside(name, bound, 0.0 if constant else product)


def _base(certificate: FunctionalCertificate, network: Network) -> FunctionalBase:
    """What all bounds of a certificate share, read again from the network."""
    if not certificate.shared:
        return neuron_by_neuron(network, certificate.norm, certificate.units)
    units = certificate.units and certificate.units.of_inputs()
    return behind_torus(_measured_chain(certificate, network, units), _arrays(certificate.shared))


def _arrays(multiplier: tuple[tuple[float, ...], ...]) -> list[Array]:
    return [np.array(t, dtype=np.float64) for t in multiplier]
