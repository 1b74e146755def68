"""``admm-lip solvers``: each backend, usable or not, and why."""

from __future__ import annotations

from .arguments import Parser, parse, say


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


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parse(parser(), arguments)
    from ..solvers import doctor

    for line in doctor():
        say(line)
    return 0
