"""admm-lip: certified Lipschitz bounds for ordinary PyTorch networks.

The public names are loaded when they are first used, so that reading and verifying a certificate
needs neither torch nor a solver.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .certificate import Certificate as Certificate
    from .certificate import FunctionalCertificate as FunctionalCertificate
    from .certificate import certify as certify
    from .certificate import load_certificate as load_certificate
    from .errors import CertificateError as CertificateError
    from .project import project as project
    from .radii import certified_radii as certified_radii
    from .solvers.config import SolverConfig as SolverConfig
    from .train import TrainConfig as TrainConfig
    from .train import TrainResult as TrainResult
    from .train import train as train
    from .verify import verify as verify

# Public name -> the module that defines it.
_HOMES = {
    "Certificate": "certificate",
    "CertificateError": "errors",
    "FunctionalCertificate": "certificate",
    "SolverConfig": "solvers.config",
    "TrainConfig": "train",
    "TrainResult": "train",
    "certified_radii": "radii",
    "certify": "certificate",
    "load_certificate": "certificate",
    "project": "project",
    "train": "train",
    "verify": "verify",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _Package(ModuleType):
    """Keeps ``admm_lip.train`` the function once the submodule of that name is imported.

    The import system assigns a submodule to its package; where a public name is the same, the
    public name wins.  ``from admm_lip.train import ...`` is not affected.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
