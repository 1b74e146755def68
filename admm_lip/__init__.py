"""admm-lip: certified Lipschitz bounds for ordinary PyTorch networks.

The public names are loaded when they are first used, so that reading and verifying a certificate
needs neither torch nor a solver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazily

if TYPE_CHECKING:
    from .api import certified_radii as certified_radii
    from .api import certify as certify
    from .api import verify as verify
    from .certificates.certificate import Certificate as Certificate
    from .certificates.certificate import FunctionalCertificate as FunctionalCertificate
    from .certificates.certificate import load_certificate as load_certificate
    from .certificates.in_onnx import export_onnx as export_onnx
    from .errors import CertificateError as CertificateError
    from .evaluation.falsify import falsify as falsify
    from .foreign.open import open_network as open_network
    from .lipschitz import Lipschitz as Lipschitz
    from .local.certify import certify_local as certify_local
    from .local.certify import certify_samples as certify_samples
    from .local.config import LocalConfig as LocalConfig
    from .local.result import LocalCertificate as LocalCertificate
    from .networks.registration import register_activation as register_activation
