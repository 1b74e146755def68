"""What to type next, made from what was typed: every hint is a command that can be run."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .arguments import Parser, word_of

# A command to type, and what it does.
Hint = tuple[str, str]


def typed(command: str, *words: object) -> str:
    """A command as it is typed into a shell, folders with spaces and all."""
    return shlex.join(["admm-lip", command, *map(str, words)])


def words_of(parser: Parser, options: Mapping[str, Any]) -> list[str]:
    """The options among ``options`` that differ from their defaults, as they are typed.

    Example:
        >>> from admm_lip.commands.verify import parser
        >>> words_of(parser(), {"certificate": "other.json", "exact": False})
        ['--certificate', 'other.json']
    """
    known = {a.dest: a for a in parser._actions if a.option_strings and a.dest != "config"}
    words: list[str] = []
    for key, value in _flat(options, known):
        action = known.get(key)
        if action is not None and not _same(value, action.default):
            name = max((o for o in action.option_strings if not o.endswith("+")), key=len)
            words += [name] if action.nargs == 0 else [name, word_of(value)]
    return words


def _flat(
    options: Mapping[str, Any], known: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Nested settings under their dotted names; a dictionary that is one option stays whole."""
    for key, value in options.items():
        if isinstance(value, Mapping) and prefix + key not in known:
            yield from _flat(value, known, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _same(value: Any, default: Any) -> bool:
    plain = [list(v) if isinstance(v, tuple) else v for v in (value, default)]
    return bool(plain[0] == plain[1])


def verify(path: Path, *more: object) -> Hint:
    """How a proof is checked."""
    return typed("verify", path, *more), "check the proof: no torch, no solver"


def lines(hints: Iterable[Hint]) -> list[str]:
    """Hints as they are printed."""
    return ["", "next:", *(f"  {command}\n      {why}" for command, why in hints)]
