"""Where the certificate of a network on disk is: beside it, or inside its ONNX file."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..errors import CertificateError
from ..foreign.onnx_model import read_metadata
from .certificate import AnyCertificate, load_certificate
from .in_onnx import CERTIFICATE_KEY, read_certificate


def certificate_beside(path: Path, kind: str = "global") -> Path:
    """Where the certificate of a network is, or goes, unless another place is named."""
    name = "local.safetensors" if kind == "local" else "certificate.json"
    return path / name if path.is_dir() else path.with_suffix(f".{name}")


def own_place(usual: Path, kind: str, norm: str, raw: bool) -> Path:
    """Where a certificate goes whose usual place one of another claim has.

    Example:
        >>> own_place(Path("net.certificate.json"), "pairwise", "linf", raw=False).name
        'net.certificate.pairwise-linf.json'
        >>> own_place(Path("certificate.json"), "global", "l2", raw=True).name
        'certificate.raw.json'
    """
    measure = [*([norm] if norm != "l2" else []), *(["raw"] if raw else [])]
    name = "-".join([*([kind] if kind not in ("global", "local") or not measure else []), *measure])
    return usual.with_suffix(f".{name}{usual.suffix}")


def has_certificate(path: Path) -> bool:
    """Whether a certificate stands beside a network, or inside its ONNX file."""
    inside = path.is_file() and path.suffix == ".onnx" and read_metadata(path, CERTIFICATE_KEY)
    return bool(inside) or certificate_beside(path).is_file()


def certificate_of(path: Path) -> AnyCertificate:
    """The certificate beside a network, else the one inside its ONNX file.

    Raises:
        CertificateError: where there is none, or it cannot be read.
    """
    if not path.exists():
        raise CertificateError(f"{path}: expected the file or folder of a network, found none")
    beside = certificate_beside(path)
    if beside.is_file():
        return load_certificate(beside)
    if has_certificate(path):
        return read_certificate(path)
    raise CertificateError(
        f"{beside}: expected the certificate of {path}, found none; make one with: "
        f"{shlex.join(['admm-lip', 'certify', str(path)])}"
    )
