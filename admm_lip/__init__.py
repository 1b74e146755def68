"""admm-lip: certified Lipschitz bounds for ordinary PyTorch networks.

The public names are loaded when they are first used, so that reading and verifying a certificate
needs neither torch nor a solver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazily

if TYPE_CHECKING:
    from .certificates.certificate import Certificate as Certificate
    from .certificates.certificate import FunctionalCertificate as FunctionalCertificate
    from .certificates.certificate import certify as certify
    from .certificates.certificate import load_certificate as load_certificate
    from .certificates.radii import certified_radii as certified_radii
    from .certificates.verify import verify as verify
    from .errors import CertificateError as CertificateError
    from .evaluation.falsify import falsify as falsify
    from .local_training.certified import certify_samples as certify_samples
    from .predictions import Predictions as Predictions
    from .predictions import predict as predict
    from .solvers.config import SolverConfig as SolverConfig
    from .training.project import project as project
    from .training.train import TrainConfig as TrainConfig
    from .training.train import TrainResult as TrainResult
    from .training.train import train as train
    from .units import Units as Units

# Public name -> the module that defines it.
_HOMES = {
    "Certificate": "certificates.certificate",
    "CertificateError": "errors",
    "FunctionalCertificate": "certificates.certificate",
    "Predictions": "predictions",
    "SolverConfig": "solvers.config",
    "TrainConfig": "training.train",
    "TrainResult": "training.train",
    "Units": "units",
    "certified_radii": "certificates.radii",
    "certify": "certificates.certificate",
    "certify_samples": "local_training.certified",
    "falsify": "evaluation.falsify",
    "load_certificate": "certificates.certificate",
    "predict": "predictions",
    "project": "training.project",
    "train": "training.train",
    "verify": "certificates.verify",
}

__all__ = sorted(_HOMES)


__getattr__, __dir__ = lazily(__name__, _HOMES)
