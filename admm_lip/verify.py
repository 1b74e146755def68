"""The check of a certificate: no solver, no torch, NumPy and SciPy only.

A certificate holds the multiplier T of a matrix inequality.  :func:`verify` reads the network
again, builds the inequality from its stored weights and proves it through rounding (``proof.py``).
Nothing that the certificate says of its own making is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .certificate import Certificate, LayerSlopes, chain_slopes
from .errors import CertificateError
from .network import Chain, Network
from .proof import unproven
from .storage import network_of

if TYPE_CHECKING:
    from torch import nn


def verify(certificate: Certificate | str | Path, model: nn.Module | Network | str | Path) -> None:
    """Prove that ``certificate.lip`` bounds the l2 Lipschitz constant of ``model``.

    What is proven speaks of the real-valued function of the stored weights, evaluated without
    rounding, dropout off.

    Args:
        certificate: the certificate, or the path of its file.
        model: a torch module, a :class:`~admm_lip.network.Network`, or the folder of a run.

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
    if not isinstance(certificate, Certificate):
        certificate = Certificate.load(certificate)
    check = _CHECKS.get((certificate.norm, certificate.kind, certificate.units))
    if check is None:
        known = "; ".join(" / ".join(key) for key in _CHECKS)
        raise CertificateError(
            f"norm / kind / units: expected {known}, got {certificate.norm} / {certificate.kind} "
            f"/ {certificate.units}"
        )
    network = network_of(model, certificate.input_shape)
    check_belongs(certificate, network)
    chain = network.chain()
    _check_slopes(certificate.slopes, chain_slopes(chain))
    check(certificate, chain)


def check_belongs(certificate: Certificate, network: Network) -> None:
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


def _check_global_l2(certificate: Certificate, chain: Chain) -> None:
    multiplier = [np.array(t, dtype=np.float64) for t in certificate.multiplier]
    reason = unproven(chain, multiplier, certificate.lip)
    if reason is not None:
        raise CertificateError(f"lip: {certificate.lip!r} is not proven: {reason}")


# (norm, kind, units) that can be checked, and how.
_CHECKS: Mapping[tuple[str, str, str], Callable[[Certificate, Chain], None]] = {
    ("l2", "global", "model input"): _check_global_l2,
}
