"""``admm-lip solvers``: each backend, usable or not, and why."""

from __future__ import annotations

from dataclasses import asdict

from .arguments import Parser, parse, say
from .outcome import Outcome


def parser() -> Parser:
    """The options of the command."""
    return Parser(
        "solvers",
        """
        List the solvers of the semidefinite problems: which can run here, and why the others
        cannot.  The native solver always can; choose another one with --solver.name.
        """,
        "example:\n  admm-lip solvers",
    )


def run(arguments: list[str]) -> Outcome:
    """Run the command."""
    parse(parser(), arguments)
    from ..solvers import available, doctor

    for line in doctor():
        say(line)
    return Outcome({"solvers": {name: asdict(found) for name, found in available().items()}})
