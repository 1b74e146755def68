"""``admm-lip verify``: check a certificate against its network, with NumPy and SciPy alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..progress import working
from .arguments import Parser, UsageError, parse, say
from .outcome import Outcome

if TYPE_CHECKING:
    from ..certificates.certificate import AnyCertificate


def parser() -> Parser:
    """The options of the command."""
    made = Parser(
        "verify",
        """
        Check that a certificate proves its bound for exactly the weights beside it.  This needs
        neither torch nor a solver: it is one factorisation with a margin for rounding.
        """,
        """
        examples:
          admm-lip verify runs/RUN
          admm-lip verify runs/RUN --certificate other.json
          admm-lip verify model.onnx          (model.certificate.json, or the one inside)
          admm-lip verify runs/RUN --exact    (rational arithmetic, small networks)
        """,
        usage="verify PATH [options]",
    )
    made.add_argument(
        "network",
        type=str,
        help="Folder with weights.safetensors and architecture.json, or an ONNX, safetensors or "
        "torch.export file.",
    )
    made.add_argument(
        "--certificate",
        type=str,
        default=None,
        help="Certificate to check (not given: certificate.json in the folder, or "
        "NAME.certificate.json beside the file, else the one inside the ONNX file); a local one "
        "ends in .safetensors, and needs torch.",
    )
    made.add_argument(
        "--exact", action="store_true", help="Check once more in exact rational arithmetic."
    )
    return made


def run(arguments: list[str]) -> Outcome:
    """Run the command."""
    options = parse(parser(), arguments)
    from ..api import verify
    from ..certificates.beside import certificate_of
    from ..certificates.certificate import load_certificate
    from ..foreign import open_network
    from .placing import stated

    path = Path(options.network)
    if options.certificate is not None and options.certificate.endswith(".safetensors"):
        return _verify_local(path, Path(options.certificate), exact=options.exact)
    given = options.certificate
    certificate = certificate_of(path) if given is None else load_certificate(given)
    network = open_network(path, certificate.input_shape)
    with working("verify"):
        verify(certificate, network)
        if options.exact:
            from ..certificates.exact import exact_check

            exact_check(network, certificate)
    how = " (also in exact arithmetic)" if options.exact else ""
    say(f"verified{how}: {_claim(path, certificate)}")
    noted = ", ".join(f"{k} {v}" for k, v in certificate.reported().items() if v not in (None, ""))
    say(f"not proven, only noted by its maker: {noted}")
    found = [certificate]
    raw = path / "certificate.raw.json"
    if given is None and raw.is_file():
        found.append(load_certificate(raw))
        verify(found[1], network)
        say(f"verified: {_claim(path, found[1])}")
    return Outcome(
        {
            "network": path,
            "exact": options.exact,
            "verified": [{**stated(c), "not_proven": c.reported()} for c in found],
        }
    )


def _verify_local(path: Path, file: Path, *, exact: bool) -> Outcome:
    """A local certificate, and the one for all inputs that it leans on."""
    from ..certificates.certificate import load_certificate
    from ..foreign import open_network
    from ..local import LocalCertificate, verify_local
    from .placing import leaned_on_beside, stated

    if exact:
        raise UsageError("exact: expected a certificate for all inputs, got a local one")
    found = LocalCertificate.load(file)
    network = open_network(path, found.input_shape)
    beside = leaned_on_beside(file)
    whole = load_certificate(beside) if beside.is_file() else None
    verify_local(found, network, whole)
    radii = found.radius
    say(
        f"verified: local bounds ({found.norm}) of the network in {path} around {len(radii)} "
        f"inputs, radii from {float(radii.min()):.6g} to {float(radii.max()):.6g}"
    )
    say("not proven, only noted by its maker: level")
    not_proven = {"level": "of each bound"}
    verified = [{**stated(found), "not_proven": not_proven}]
    return Outcome({"network": path, "exact": False, "verified": verified})


def _claim(path: Path, certificate: AnyCertificate) -> str:
    """What has been verified, in one line."""
    from ..certificates.certificate import Certificate

    norm = certificate.norm
    if isinstance(certificate, Certificate):
        unit = "" if certificate.units is None else f" {certificate.units.ratio()}"
        return f"the network in {path} has {norm} Lipschitz constant <= {certificate.lip:.9g}{unit}"
    lips = certificate.lips
    return (
        f"{len(lips)} {certificate.kind} bounds ({norm}) of the network in {path}, "
        f"from {lips.min():.9g} to {lips.max():.9g}"
    )
