"""``certify(kind="local")``, as it was called before local certificates had a door of their own."""

from __future__ import annotations

import warnings
from typing import Any

from ..errors import CertificateError
from ..units import Units
from .certify import certify_local
from .config import LocalConfig
from .result import LocalCertificate


def certify_local_as_a_kind(
    model: Any, x: Any, norm: str, units: Units | None, local: dict[str, Any]
) -> LocalCertificate:
    """:func:`admm_lip.certify_local`; a ``config`` says norm and scale itself."""
    warnings.warn(
        "certify(kind='local') is now certify_local(model, x, radius, y), and goes with 0.3",
        DeprecationWarning,
        stacklevel=3,
    )
    if units is not None and units.scales_outputs:
        raise CertificateError(
            "units: local bounds measure outputs as the model gives them; expected "
            f"output_scale 1, got {units.output_scale!r:.80}"
        )
    scale = None if units is None else units.input_scale
    config = local.pop("config", None) or LocalConfig(norm=norm, input_scale=scale)
    return certify_local(model, x, config=config, **local)
