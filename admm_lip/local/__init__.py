"""Local bounds: what a network provably does on a ball around one input.

``certify_local`` bounds slopes and margins on balls of given radii, ``local_radii`` finds the
largest radius at which a class is proven, ``verify_local`` checks either result anew.
"""

from __future__ import annotations

from .certify import LocalConfig as LocalConfig
from .certify import certify_local as certify_local
from .check import verify_local as verify_local
from .radii import local_radii as local_radii
from .result import LocalCertificate as LocalCertificate
