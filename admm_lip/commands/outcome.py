"""What a command ends with: its figures, for ``--json``, and the exit code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# What every help says.
JSON = "--json prints one JSON object, and nothing else, to standard output."


class Outcome(NamedTuple):
    """What a command found.

    Attributes:
        record: plain values by name, those with a unit beside a field that says it.
        code: 0, or the exit code of an error or a signal.
    """

    record: Mapping[str, Any]
    code: int = 0
