"""What every command's line is read with: a parser, its help, and its complaints.

Of the standard library only, so that the commands without settings run on the base install.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
import textwrap
import types
import typing
from argparse import SUPPRESS, Action, ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Mapping
from typing import Any, NoReturn

from ..progress import aside
from .outcome import JSON


class UsageError(ValueError):
    """What was typed cannot be used; the message says what to type instead."""


_UNIONS = (typing.Union, types.UnionType)
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "NoneType": "null",
    "str": "text",
    "tuple": "a list like [32,32]",
}


# How a value of a type is written in the help.
_VALUES: Mapping[Any, str] = {int: "N", float: "X", bool: "{true,false}"}


class Formatter(RawDescriptionHelpFormatter):
    """Help in the words of a user: how a value is written, and its default where it has one.

    The description is kept as written (its examples are laid out by hand).
    """

    def _format_action_invocation(self, action: Action) -> str:
        names = ", ".join(name for name in action.option_strings if not name.endswith("+"))
        if not names or is_flag(action):
            return names or super()._format_action_invocation(action)
        return f"{names} {_written(action)}"

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        unsaid = action.default in (None, "", {}, SUPPRESS) or is_flag(action)
        return text if unsaid else f"{text} (default: {word_of(action.default)})"


class Parser(argparse.ArgumentParser):
    """The parser of a command, which raises :class:`UsageError` for an unknown or wrong option."""

    def __init__(
        self, command: str, description: str, epilog: str, usage: str = "", **more: Any
    ) -> None:
        super().__init__(
            prog=f"admm-lip {command}",
            usage=f"admm-lip {usage or command + ' [options]'}",
            description=textwrap.dedent(description).strip(),
            epilog=f"{textwrap.dedent(epilog).strip()}\n\n{JSON}",
            allow_abbrev=False,
            exit_on_error=False,
            **{"formatter_class": Formatter, **more},
        )

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise :class:`UsageError` with the message on one line and the near miss, if any."""
        text = _readable(" ".join(str(message).split()))
        unknown = re.search(r"(?:unrecognized arguments: --|Option ')([\w.]+)", text)
        known = [o.removeprefix("--") for a in self._actions for o in a.option_strings]
        near = difflib.get_close_matches(unknown[1], known, n=1) if unknown else []
        hint = f"; did you mean --{near[0]}?" if near else ""
        raise UsageError(f"{text}{hint} (see {self.prog} --help)") from ex


def parse(parser: Parser, arguments: list[str]) -> Any:
    """Parse, turning every complaint of the parser into :class:`UsageError`.

    ``--batch_size`` is read as ``--batch-size``: settings files spell the names with underscores.
    """
    try:
        return parser.parse_args([_dashed(argument) for argument in arguments])
    except ArgumentError as error:
        parser.error(str(error), error)


def word_of(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, bool | None):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(word_of, value))}]"
    if isinstance(value, dict):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def is_flag(action: Action) -> bool:
    """Whether nothing follows the option's name."""
    return action.nargs == 0 or "--print-config" in action.option_strings


def _written(action: Action) -> str:
    """How the value of an option is typed: a letter, a list of letters, or the choices."""
    kind = getattr(action, "_typehint", None) or action.type
    for part in typing.get_args(kind) if typing.get_origin(kind) in _UNIONS else (kind,):
        inner = typing.get_args(part)
        if part is str:
            break
        if part in _VALUES:
            return _VALUES[part]
        if typing.get_origin(part) in (list, tuple) and inner[0] in _VALUES:
            several = [_VALUES[item] for item in inner if item in _VALUES]
            return f"[{','.join(several if len(several) > 1 else [*several, '...'])}]"
        if typing.get_origin(part) is typing.Literal:
            return f"{{{','.join(inner)}}}"
    if action.choices is not None:
        return f"{{{','.join(map(str, action.choices))}}}"
    metavar = action.metavar if isinstance(action.metavar, str) else None
    return metavar or action.dest.rpartition(".")[2].upper().replace("_", "-")


def _readable(text: str) -> str:
    """jsonargparse's complaint about a value, in the words of this package's errors."""
    key = re.search(r'Parser key "([\w.]+)": (.*)', text)
    if key is None:
        return text
    value = re.search(r"(?:Given|Got) value: (.*)$", text)
    expected_types = re.findall(r"Expected (?:an? )?(?:<class '(\w+)'>|typing\.(\S.*?\]))", text)
    if value is None or not expected_types:
        return f"{key[1]}: {key[2]}"
    expected = " or ".join(_WORDS.get(name, name) or special for name, special in expected_types)
    return f"{key[1]}: expected {expected}, got {value[1]!r}"


def _dashed(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def say(text: str = "") -> None:
    """Print to standard output, at once."""
    with aside():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
