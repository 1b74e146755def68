"""``python -m benchmarks NAME``: run one benchmark and write its record.

Without a name, the list of them by question.
"""

from __future__ import annotations

import importlib
import sys

from .catalogue import BENCHMARKS, listing


def main(argv: list[str]) -> int:
    """Dispatch to the named benchmark."""
    if not argv or argv[0] not in BENCHMARKS:
        print(listing())
        return 0 if not argv or argv[0] in ("-h", "--help") else 2
    module = importlib.import_module(f"benchmarks.{argv[0]}")
    module.main(argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
