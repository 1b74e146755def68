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
    from .certificates.certificate import MonotoneCertificate as MonotoneCertificate
    from .certificates.certificate import load_certificate as load_certificate
    from .certificates.in_onnx import export_onnx as export_onnx
    from .certificates.radii import CertifiedRadii as CertifiedRadii
    from .errors import CertificateError as CertificateError
    from .evaluation.comparison import Comparison as Comparison
    from .evaluation.falsify import falsify as falsify
    from .foreign.open import open_network as open_network
    from .lipschitz import All as All
    from .lipschitz import Lipschitz as Lipschitz
    from .lipschitz import Monotone as Monotone
    from .local.certify import certify_local as certify_local
    from .local.certify import certify_samples as certify_samples
    from .local.config import LocalConfig as LocalConfig
    from .local.result import LocalCertificate as LocalCertificate
    from .networks.batch_norm import fold_batch_norm as fold_batch_norm
    from .networks.registration import register_activation as register_activation
    from .predictions import Predictions as Predictions
    from .predictions import predict as predict
    from .sharing import from_pretrained as from_pretrained
    from .solvers.config import SolverConfig as SolverConfig
    from .training.callbacks import LogTo as LogTo
    from .training.constraint import Constraint as Constraint
    from .training.monotone import PlusLinear as PlusLinear
    from .training.project import project as project
    from .training.train import TrainConfig as TrainConfig
    from .training.train import TrainResult as TrainResult
    from .training.train import train as train
    from .units import Units as Units

# Public name -> the module that defines it.
_HOMES = {
    "All": "lipschitz",
    "Monotone": "lipschitz",
    "MonotoneCertificate": "certificates.certificate",
    "PlusLinear": "training.monotone",
    "Certificate": "certificates.certificate",
    "CertificateError": "errors",
    "CertifiedRadii": "certificates.radii",
    "Comparison": "evaluation.comparison",
    "Constraint": "training.constraint",
    "FunctionalCertificate": "certificates.certificate",
    "Lipschitz": "lipschitz",
    "Predictions": "predictions",
    "SolverConfig": "solvers.config",
    "TrainConfig": "training.train",
    "TrainResult": "training.train",
    "Units": "units",
    "LocalCertificate": "local.result",
    "LogTo": "training.callbacks",
    "LocalConfig": "local.config",
    "certified_radii": "api",
    "certify": "api",
    "certify_local": "local.certify",
    "certify_samples": "local.certify",
    "export_onnx": "certificates.in_onnx",
    "falsify": "evaluation.falsify",
    "fold_batch_norm": "networks.batch_norm",
    "from_pretrained": "sharing",
    "load_certificate": "certificates.certificate",
    "open_network": "foreign.open",
    "predict": "predictions",
    "project": "training.project",
    "register_activation": "networks.registration",
    "train": "training.train",
    "verify": "api",
}

__all__ = sorted(_HOMES)


__getattr__, __dir__ = lazily(__name__, _HOMES)
