"""Local bounds: what a network provably does on a ball around one input.

``certify_local`` bounds slopes and margins on balls of given radii, ``local_radii`` finds the
largest radius at which a class is proven, ``verify_local`` checks either result anew.  The same
layers, forward bounds and norms train networks for such bounds (``training_loss.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .certify import certify_local as certify_local
    from .certify import certify_samples as certify_samples
    from .check import verify_local as verify_local
    from .config import LocalConfig as LocalConfig
    from .radii import local_radii as local_radii
    from .result import LocalCertificate as LocalCertificate

__getattr__, __dir__ = lazily(
    __name__,
    {
        "LocalCertificate": "result",
        "LocalConfig": "config",
        "certify_local": "certify",
        "certify_samples": "certify",
        "local_radii": "radii",
        "verify_local": "check",
    },
)
