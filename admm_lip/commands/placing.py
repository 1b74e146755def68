"""What a certificate claims, in a few fields, and where it is written: never over another claim."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..certificates.beside import own_place
from ..certificates.certificate import AnyCertificate, FunctionalCertificate, load_certificate
from ..errors import CertificateError, RunFolderError

if TYPE_CHECKING:
    from ..local.result import LocalCertificate

Held: TypeAlias = "AnyCertificate | LocalCertificate | CertificateError"


def stated(certificate: Held) -> dict[str, Any]:
    """What a certificate claims, for ``--json``; of functionals each bound, the largest first."""
    if isinstance(certificate, CertificateError):
        return {"unreadable": str(certificate)}
    units, lips = getattr(certificate, "units", None), []
    if isinstance(certificate, FunctionalCertificate):
        lips = certificate.lips.tolist()
    name, value = _figure(certificate)
    return {
        "kind": _kind(certificate),
        "norm": certificate.norm,
        "unit": None if units is None else units.ratio(),
        name: value,
        **({"lips": lips} if lips else {}),
    }


def held(place: Path) -> Held | None:
    """The certificate in a place; why it cannot be read; ``None`` where there is no file."""
    if not place.exists():
        return None
    try:
        if place.suffix != ".safetensors":
            return load_certificate(place)
        from ..local import LocalCertificate

        return LocalCertificate.load(place)
    except CertificateError as error:
        return error


def check_replaceable(output: Path, kind: str) -> None:
    """What is in a place that was named must be a certificate of that kind.

    Raises:
        RunFolderError: where it is anything else.
    """
    found = held(output)
    if found is not None and (isinstance(found, CertificateError) or _kind(found) != kind):
        raise RunFolderError(
            f"output: {output} exists and holds no {kind} certificate; name another file with "
            "--output"
        )


def place_of(usual: Path, proven: AnyCertificate | LocalCertificate) -> Path:
    """The usual place, unless a certificate of another claim has it, which is kept."""
    found = held(usual)
    if found is None or isinstance(found, CertificateError) or _claim(found) == _claim(proven):
        return usual
    return own_place(usual, _kind(proven), proven.norm, _measured(proven))


def leaned_on_beside(output: Path) -> Path:
    """Where the certificate for all inputs lies that a local one leans on."""
    return output.with_suffix(".pairs.json")


def instead(before: Held | None, now: AnyCertificate | LocalCertificate) -> str:
    """That a certificate was replaced, with both figures."""
    if before is None:
        return ""
    if isinstance(before, CertificateError):
        return f", in place of a file that was no certificate of this version ({before})"
    (name, was), (_, value) = _figure(before), _figure(now)
    other = "" if before.digest == now.digest else " of other weights"
    change = f"{name.replace('_', ' ')} {was:.9g} before, {value:.9g} now"
    return f", in place of an earlier certificate{other}: {change}"


def _claim(certificate: Any) -> tuple[str, str, bool]:
    return _kind(certificate), certificate.norm, _measured(certificate)


def _kind(certificate: Any) -> str:
    return str(getattr(certificate, "kind", "local"))


def _measured(certificate: Any) -> bool:
    """Whether inputs are measured in raw units."""
    return certificate.input_scale is not None or getattr(certificate, "units", None) is not None


def _figure(certificate: Any) -> tuple[str, float]:
    """The one number by which a certificate is known."""
    if isinstance(certificate, FunctionalCertificate):
        return "lip", float(certificate.lips.max())
    if _kind(certificate) == "local":
        return "mean_radius", float(certificate.radius.mean())
    return "lip", certificate.lip
