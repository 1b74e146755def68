"""A run on a table has its Lipschitz constant in two units: what is recorded and said of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..shown import Fact, number

if TYPE_CHECKING:
    from ..certificates.certificate import Certificate
    from ..networks.network import Network
    from ..records import RunFolder
    from ..units import Units

STANDARDISED, RAW = "standardised", "raw"
# Slopes of single columns that are printed.
_SHOWN = 8


def in_both_units(
    network: Network, certificate: Certificate, units: Units
) -> dict[str, Certificate]:
    """The certificate, and one in the other units."""
    from ..api import certify

    given, other = (STANDARDISED, RAW) if certificate.units is None else (RAW, STANDARDISED)
    made = certify(
        network,
        units=units if other == RAW else None,
        multiplier=certificate.multiplier if network.chain().slopes else None,
    )
    return {given: certificate, other: made}


def record_units(
    folder: RunFolder,
    units: Units,
    dropped: tuple[str, ...],
    certificate: Certificate,
    both: dict[str, Certificate],
) -> dict[str, Any]:
    """Write the units, and the raw proof where it is not the run's own; what the summary says."""
    from ..records import write_json

    write_json(folder.units, units.to_json())
    if certificate.units is None:
        both[RAW].save(folder.raw_certificate)
    targets = units.output_names or units.classes
    features = math.prod(certificate.input_shape)
    limits = units.slope_limits(both[STANDARDISED].lip, features, len(targets))
    # A single column's slope is at most that of all together.
    limits = limits.clip(max=both[RAW].lip)
    return {
        "bound": STANDARDISED if certificate.units is None else RAW,
        "lip": {name: proof.lip for name, proof in both.items()},
        "sampled_lower": {name: proof.sampled_lower for name, proof in both.items()},
        "ratio": units.ratio(),
        "targets": list(targets),
        "features": list(units.input_names),
        "dropped": list(dropped),
        "slopes": {
            target: dict(zip(units.input_names, row, strict=True))
            for target, row in zip(targets, limits.tolist(), strict=True)
        },
    }


def unit_facts(summary: dict[str, Any]) -> list[Fact]:
    """The constants for a person, that of the bound first, from the summary of a run."""
    from ..certificates.certificate import bound_facts

    about, bounds = summary["units"], summary["bounds"]
    units = {
        STANDARDISED: ", of standardised columns",
        RAW: f" {about['ratio']}, in the units of the file",
    }
    own = about["bound"]
    other = RAW if own == STANDARDISED else STANDARDISED
    found = [
        bound_facts(bounds, units[own])[0],
        number(f"lip_{other}", "in other words", about["lip"][other], units[other]),
    ]
    if len(about["slopes"]) == 1 and len(about["features"]) <= _SHOWN:
        ((target, slopes),) = about["slopes"].items()
        said = ", ".join(f"{value:.3g} per {name}" for name, value in slopes.items())
        found.append(Fact("slopes", f"slope of {target} at most", slopes, said))
    if about["dropped"]:
        said = ", ".join(about["dropped"])
        found.append(Fact("dropped", "columns left out", about["dropped"], said))
    return found
