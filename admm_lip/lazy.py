"""Public names of a package that are loaded when they are first used.

So that reading and verifying a certificate needs neither torch nor a solver, and the command
line's help neither of them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose names live in its submodules.

    Args:
        package: its ``__name__``.
        homes: public name to the submodule that defines it.

    Example:
        >>> getattribute, names = lazily("json", {"JSONDecoder": "decoder"})
        >>> getattribute("JSONDecoder").__module__
        'json.decoder'
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{homes[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names
