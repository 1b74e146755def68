"""Local bounds: what a network provably does on a ball around one input.

``certify_local`` bounds slopes and margins on balls of given radii, ``local_radii`` finds the
largest radius at which a class is proven, ``verify_local`` checks either result anew.
``output_ranges`` bounds outputs on boxes, ``check_specification`` decides VNNLIB files.  The same
layers, forward bounds and norms train networks for such bounds (``training_loss.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .boxes import output_ranges as output_ranges
    from .certify import certify_local as certify_local
    from .certify import certify_samples as certify_samples
    from .check import verify_local as verify_local
    from .config import LocalConfig as LocalConfig
    from .radii import local_radii as local_radii
    from .result import LocalCertificate as LocalCertificate
    from .specification import SpecificationResult as SpecificationResult
    from .specification import check_specification as check_specification

__getattr__, __dir__ = lazily(
    __name__,
    {
        "LocalCertificate": "result",
        "LocalConfig": "config",
        "certify_local": "certify",
        "SpecificationResult": "specification",
        "certify_samples": "certify",
        "check_specification": "specification",
        "local_radii": "radii",
        "output_ranges": "boxes",
        "verify_local": "check",
    },
)
