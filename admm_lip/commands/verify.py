"""``admm-lip verify``: check a certificate against its network, with NumPy alone."""

from __future__ import annotations

from pathlib import Path

from .options import Parser, parse, say


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
        """,
        usage="verify FOLDER [options]",
    )
    made.add_argument(
        "folder", type=str, help="Folder with weights.safetensors and architecture.json."
    )
    made.add_argument(
        "--certificate",
        type=str | None,
        default=None,
        help="Certificate to check (not given: certificate.json in the folder).",
    )
    return made


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(parser(), arguments)
    from ..certificate import Certificate
    from ..verify import verify

    folder = Path(options.folder)
    certificate = Certificate.load(Path(options.certificate or folder / "certificate.json"))
    verify(certificate, folder)
    say(f"verified: the network in {folder} has l2 Lipschitz constant <= {certificate.lip:.9g}")
    return 0
