"""The check of a certificate: no solver, no torch, NumPy and SciPy only.

A certificate holds the multiplier T of a matrix inequality.  :func:`verify` reads the network
again, builds the inequality from its stored weights and proves it through rounding (``proof.py``).
Nothing that the certificate says of its own making is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CertificateError
from ..networks.network import Chain, Network
from ..networks.storage import network_of
from .certificate import (
    AnyCertificate,
    Certificate,
    FunctionalBound,
    FunctionalCertificate,
    load_certificate,
)
from .document import MODEL_UNITS, RAW_UNITS, Document, LayerSlopes, chain_slopes
from .proof import is_constant, unproven
from .restate import Matrices, functional, functionals_of, measured

if TYPE_CHECKING:
    from torch import nn

    from ..local.result import LocalCertificate


def verify(
    certificate: AnyCertificate | LocalCertificate | str | Path,
    model: nn.Module | Network | str | Path,
) -> None:
    """Prove every bound of a certificate for exactly this ``model``.

    What is proven speaks of the real-valued function of the stored weights, evaluated without
    rounding, dropout off.

    Args:
        certificate: the certificate, or the path of its file.
        model: a torch module, a :class:`~admm_lip.networks.network.Network`, or the folder of a
            run.

    Raises:
        CertificateError: for another network, an edited multiplier, a lowered bound, slopes that
            the activations do not have, or a norm, kind or unit that this version cannot check.

    Example:
        >>> import torch
        >>> from admm_lip import certify, verify
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(),
        ...                             torch.nn.Linear(5, 2))
        >>> verify(certify(model), model)
    """
    if isinstance(certificate, str | Path):
        certificate = load_certificate(certificate)
    if not isinstance(certificate, Document):
        from ..local.check import verify_local  # tensors: needs torch

        verify_local(certificate, model)
        return
    cls, check = _CHECKS.get(certificate.kind, (None, None))
    if cls is None or check is None or not isinstance(certificate, cls):
        raise CertificateError(
            f"kind: expected one of {', '.join(_CHECKS)}, with its own class of certificate, got "
            f"{certificate.kind!r} in a {type(certificate).__name__}"
        )
    network = network_of(model, certificate.input_shape)
    check_belongs(certificate, network)
    chain = network.chain()
    _check_slopes(certificate.slopes, chain_slopes(chain))
    check(certificate, chain)


def check_belongs(certificate: Document, network: Network) -> None:
    """Raise :class:`CertificateError` unless the certificate was made for exactly this network."""
    digest = network.digest()
    if certificate.digest != digest:
        raise CertificateError(
            f"digest: the certificate is of another network ({certificate.digest[:12]}..., this "
            f"one is {digest[:12]}...); certify this model anew"
        )


def _check_slopes(claimed: tuple[LayerSlopes, ...], true: tuple[LayerSlopes, ...]) -> None:
    if len(claimed) != len(true):
        raise CertificateError(f"slopes: expected {len(true)} hidden layers, got {len(claimed)}")
    for k, (c, t) in enumerate(zip(claimed, true, strict=True)):
        if c != t:
            raise CertificateError(
                f"slopes[{k}]: expected {t.activation} with [{t.alpha}, {t.beta}], "
                f"got {c.activation} with [{c.alpha}, {c.beta}]"
            )


def _check_measure(certificate: AnyCertificate, chain: Chain) -> Matrices:
    """What the certificate speaks of, for all outputs, once its norm and units are admitted."""
    units = MODEL_UNITS if certificate.input_scale is None else RAW_UNITS
    if certificate.units != units:
        have = "no" if certificate.input_scale is None else "an"
        raise CertificateError(
            f"units: expected {units!r} with {have} input_scale, got {certificate.units!r}"
        )
    return measured(chain, certificate.norm, certificate.input_scale)


def _check_bound(
    name: str, bound: Certificate | FunctionalBound, matrices: Matrices, chain: Matrices
) -> None:
    """Prove one bound; ``chain`` is the same in the units of the model."""
    if bound.lip == 0.0 and is_constant(chain):
        return
    if len(bound.multiplier) != len(matrices.slopes):
        raise CertificateError(
            f"{name}multiplier: expected {len(matrices.slopes)} layers of it (one per hidden "
            f"layer, for norm 'linf' one for the inputs), got {len(bound.multiplier)}"
        )
    multiplier = [np.array(t, dtype=np.float64) for t in bound.multiplier]
    reason = unproven(matrices, multiplier, bound.lip)
    if reason is not None:
        raise CertificateError(f"{name}lip: {bound.lip!r} is not proven: {reason}")


def _check_global(certificate: AnyCertificate, chain: Chain) -> None:
    assert isinstance(certificate, Certificate)  # its kind says so
    matrices = _check_measure(certificate, chain)
    _check_bound("", certificate, matrices, Matrices.of(chain))


def _check_functionals(certificate: AnyCertificate, chain: Chain) -> None:
    assert isinstance(certificate, FunctionalCertificate)  # its kind says so
    matrices, plain = _check_measure(certificate, chain), Matrices.of(chain)
    given = [b.direction for b in certificate.bounds]
    wanted = functionals_of(certificate.kind, given, chain.widths[-1])
    if len(given) != len(wanted):
        raise CertificateError(
            f"bounds: expected {len(wanted)} of kind {certificate.kind}, got {len(given)}"
        )
    for k, (bound, row) in enumerate(zip(certificate.bounds, wanted, strict=True)):
        if bound.direction != tuple(row.tolist()):
            raise CertificateError(
                f"bounds[{k}].direction: expected {_shown(row)}, got {_shown(bound.direction)}"
            )
        _check_bound(f"bounds[{k}].", bound, functional(matrices, row), functional(plain, row))


def _shown(direction: Any) -> str:
    """A functional in the words of a person: ``f_0 - f_3``."""
    terms = [f"{c:+g} f_{i}" for i, c in enumerate(direction) if c != 0.0]
    return " ".join(terms).replace("+1 ", "+ ").replace("-1 ", "- ") or "0"


# Per kind, the class of its certificates and their check.
_CHECKS: Mapping[str, tuple[type[Any], Callable[[AnyCertificate, Chain], None]]] = {
    "global": (Certificate, _check_global),
    "pairwise": (FunctionalCertificate, _check_functionals),
    "per_output": (FunctionalCertificate, _check_functionals),
    "directions": (FunctionalCertificate, _check_functionals),
}
