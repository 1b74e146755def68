"""Training with local Lipschitz bounds (Y. Huang et al., NeurIPS 2021), and their proof.

``methods.local`` trains; ``certify_samples`` proves, sample by sample.
"""

from __future__ import annotations

from .certified import certify_samples as certify_samples
from .report import LocalReport as LocalReport
